"""gguf, both directions: what transformers and the package gguf make of the same files is the reference."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPES, SHARED, WRITTEN, rewrite_gguf, tiny_hf, write_tokenizer

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.gguf import open_gguf, reading, write_gguf
from lit_gpt.convert.gguf import write_tokenizer as write_tokenizer_of
from lit_gpt.convert.gguf.metadata import from_metadata, to_metadata
from lit_gpt.convert.gguf.splitting import SAMPLE, SPLITTINGS, recognize_splitting, steps_of
from lit_gpt.convert.gguf.tokens import tokenizer_metadata
from lit_gpt.convert.gguf.values import dequantize, encoded
from lit_gpt.convert.gguf.writing import add
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.files import spec_of
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

IDS = torch.randint(0, 265, (1, 40), generator=torch.Generator().manual_seed(1))
SIX = ["sliding_attention"] * 5 + ["full_attention"]
FOUR = ["sliding_attention"] * 3 + ["full_attention"]
LLAMA_CPP = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16, "num_hidden_layers": 6, "layer_types": SIX},
    "olmo3": {"num_hidden_layers": 4, "layer_types": FOUR},
    "exaone4": {"layer_types": ["full_attention"] * 2, "sliding_window": None},
    "nemotron": {"head_dim": 8},
    "smollm3": {"num_hidden_layers": 5, "no_rope_layer_interval": 4, "use_sliding_window": False},
}
"""Kind -> what llama.cpp takes for granted and `SHAPES` has otherwise."""
OF_TRANSFORMERS: dict[str, dict] = {  # kinds whose gguf transformers reads, with what it takes for granted
    **{k: {} for k in ("llama", "llama-gqa", "llama-tied", "llama-wide-heads", "mistral-full", "qwen2", "stablelm")},
    "phi3": {"rope_scaling": None},
    "qwen3": {"head_dim": 128},
    "falcon": {"tie_word_embeddings": True},
    "gemma2": {"head_dim": 256},
}


def checkpoint(kind, folder, **overrides):
    """A tiny model of transformers in a folder as it comes from the hub; our configuration and tensors of it."""
    theirs = tiny_hf(kind, **overrides)
    theirs.save_pretrained(folder)
    write_tokenizer(folder)
    source = open_source(folder)
    config = config_from_hf(source.hf_config, f"tiny-{kind}", "config.json")
    return theirs, config, from_hf(config, source.names, source.get)


def with_padding(folder):
    """Name a padding token; transformers takes 32000 for a Phi 3 without one."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "</s>"}))


def write(config, state, source, folder, kind="F16", rows=None):
    folder.mkdir(exist_ok=True)
    return write_gguf(config, {n: spec_of(x) for n, x in state.items()}, state.__getitem__, source, folder, kind, rows)


def in_16_bits(state, dtype=torch.float16):
    return {name: x.to(dtype).float() if x.dim() > 1 else x for name, x in state.items()}


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind not in WRITTEN])
def test_what_we_do_not_write_is_refused_by_name(kind, tmp_path):
    _, config, state = checkpoint(kind, tmp_path / "there")
    with pytest.raises(UserError, match=f"gguf files of {config.architecture} models are not written"):
        write(config, state, tmp_path / "there", tmp_path / "out")


