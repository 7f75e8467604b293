"""llama.cpp with a gguf file of ours, and what such files are made from."""

import json
from pathlib import Path

import pytest
import requests
import torch
from conftest import SHARED, tiny_hf, write_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.gguf import write_gguf
from lit_gpt.convert.gguf.splitting import steps_of
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.files import spec_of
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp, as the package xllamacpp has it, is not installed")

IDS = torch.randint(0, 264, (1, 40), generator=torch.Generator().manual_seed(1))
SIX = ["sliding_attention"] * 5 + ["full_attention"]
FOUR = ["sliding_attention"] * 3 + ["full_attention"]
LLAMA_CPP = {
    "exaone4": {"layer_types": ["full_attention"] * 2, "sliding_window": None},
    "nemotron": {"head_dim": 8},
    "olmo3": {"num_hidden_layers": 4, "layer_types": FOUR},
    "gemma3": {"query_pre_attn_scalar": 16, "num_hidden_layers": 6, "layer_types": SIX},
    "gemma2": {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    "smollm3": {"num_hidden_layers": 5, "no_rope_layer_interval": 4, "use_sliding_window": False},
}
"""Kind -> what llama.cpp takes for granted and `SHAPES` has otherwise, and caps that are not its defaults."""


class LlamaCpp:
    """llama.cpp with a model, on one core, all caches in fp32."""

    def __init__(self, path: Path, context: int = 512, lora: Path | None = None) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.verbosity = context, 1, 1, 0
        params.warmup = params.fit_params = False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if lora:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self.server = xllamacpp.Server(params)

    def log_probabilities(self, ids: list[int], n_tokens: int = 320) -> torch.Tensor:
        """Returns the log-probability of every token after `ids`."""
        asked = {"prompt": ids, "max_tokens": 1, "logprobs": n_tokens, "temperature": 0, "cache_prompt": False}
        asked["logit_bias"] = {"64": 1000}  # what comes out has to be text; the log-probabilities are those before it
        answer = self.server.handle_completions(asked)
        assert "choices" in answer, answer
        found = torch.full((n_tokens,), float("nan"))
        for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            found[token["id"]] = token["logprob"]
        return found

    def encode(self, text: str, special: bool = True) -> list[int]:
        asked = {"content": text, "add_special": special, "parse_special": True}
        return requests.post(f"{self.server.listening_address}/tokenize", json=asked, timeout=60).json()["tokens"]

    def template(self) -> str:
        """Returns the chat template that it uses unasked."""
        return requests.get(f"{self.server.listening_address}/props", timeout=60).json()["chat_template"]

    def greedy(self, text: str, n: int) -> str:
        asked = {"prompt": text, "max_tokens": n, "temperature": 0, "ignore_eos": True}
        return self.server.handle_completions(asked)["choices"][0]["text"]


def checkpoint(kind, folder, **overrides):
    """Writes a tiny model of transformers as it comes from the hub; returns it, our configuration and our tensors."""
    theirs = tiny_hf(kind, **LLAMA_CPP.get(kind, {}) | overrides)
    theirs.save_pretrained(folder)
    write_tokenizer(folder)
    source = open_source(folder)
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    return theirs, config, from_hf(config, source.names, source.get)


def write(config, state, source, folder, kind):
    """Writes the tensors `state` as a gguf file into a folder, with the tokenizer of the folder `source`."""
    folder.mkdir(exist_ok=True, parents=True)
    return write_gguf(config, {n: spec_of(x) for n, x in state.items()}, state.__getitem__, source, folder, kind)


def ours_of(folder):
    """Returns our model of a folder with a gguf file."""
    source = open_source(folder)
    config = config_from_hf(source.hf_config, "tiny", "x")
    model = GPT(config).eval()
    model.load_state_dict(from_hf(config, source.names, source.get))
    return model


TRAITS = {"norm": "rms", "mlp": "gated", "activation": "silu", "parallel_residual": False, "rotary_percentage": 1.0}


def vocabulary_file(folder, out, name="tiny"):
    """Writes a gguf file with the tokenizer of a folder and a model that is as small as can be."""
    n = Tokenizer(folder).vocab_size
    config = Config(name=name, architecture="llama", n_layer=1, n_head=1, n_embd=32, padded_vocab_size=n, **TRAITS)
    with torch.device("meta"):
        specs = {name: spec_of(x) for name, x in GPT(config).state_dict().items()}
    out.mkdir(exist_ok=True)
    return write_gguf(config, specs, lambda name: torch.zeros(specs[name].shape), folder, out, "F16")


def few_merges(folder, splitting):
    """Writes a tokenizer.json with the first merges of SmolLM2, that splits so, and a token that no merges make."""
    if not (SHARED / "tokenizers" / "smollm2").is_dir():
        pytest.skip("the tokenizer smollm2 is not here")
    saved = json.loads((SHARED / "tokenizers" / "smollm2" / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [m.split(" ") if isinstance(m, str) else m for m in saved["model"]["merges"][:3000]]
    edges = [*"!./')1aA", "\u0120", "\u010a", "\u0109"]  # what a way of splitting sets apart shows, if it would merge
    merges = [[one, other] for one in edges for other in edges if [one, other] not in merges] + merges
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = dict.fromkeys([*sorted(alphabet), *("".join(m) for m in merges), "\u0120unmergeable"])
    vocabulary = {token: i for i, token in enumerate(vocabulary)}
    backend = Backend(models.BPE(vocabulary, [tuple(m) for m in merges], ignore_merges=splitting.ignore_merges))
    backend.pre_tokenizer = steps_of(splitting)
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
