"""Models with quantized weights: how they are loaded, finetuned and used again, and what they refuse."""

import json

import pytest
import torch
from conftest import assert_one_line_error, ours_of, tiny_hf
from peft_models import as_peft, close, move, state_of
from script_processes import run
from torch.profiler import ProfilerActivity, profile

from lit_gpt.args import LoRAArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, load_finetuned, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.config import Config
from lit_gpt.convert.peft import to_peft
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.files import save_state
from lit_gpt.layers.linear import Linear, LinearLayer
from lit_gpt.layers.quantize import QUANTIZATIONS, quantizable, quantized
from lit_gpt.layers.quantize.frozen import QuantizedLinear
from lit_gpt.methods import lora
from lit_gpt.model import GPT

IDS = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))
ROWS = [{"instruction": f"say {n}", "input": "", "output": "ab " * n} for n in range(1, 9)]


SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 64, "vocab_size": 320, "padded_vocab_size": 320}
LLAMA = {**SIZES, "n_query_groups": 2, "intermediate_size": 96, "mlp": "gated", "activation": "silu", "norm": "rms"}
CONFIGS = {
    "neox": {**SIZES, "qkv_bias": True, "proj_bias": True, "mlp_bias": True},
    "llama": LLAMA,
    "tied": {**LLAMA, "tie_embeddings": True},
    "mixture": {**LLAMA, "mlp": "moe", "n_expert": 4, "n_expert_per_token": 2},
}