@pytest.mark.parametrize("kind", WRITTEN)
@torch.no_grad()
def test_every_family_comes_back_as_it_was_written(kind, tmp_path):
    _theirs, config, state = checkpoint(kind, tmp_path / "there", **LLAMA_CPP.get(kind, {}))
    state = in_16_bits(state)
    path = write(config, state, tmp_path / "there", tmp_path / "out")
    source = open_source(tmp_path / "out")
    again = config_from_hf(source.hf_config, config.name, str(path))
    ours = GPT(again).eval()
    got = from_hf(again, source.names, source.get)
    assert all(spec_of(source.get(name)) == source.specs[name] for name in source.names)
    ours.load_state_dict(got)
    reference = GPT(config).eval()
    reference.load_state_dict({n: x.half() for n, x in state.items()})
    n = min(40, again.block_size)
    torch.testing.assert_close(ours(IDS[:, :n]), reference(IDS[:, :n]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", list(OF_TRANSFORMERS))
@torch.no_grad()
def test_transformers_computes_the_same_from_our_file(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    theirs, config, state = checkpoint(kind, tmp_path / "there", **OF_TRANSFORMERS[kind])
    with_padding(tmp_path / "there")
    path = write(config, in_16_bits(state), tmp_path / "there", tmp_path / "out")
    got = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    state = in_16_bits(theirs.state_dict())
    theirs.load_state_dict(state)
    n = 8 if "window" in str(SHAPES[kind][1]) else 40
    torch.testing.assert_close(got(IDS[:, :n]).logits, theirs(IDS[:, :n]).logits, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("kind", [k for k in WRITTEN if k not in OF_TRANSFORMERS])
def test_tensors_have_the_names_and_values_that_llama_cpp_gives_them(kind, tmp_path):
    """By the table of names in the package gguf; the values of what it does not rearrange are those of transformers."""
    theirs, config, state = checkpoint(kind, tmp_path / "there", **LLAMA_CPP.get(kind, {}))
    path = write(config, state, tmp_path / "there", tmp_path / "out")
    reader = gguf.GGUFReader(path)
    written = {t.name: t for t in reader.tensors}
    architecture = reader.fields["general.architecture"].contents()
    (number,) = [i for i, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    table = gguf.get_tensor_name_map(number, config.n_layer)
    named = set()
    for name, x in theirs.state_dict().items():
        name = re.sub(r"mlp\.experts\.(gate_up_proj|down_proj)", r"mlp.experts.\1.weight", name)
        module, parameter = name.rpartition(".")[::2]
        if (
            "layernorm.norms" in module
            or ".experts.gate_up_proj" in module
            or (name == "lm_head.weight" and config.tie_embeddings)
        ):
            continue  # stacked by the converter's code rather than by the table
        found = f"{table.get_name(module)}.{parameter}"
        assert found in written, f"{name} is to be {found}"
        named.add(found)
        offset = config.norm_unit_offset and "norm" in name and parameter == "weight"
        x = x.float() + (1 if offset else 0)
        if not re.search("attn_(q|k|qkv)", found):
            got = gguf.dequantize(written[found].data, written[found].tensor_type).reshape(x.shape)
            torch.testing.assert_close(torch.from_numpy(got), x, rtol=1e-3, atol=1e-4)
    assert named | set(written) == set(written)


@pytest.mark.parametrize("kind, groups", [("neox", 4), ("falcon", 1), ("falcon-40b", 2)])
def test_stacked_queries_keys_and_values_are_all_q_all_k_all_v(kind, groups, tmp_path):
    theirs, config, state = checkpoint(kind, tmp_path / "there")
    reader = gguf.GGUFReader(write(config, in_16_bits(state), tmp_path / "there", tmp_path / "out"))
    (tensor,) = [t for t in reader.tensors if t.name == "blk.1.attn_qkv.weight"]
    (x,) = [x for n, x in theirs.state_dict().items() if "1." in n and n.endswith("query_key_value.weight")]
    blocks = x.view(groups, -1, 8, 32)  # of each group: its queries, its key, its value
    want = torch.cat([blocks[:, :-2].reshape(-1, 32), blocks[:, -2].reshape(-1, 32), blocks[:, -1].reshape(-1, 32)])
    assert torch.equal(torch.tensor(tensor.data), want.half())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K"])
def test_every_type_that_we_read_has_the_values_that_the_reference_gives(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "STEP", 7 * 256)  # a matrix is read in many parts, the last one shorter
    _theirs, config, state = checkpoint("llama", tmp_path / "there", hidden_size=256, intermediate_size=256)
    path = write(config, state, tmp_path / "there", tmp_path / "out")
    of = gguf.GGMLQuantizationType[kind]
    generator = np.random.default_rng(0)

    def values(t):
        x = gguf.dequantize(t.data, t.tensor_type)
        to = of if len(t.shape) == 2 else gguf.GGMLQuantizationType.F32
        try:
            return gguf.quantize(x, to), to
        except NotImplementedError:  # the package reads K types only: any bytes do, with scales that are numbers
            shape = gguf.quant_shape_to_byte_shape(x.shape, to)
            return generator.integers(0, 60, shape, dtype=np.uint8), to

    rewrite_gguf(path, values)
    _, tensors, specs = open_gguf(path)
    reference = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, theirs_name in (
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
    ):
        want = torch.tensor(gguf.dequantize(reference[name].data, of))
        got = tensors[theirs_name]()
        assert spec_of(got) == specs[theirs_name]
        assert got.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
        assert torch.equal(got.float(), want)
        _, rounded, small = open_gguf(path, torch.bfloat16)
        assert torch.equal(rounded[theirs_name](), want.bfloat16()) and small[theirs_name].dtype == torch.bfloat16


@pytest.mark.smoke
def test_eight_bits_are_those_of_the_reference():
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(1))
    x[2, :32] = 0
    x[3, 5] = 300
    near = torch.arange(31) + 0.5  # halves, and their neighbours, at a scale of 1
    x[4] = torch.cat([torch.cat((v, torch.tensor([127.0]))) for v in (near, near.nextafter(torch.zeros(31)), -near)])
    got = torch.cat(list(encoded(x, "Q8_0"))).numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    want = gguf.quantize(x.numpy(), kind)
    assert np.array_equal(got, want.reshape(-1))
    out = torch.empty(7, 96)
    dequantize(got, kind.name, out)
    assert torch.equal(out, torch.from_numpy(gguf.dequantize(want, kind)))


def test_keys_of_files_that_llama_cpp_made_itself_mean_what_they_say():
    """Which layers have the window, how sharp YaRN is, and an MLP's size beside that of the experts."""
    made = {
        "gemma3": config_for("gemma-3-270m"),
        "olmo2": config_for("Olmo-3-1025-7B"),
        "qwen3moe": config_for("Qwen3-30B-A3B", vocab_size=151936),
    }

    def read(kind, **more):
        config = made[kind]
        shapes = {
            "token_embd.weight": (config.padded_vocab_size, config.n_embd),
            "blk.0.attn_q.weight": (config.n_head * config.head_size, config.n_embd),
        }
        shapes |= {} if config.tie_embeddings else {"output.weight": shapes["token_embd.weight"]}
        values = {f"{kind}.{key}": value for key, value in (to_metadata(config) | more).items()}
        general = {"general.architecture": kind, "general.name": config.name}
        return replace(from_metadata(general | values, shapes, {}, Path("x")), hf_repo=config.hf_repo)

    assert read("gemma3") == made["gemma3"]
    window = "attention.sliding_window_pattern"
    assert read("gemma3", **{window: 3}).sliding_layers == [i for i in range(18) if i % 3 != 2]
    assert read("gemma3", **{window: [i > 8 for i in range(18)]}).sliding_layers == list(range(9, 18))
    implied = {k: v for k, v in made["olmo2"].rope_scaling.items() if k != "attention_factor"}
    assert read("olmo2") == replace(made["olmo2"], rope_scaling=implied)
    assert read("olmo2", **{"rope.scaling.yarn_attn_factor": 1.207944}).rope_scaling == implied
    assert read("olmo2", **{"rope.scaling.yarn_attn_factor": 1.0}).rope_scaling == implied | {"attention_factor": 1.0}
    assert read("qwen3moe", feed_forward_length=6144) == made["qwen3moe"]


def test_what_cannot_be_read_or_written_is_named(tmp_path):
    _theirs, config, state = checkpoint("llama", tmp_path / "there", hidden_size=64, intermediate_size=64)
    source = tmp_path / "there"
    big = state | {"transformer.h.0.mlp.fc_1.weight": torch.full((64, 64), 1e5)}
    with pytest.raises(UserError, match=r"fc_1.weight has values beyond 65,504.*BF16"):
        write(config, big, source, tmp_path / "out")
    path = write(config, state, source, tmp_path / "out")
    whole = path.read_bytes()
    head_size, of_u32 = b"llama.attention.key_length", (4).to_bytes(4, "little")
    for old, new, message in (
        (head_size + of_u32 + b"\x10", head_size + of_u32 + b"\x12", "key_length=18 is not the size of a head, 16"),
        (b"blk.1.ffn_up.weight", b"blk.1.ffn_ub.weight", "no tensor 'blk.1.ffn_up.weight'"),
        (b"llama.vocab_size", b"llama.logit_size", "llama.logit_size=320 is not a field"),
    ):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match=message):
            open_gguf(path)
    for architecture, changes, message in (
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0}}, "no llama model with rope_scaling"),
        ("gemma2", {"query_pre_attn_scalar": 7, "tie_embeddings": True}, "query_pre_attn_scalar=7"),
        ("gemma3", {"query_pre_attn_scalar": 128, "sliding_window": 0}, "no gemma3 model with sliding_window=0"),
        ("gemma3", {"query_pre_attn_scalar": 128, "sliding_window": 8}, "no gemma3 model with sliding_layers=None"),
        ("llama", {"rope_local_base": 1e4, "sliding_window": 8}, "no llama model with rope_local_base=10000.0"),
        ("olmo3", {"rope_base": 5e5, "rope_local_base": 1e4}, "no olmo3 model with rope_local_base=10000.0"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.0}}, "with rope_scaling"),
        ("qwen3", {"qkv_bias": True}, "no qwen3 model with qkv_bias=True"),
        ("smollm3", {"unrotated_layers": [1]}, r"no smollm3 model with unrotated_layers=\[1\]"),
        ("llama", {"unrotated_layers": [3]}, r"no llama model with unrotated_layers=\[3\]"),
        ("", {}, "llama.cpp has no unnamed architecture"),
    ):
        with pytest.raises(UserError, match=message):
            write(Config(name="x", architecture=architecture, **changes), {}, source, tmp_path / "out")


