"""Tiny real checkpoints, made the way they come from the hub, and the scripts run as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
"""Tokenizers and data sets that are not part of the project; tests that use them skip where they are absent."""


def tiny_hf(kind: str, **overrides):
    """A random model of transformers with a vocabulary of 320: `llama` (MHA), `llama-gqa`, `llama-tied` or `neox`."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"bos_token_id": 264, "eos_token_id": 265}  # as in `write_tokenizer`
    if kind.startswith("neox"):
        config = GPTNeoXConfig(**sizes, intermediate_size=64, max_position_embeddings=512, **overrides)
    else:
        config = LlamaConfig(
            **sizes,
            intermediate_size=48,
            max_position_embeddings=512,
            num_key_value_heads=2 if kind == "llama-gqa" else 4,
            tie_word_embeddings=kind == "llama-tied",
            **overrides,
        )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, p in model.named_parameters():  # fresh norms and biases are 1 and 0: move them, or mistakes stay hidden
        if p.dim() == 1:
            torch.nn.init.normal_(p, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
        else:
            torch.nn.init.normal_(p, std=0.3)
    return model


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer.json with <s>, </s>, and a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), ("i", "n"), ("in", "g"), ("Ġ", "the"), ("e", "r")]
    tokens = [*alphabet, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def run(*argv: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A script of the project in a process of its own, from another folder."""
    import os

    script, *rest = map(str, argv)
    command = [sys.executable, str(ROOT / script), *rest]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})}, timeout=300
    )


def assert_one_line_error(process: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The process failed and said so in one line that has all of `parts`."""
    assert process.returncode != 0, process.stdout
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    assert len(lines) >= 1 and lines[-1].startswith("error: "), process.stderr
    assert "Traceback" not in process.stderr
    for part in parts:
        assert part in lines[-1], lines[-1]


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory) -> dict[str, Path]:
    """Folders as scripts/download.py leaves them: safetensors, config.json, tokenizer."""
    folders = {}
    for kind in ("llama", "llama-gqa", "llama-tied", "neox"):
        folder = tmp_path_factory.mktemp("hub") / f"tiny-{kind}"
        tiny_hf(kind).save_pretrained(folder)
        write_tokenizer(folder)
        folders[kind] = folder
    return folders


@pytest.fixture(scope="session")
def checkpoint(downloaded) -> Path:
    """A converted checkpoint, Llama-shaped with GQA."""
    from lit_gpt.checkpoint import CONFIG, WEIGHTS, save_state
    from lit_gpt.convert.configs import config_from_hf
    from lit_gpt.convert.names import from_hf
    from lit_gpt.convert.readers import open_source

    folder = downloaded["llama-gqa"]
    source = open_source(folder)
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    save_state(from_hf(config, source.names, source.get), folder / WEIGHTS)
    config.to_json(folder / CONFIG)
    return folder