def replace_module(model, path, module):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def write_checkpoint(folder, dtype=torch.float32, **config):
    torch.manual_seed(0)
    model = GPT(Config(**config)).to(dtype)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=1.0 if "gate" in name else 0.08)
    save_state(model.state_dict(), folder / WEIGHTS)
    model.config.to_json(folder / CONFIG)
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_linear_layers_of_the_blocks_are_quantized_and_nothing_else(kind, tmp_path):
    write_checkpoint(tmp_path, **CONFIGS[kind])
    fabric = make_fabric("32-true")
    plain, digest = load_base(fabric, tmp_path)
    model, same = load_base(fabric, tmp_path, "int8")
    assert digest == same
    for name, layer in plain.named_modules():
        other = model.get_submodule(name)
        if isinstance(layer, LinearLayer) and name.startswith("transformer.h.") and not name.endswith(".mlp.gate"):
            assert torch.equal(other.weight, quantized(layer, "int8").weight), name
            assert layer.bias is None or torch.equal(other.bias, layer.bias)
        else:
            assert type(other) is type(layer), name
            for leaf, p in layer.named_parameters(recurse=False):
                assert torch.equal(p, other.get_parameter(leaf)), name
    assert (model.lm_head.weight is model.transformer.wte.weight) == model.config.tie_embeddings
    ids = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want, got = plain(ids), model(ids)
    assert 0 < (got - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("kind", [None, *QUANTIZATIONS])
def test_loading_takes_no_more_than_the_model_and_one_layer(kind, tmp_path):
    wide = {"n_layer": 16, "n_embd": 192, "n_query_groups": 4, "intermediate_size": 512}
    full = write_checkpoint(tmp_path, torch.bfloat16, **LLAMA | wide)
    whole, layer = (f(p.nbytes for p in full.parameters()) for f in (sum, max))
    if kind is not None:
        quantized(Linear(8, 8), kind)  # imports
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model, _ = load_base(make_fabric("bf16-true"), tmp_path, kind)
    live = [0]
    for event in sorted(profiler.events(), key=lambda event: event.time_range.end):
        live.append(live[-1] + event.self_cpu_memory_usage)
    mapped = (tmp_path / WEIGHTS).stat().st_size  # is counted, too
    in_fp32_and_more = 20 if kind else 0.5  # what rounding one layer takes on a CPU, in its 16-bit sizes
    assert max(live) - mapped < live[-1] + in_fp32_and_more * layer < live[-1] + whole * 2 / 3
    assert live[-1] < whole * {None: 1.01, "4": 0.36}.get(kind and kind[6:7], 0.56)
    assert model.rope.theta.dtype == torch.float32


def trained_run(folder, base, kind):
    """A run on a quantized base, with random updates."""
    torch.manual_seed(0)
    fabric = make_fabric("32-true")
    model, digest = load_base(fabric, base, kind)
    args = LoRAArgs(lora_mlp=True, lora_projection=True)
    lora.inject(model, args)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    folder.mkdir()
    save_trained(model, trained_path(folder, "lora"))
    save_run(Run("lora", vars(args), "plain", str(base), digest, {}, {}, {}, quantize=kind), folder)
    return model.eval()


def test_a_run_knows_what_its_base_was_kept_in_and_can_be_told_otherwise(checkpoint, tmp_path):
    fabric, ids = make_fabric("32-true"), torch.arange(20).unsqueeze(0)
    model = trained_run(tmp_path / "run", checkpoint, "bnb.nf4")
    with torch.no_grad():
        want, found = model(ids), {}
        for quantize, used in ((None, "bnb.nf4"), ("int8", "int8"), ("none", None)):
            again, run_of = load_finetuned(fabric, checkpoint, tmp_path / "run", quantize)
            layer = again.transformer.h[0].mlp.fc_1.linear
            assert run_of.quantize == used and (type(layer) is Linear) == (used is None)
            found[used] = again.eval()(ids)
            assert torch.equal(found[used], want) == (used == "bnb.nf4")
        assert 0 < (found["int8"] - found[None]).norm() < 0.25 * found[None].norm()
    record = tmp_path / "run" / "finetuned.json"
    before = json.loads(record.read_text())
    record.write_text(json.dumps({**before, "quantize": "int3"}))
    with pytest.raises(UserError, match=r"'int3'; known are bnb.nf4,"):
        load_finetuned(fabric, checkpoint, tmp_path / "run")
    del before["quantize"]  # as runs before there was quantization
    record.write_text(json.dumps(before))
    assert load_finetuned(fabric, checkpoint, tmp_path / "run")[1].quantize is None


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_lora_trains_on_a_quantized_base_as_on_the_same_weights_in_full(kind, tmp_path):
    """The gradients are those of a plain model that has the dequantized weights."""
    fabric, ids = make_fabric("32-true"), torch.randint(0, 320, (2, 24), generator=torch.Generator().manual_seed(1))
    gradients = []
    write_checkpoint(tmp_path, **LLAMA)
    model, _ = load_base(fabric, tmp_path, kind)
    plain, _ = load_base(fabric, tmp_path)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, QuantizedLinear):
                plain.get_submodule(name).weight.copy_(layer.dequantize())
    for m in (model, plain):
        lora.inject(m, LoRAArgs(lora_dropout=0.0, lora_mlp=True, lora_projection=True, lora_key=True))
        torch.manual_seed(2)
        trained = [p for p in m.parameters() if p.requires_grad]
        for p in trained:
            torch.nn.init.normal_(p, std=0.05)
        torch.nn.functional.cross_entropy(m(ids).flatten(0, 1), ids.flatten()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trained]))
        assert all(p.grad is None for p in m.parameters() if not p.requires_grad)
    got, want = gradients
    allowed = 0.09 if kind == "fp8" else 0.02 if "int8" in kind else 1e-4
    assert (got - want).norm() < allowed * want.norm()