@torch.no_grad()
def test_rope_scaling_comes_back_as_llama_3_names_it_or_factor_by_factor(tmp_path):
    real = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    for scaling, kind in ((real, "llama3"), (real | {"original_max_position_embeddings": 64}, "longrope")):
        shape = {"rope_scaling": {"rope_type": "llama3", **scaling, "rope_theta": 500000.0}}
        folder = tmp_path / kind
        theirs, config, state = checkpoint("llama", folder / "there", **shape)
        write(config, state, folder / "there", folder / "out")
        hf = open_source(folder / "out").hf_config
        assert hf["rope_scaling"]["rope_type"] == kind
        assert kind == "longrope" or config_from_hf(hf, config.name, "x").rope_scaling == config.rope_scaling
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        want = ROPE_INIT_FUNCTIONS["llama3"](theirs.config, "cpu")[0]
        plain = 500000.0 ** -(torch.arange(0, 8, 2) / 8)
        (factors,) = [t for t in gguf.GGUFReader(next((folder / "out").iterdir())).tensors if "rope" in t.name]
        torch.testing.assert_close(torch.tensor(factors.data), plain / want)


@pytest.mark.parametrize("kind", ["mistral", "phi3", "qwen2"])
def test_a_window_that_llama_cpp_leaves_out_shortens_the_context(kind, tmp_path):
    _theirs, config, state = checkpoint(kind, tmp_path / "there")
    write(config, state, tmp_path / "there", tmp_path / "out")
    assert open_source(tmp_path / "out").hf_config["max_position_embeddings"] == 8


