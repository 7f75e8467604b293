"""LoRA's adapters in llama.cpp: what it computes with ours is what our model computes with the run."""

from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from conftest import ROOT
from with_llama_cpp import IDS, LlamaCpp, checkpoint, write

from lit_gpt.args import LoRAArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.base import digest, sample
from lit_gpt.checkpoints.runs import Run, load_finetuned, save_run
from lit_gpt.checkpoints.trained import trained_path
from lit_gpt.convert.gguf import writing
from lit_gpt.convert.gguf.adapter import adapter_tensors, write_adapter
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.files import save_state
from lit_gpt.methods import METHODS, lora
from lit_gpt.model import GPT

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

EVERY = {f"lora_{name}": True for name in ("query", "key", "value", "projection", "mlp", "head")}
SOME = {"lora_query": True, "lora_value": True}


def trained(config, state, args):
    """Our model with updates that matter, and the weights of a run that has them."""
    model = GPT(config).eval()
    model.load_state_dict(state)
    lora.inject(model, args)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p.add_(torch.randn(p.shape, generator=generator) * (0.3 if "lora_B" in name else 0.1))
    return model, {n: x.detach() for n, x in model.state_dict().items() if ".lora_" in n}


@pytest.mark.parametrize(
    "kind, flags",
    [
        ("llama-gqa", EVERY),
        ("llama-gqa", SOME | {"lora_scaling": "rslora"}),
        ("llama-gqa", SOME | {"lora_init": "pissa"}),
        ("neox", EVERY | {"lora_scaling": "rslora"}),
        ("neox", SOME),
        ("falcon-40b", SOME | {"lora_projection": True, "lora_scaling": "rslora"}),
        ("phi3", EVERY | {"lora_scaling": "rslora"}),
        ("phi", EVERY),
        ("qwen3", SOME | {"lora_mlp": True, "lora_scaling": "rslora"}),
        ("gemma2", SOME | {"lora_mlp": True}),
        ("olmo2", EVERY),
        ("smollm3", EVERY | {"lora_head": False}),
        ("stablelm", EVERY),
        ("mixtral", EVERY | {"lora_scaling": "rslora"}),
        ("qwen3-moe", SOME | {"lora_mlp": True}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(k.removeprefix("lora_") for k in x),
)
@torch.no_grad()
def test_llama_cpp_computes_with_our_adapter_what_we_do_with_the_run(kind, flags, tmp_path, monkeypatch):
    monkeypatch.setitem(writing.FILE_TYPES, "F32", 0)
    _, config, state = checkpoint(kind, tmp_path / "there")
    args = LoRAArgs(**{"lora_r": 3, "lora_alpha": 7, "lora_dropout": 0.0} | flags)
    path = write(config, state, tmp_path / "there", tmp_path / "out", "F32")
    model, run = trained(config, state, args)
    ids = IDS[:, :7]
    want = model.eval()(ids)[0, -1].log_softmax(-1)
    write_adapter(config, args, adapter_tensors(config, args, run), tmp_path / "lora.gguf")
    got = LlamaCpp(path, lora=tmp_path / "lora.gguf").log_probabilities(ids[0].tolist())
    tolerance = 2e-2 if config.activation.startswith("gelu") else 2e-3
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
    for layer in model.modules():
        if isinstance(layer, lora.LoRALinear):
            layer.scaling = 0.0
    assert (model(ids)[0, -1].log_softmax(-1) - want).abs().max() > 10 * tolerance


@pytest.mark.parametrize(
    "kind, flags, more, message",
    [
        ("llama", {"lora_dora": True}, {}, r"no magnitudes.*DoRA.*merge_lora\.py"),
        ("llama-tied", {"lora_head": True}, {}, r"one tensor for tiny's embeddings and head.*merge_lora\.py"),
        ("llama", {}, {"transformer.ln_f.weight": torch.ones(32)}, r"has transformer\.ln_f\.weight of its own.*merge_"),
        ("qwen3", {"lora_query": True}, {"lm_head.weight": torch.ones(320, 32)}, r"has lm_head\.weight of its own"),
    ],
)
def test_what_an_adapter_of_llama_cpp_cannot_have_is_named(kind, flags, more, message, tmp_path):
    _, config, state = checkpoint(kind, tmp_path)
    args = LoRAArgs(**flags)
    _, run = trained(config, state, args)
    with pytest.raises(UserError, match=message):
        adapter_tensors(config, args, run | more)


def script(name):
    """The `main` of a script."""
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@torch.no_grad()
def test_the_script_makes_an_adapter_of_a_run(tmp_path, monkeypatch, capsys):
    """A tied head that llama.cpp wants to have apart is adapted there as here."""
    monkeypatch.setitem(writing.FILE_TYPES, "F32", 0)
    base, run_dir = tmp_path / "tiny", tmp_path / "run"
    _, config, state = checkpoint("olmo2", base, tie_word_embeddings=True)
    save_state(state, base / WEIGHTS)
    config.to_json(base / CONFIG)
    args = METHODS["lora"].args(**EVERY)
    _, run = trained(config, state, args)
    run_dir.mkdir()
    save_state(run, trained_path(run_dir, "lora"))
    base_digest = digest({name: sample(name, x) for name, x in state.items()})
    save_run(Run("lora", asdict(args), "alpaca", str(base), base_digest, {}, {}, {}), run_dir)
    folder = tmp_path / "my adapter"
    with torch.enable_grad():  # as a script starts
        script("convert_peft_adapter")("gguf", base, folder, run_dir)
    assert f"--lora '{folder / 'tiny-lora.gguf'}'" in capsys.readouterr().out
    path = write(config, state, base, tmp_path / "out", "F32")
    model, _ = load_finetuned(make_fabric("32-true"), base, run_dir)
    got = LlamaCpp(path, lora=folder / "tiny-lora.gguf").log_probabilities(IDS[0, :7].tolist())
    torch.testing.assert_close(got, model.eval()(IDS[:, :7])[0, -1].log_softmax(-1), rtol=0, atol=2e-3)
    with pytest.raises(UserError, match=r"adapter.*--overwrite"):
        script("convert_peft_adapter")("gguf", base, folder, run_dir)