@pytest.mark.parametrize("variant", [{}, {"lora_scaling": "rslora"}, {"lora_dora": True}])
@pytest.mark.parametrize("kind", ["llama-gqa", "llama-biases"])
def test_lora_on_nf4_is_that_of_peft_on_the_same_weights_in_bitsandbytes(kind, variant):
    """transformers quantizes on a GPU only, but bitsandbytes' layers can take the place of its own."""
    import bitsandbytes as bnb

    theirs = tiny_hf(kind, hidden_size=64, intermediate_size=128)
    model = ours_of(theirs, kind)
    for path in quantizable(model):
        replace_module(model, path, quantized(model.get_submodule(path), "bnb.nf4"))
    codes = {}
    for path, linear in list(theirs.model.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            layer = bnb.nn.Linear4bit(
                linear.in_features, linear.out_features, linear.bias is not None, torch.float32, False, "nf4"
            )
            layer.load_state_dict(linear.state_dict())
            replace_module(theirs.model, path, layer.to("cpu"))  # quantizes
            codes[path] = layer.weight.data.flatten()
    for i, block in enumerate(model.transformer.h):
        qkv = torch.cat([codes[f"layers.{i}.self_attn.{x}_proj"] for x in "qkv"])
        assert torch.equal(block.attn.qkv.weight.flatten(), qkv)
        assert torch.equal(block.mlp.proj.weight.flatten(), codes[f"layers.{i}.mlp.down_proj"])

    theirs.is_loaded_in_4bit = True
    args = LoRAArgs(
        lora_r=4, lora_alpha=12, lora_dropout=0.0, lora_key=True, lora_projection=True, lora_mlp=True, **variant
    )
    lora.inject(model, args)
    move(model)
    peft = as_peft(theirs, model, args)
    assert sum(type(m).__name__ == "Linear4bit" and "peft" in type(m).__module__ for m in peft.modules()) == 14
    close(model(IDS), peft(IDS).logits)
    model(IDS).square().mean().backward(), peft(IDS).logits.square().mean().backward()
    gradients = {n: p.grad for n, p in peft.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        p.data = p.grad if p.requires_grad else p.data
    want = to_peft(model.config, args, state_of(model))[0]  # under their names
    assert len(want) == len(gradients)
    for name, g in want.items():
        close(
            g,
            gradients[name.replace(".weight", ".default.weight")]
            if ".weight" in name
            else gradients[f"{name}.default.weight"],
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory, checkpoint):
    """A folder with prepared data beside a checkpoint."""
    place = tmp_path_factory.mktemp("quantized")
    (place / "tiny").symlink_to(checkpoint)
    (place / "rows.json").write_text(json.dumps(ROWS))
    p = run("scripts/prepare_alpaca.py", "--checkpoint_dir", "tiny", "--data_file", "rows.json", "--destination_path",
            "data", "--prompt_style", "plain", "--test_split_fraction", 0.25, cwd=place)  # fmt: skip
    assert p.returncode == 0, p.stderr
    return place


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["bnb.nf4", "int8"])
def test_the_road_with_a_quantized_base(place, kind):
    base, out = ("--checkpoint_dir", "tiny"), ("--out_dir", f"out/{kind}")
    ask = ("--prompt", "say 3", "--temperature", 0, "--max_new_tokens", 8)
    p = run("generate/base.py", *base, *ask, "--quantize", kind, cwd=place)
    assert p.returncode == 0 and p.stdout.startswith("say 3"), p.stderr
    train = ("--batch_size", 4, "--max_steps", 3, "--learning_rate", 0.01, "--quantize", kind)
    p = run("finetune/lora.py", *base, "--data_dir", "data", *out, *train, cwd=place)
    assert p.returncode == 0 and "val loss" in p.stdout, p.stderr
    assert "Number of non trainable parameters: 36,000" in p.stdout, "counts what weights are packed in"
    assert json.loads((place / "out" / kind / "finetuned.json").read_text())["quantize"] == kind
    told, untold, other = (
        run("generate/lora.py", *base, *ask, "--finetuned_path", f"out/{kind}", *flags, cwd=place)
        for flags in (("--quantize", kind), (), ("--quantize", "none"))
    )
    assert told.returncode == untold.returncode == other.returncode == 0, untold.stderr
    assert told.stdout == untold.stdout


@pytest.mark.parametrize("script", ["finetune/lora.py", "generate/base.py"])
def test_what_does_not_go_together_is_said_in_one_line(place, script):
    data = ("--data_dir", "data") if "finetune" in script else ()
    p = run(script, "--checkpoint_dir", "tiny", *data, "--quantize", "int8", "--precision", "bf16-mixed", cwd=place)
    assert_one_line_error(p, "--quantize int8", "--precision bf16-mixed", "--precision bf16-true")
    assert_one_line_error(run(script, "--quantize", "nf5", cwd=place), "--quantize", "nf5", "bnb.nf4")