def rebuilt(folder, again):
    """The tokenizer of a folder by way of a gguf file that has nothing but it."""
    config = Config(name="x", architecture="llama", padded_vocab_size=Tokenizer(folder).vocab_size + 5)
    writer = gguf.GGUFWriter(again / "x.gguf", "llama")
    for key, value in tokenizer_metadata(folder, config).items():
        add(writer, key, value)
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_tokenizer_of(again / "x.gguf", again)
    return Tokenizer(again)


def assert_same_tokenizer(one, other, texts):
    assert (one.vocab_size, one.bos_id, one.eos_id, one.use_bos) == (
        other.vocab_size,
        other.bos_id,
        other.eos_id,
        other.use_bos,
    )
    for text in texts:
        assert one.encode(text) == other.encode(text), text
        assert one.decode(one.encode(text)) == other.decode(other.encode(text)), text


TEXTS = [SAMPLE, "the king and the queen", " a  b\n\nc ", "<s>one</s> two", "", "naïve 你好 🦙 \x00\x7f", "12345 it's"]


@pytest.mark.parametrize("name", ["falcon", "gpt-2", "smollm2", "mistral-v1"])
def test_real_tokenizers_split_as_before_after_a_gguf(name, tmp_path):
    if not (SHARED / "tokenizers" / name).is_dir():
        pytest.skip(f"the tokenizer {name} is not here")
    folder = SHARED / "tokenizers" / name
    more = [text.read_text(encoding="utf-8") for text in folder.glob("*.inp")]
    assert_same_tokenizer(Tokenizer(folder), rebuilt(folder, tmp_path), [*TEXTS, *more])


@pytest.mark.parametrize("splitting", SPLITTINGS, ids=lambda s: s.name)
def test_a_way_of_splitting_is_recognized_by_what_it_does(splitting, tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import normalizers

    write_tokenizer(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.pre_tokenizer = steps_of(splitting)
    backend.model.ignore_merges = splitting.ignore_merges
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()
    assert recognize_splitting(backend, "x") is splitting
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "again").mkdir()
    assert_same_tokenizer(Tokenizer(tmp_path), rebuilt(tmp_path, tmp_path / "again"), TEXTS)


def test_bytes_of_a_tokenizer_model_are_marked_as_such():
    folder = SHARED / "tokenizers" / "mistral-v1"
    if not folder.is_dir():
        pytest.skip("the tokenizer mistral-v1 is not here")
    values = tokenizer_metadata(folder, Config(name="x", architecture="llama", padded_vocab_size=32000))
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert [t for t, kind in zip(tokens, kinds, strict=True) if kind == 6] == [f"<0x{i:02X}>" for i in range(256)]


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    write_tokenizer(tmp_path)
    config = Config(name="x", architecture="llama")
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"not known to be one of llama\.cpp's"):
        tokenizer_metadata(tmp_path, config)
    words = Backend(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="kind WordLevel"):
        tokenizer_metadata(tmp_path, config)


def test_a_tokenizer_json_that_was_made_of_a_tokenizer_model_keeps_its_order_of_merges(tmp_path):
    """Our tokenizer_config.json says the same of both; transformers makes the one file of the other."""
    from transformers import AutoTokenizer

    folder = SHARED / "tokenizers" / "mistral-v1"
    if not folder.is_dir():
        pytest.skip("the tokenizer mistral-v1 is not here")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink(missing_ok=True)
    assert '"byte_fallback": true' in (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "again").mkdir()
    one, other = Tokenizer(folder), rebuilt(tmp_path, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.model").is_file()
    for text in ("the king and the queen", "Unbelievably naïve: 你好, 🦙 12345!", "def f(x):\n\treturn x**2", SAMPLE):
        text = " ".join(text.split())  # transformers merges runs of spaces in another order, in its tokenizer.json too
        assert one.encode(text) == other.encode(text), text


def test_a_tokenizer_model_beside_a_gguf_is_left_alone(tmp_path):
    from importlib.util import module_from_spec, spec_from_file_location

    from conftest import ROOT

    spec = spec_from_file_location("convert_hf_checkpoint", ROOT / "scripts" / "convert_hf_checkpoint.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    _, config, state = checkpoint("llama", tmp_path / "there")
    write(config, state, tmp_path / "there", tmp_path / "out")
    module.main(tmp_path / "out")
    assert_same_tokenizer(Tokenizer(tmp_path / "there"), Tokenizer(tmp_path / "out"), TEXTS)
    (tmp_path / "out" / "tokenizer.json").unlink()
    (tmp_path / "out" / "tokenizer.model").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        module.main(tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
