"""Every method on every kind of attention and of base weights: where it begins, what it moves, what is saved of it.

The methods' own tests say what they compute; here is what all of them promise.
"""

from dataclasses import asdict

import pytest
import torch
from conftest import ALL, VARIANTS
from lightning.fabric import Fabric
from tiny import documents_of, tiny

from lit_gpt import lora
from lit_gpt.args import AdapterArgs, FullArgs, LoRAArgs, TrainArgs
from lit_gpt.checkpoint import METHODS, Run, load_base, load_finetuned, read_run, save_run, save_trained, trained_path
from lit_gpt.convert.lit import CONFIG, WEIGHTS
from lit_gpt.data.batches import collate
from lit_gpt.files import save_state
from lit_gpt.lora.layer import LoRALinear
from lit_gpt.merging.write import write_merged
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.optimizer import make_optimizer

SHAPES = {
    "mha": "llama", "gqa": "llama-gqa", "mqa": "llama-mqa", "moe": "mixtral", "tied head": "llama-tied",
    "biases, parallel": "neox",
}  # fmt: skip
BASES = {"fp32": None, "bf16": None, "bnb.nf4": "bnb.nf4", "int8": "int8"}
"""Name -> value of --quantize."""
ARGS = {n: ("lora", LoRAArgs(lora_r=2, lora_dropout=0.1, **ALL, **more)) for n, more in VARIANTS.items()}
ARGS |= {name: (name, AdapterArgs(adapter_start_layer=1)) for name in ("adapter", "adapter_v2")}
ARGS["full"] = ("full", FullArgs())
"""Name -> key of METHODS, and arguments."""
NOT_ON_FEW_BITS = ("pissa", "all", "full")
CASES = [
    (shape, base, name)
    for shape in SHAPES
    for base in (*BASES, *(["bnb.int8"] if shape == "gqa" else []))
    for name in ARGS
    if base in ("fp32", "bf16") or name not in NOT_ON_FEW_BITS
]
IDS = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))
ROUNDING = {"fp32": 1e-5, "bf16": 0.05, "bnb.nf4": 1e-5, "int8": 0.05, "bnb.int8": 0.05}
"""In the norm of the logits: what computing in 16 bits, or rounding activations to 8, makes of the same weights."""
OTHER_EXPERT = 3
"""So many times that, where rounding can send a token to another expert."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each shape."""
    found = {}
    for shape, kind in SHAPES.items():
        found[shape] = tmp_path_factory.mktemp("base")
        model = tiny(kind, hidden_size=64, intermediate_size=64)
        save_state(model.state_dict(), found[shape] / WEIGHTS)
        model.config.to_json(found[shape] / CONFIG)
    return found


def fabric_of(base):
    return Fabric(accelerator="cpu", devices=1, precision="bf16-true" if base == "bf16" else "32-true")


def loaded(folder, base):
    """The base model, and the digest of its weights."""
    return load_base(fabric_of(base), folder, base if "int8" in base or "nf4" in base else None)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).float()


def difference(got, want):
    return ((got - want).norm() / want.norm()).item()


def values(model, trains):
    """Copies of the parameters that train, or of everything else."""
    found = {n: p for n, p in model.named_parameters() if p.requires_grad is trains}
    found |= {} if trains else dict(model.named_buffers())
    return {name: x.detach().clone() for name, x in found.items()}


def changed(model, before):
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name for name, x in before.items() if not torch.equal(x, now[name])}


@pytest.mark.parametrize(("shape", "base", "name"), CASES)
def test_a_method_begins_at_its_base_trains_what_it_has_and_is_read_back(shape, base, name, folders, tmp_path):
    torch.manual_seed(2)
    model, digest = loaded(folders[shape], base)
    method, args = ARGS[name]
    rounding = ROUNDING[base] * (OTHER_EXPERT if shape == "moe" else 1)
    start = logits(model)
    METHODS[method][0](model, args)
    exact = "lora_init" not in VARIANTS.get(name, {})  # what PiSSA takes off it puts on, rounded
    assert difference(logits(model), start) <= (0 if exact else rounding)

    trained, frozen = values(model, True), values(model, False)
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.bfloat16 if (name, base) == ("full", "bf16") else torch.float32}
    batch = collate(documents_of((40, 33, 40)))
    optimizer = make_optimizer(model, TrainArgs(learning_rate=0.01))
    for step in range(3):
        with torch.no_grad():
            loss_sum(model.eval(), batch)
        model.train().zero_grad()
        (loss_sum(model, batch) / batch.n_targets).backward()
        for n, p in model.named_parameters():
            begins = step == 0 and ("lora_A" in n or "adapter_wte" in n)  # behind a B, or a gate, of zeros
            got = p.grad is not None and bool(p.grad.any())
            assert (p.grad is not None) == p.requires_grad, n
            assert got == p.requires_grad or begins, n
        optimizer.step()
    assert changed(model, trained) == trained.keys() and not changed(model, frozen)
    want = logits(model)
    assert difference(want, start) > 0.005

    save_trained(model, trained_path(tmp_path, method))
    quantize = BASES.get(base, base)
    training = {"precision": "bf16-true" if base == "bf16" else "32-true"}
    save_run(Run(method, asdict(args), "plain", str(folders[shape]), digest, {}, training, {}, quantize), tmp_path)
    again, _ = load_finetuned(fabric_of(base), folders[shape], tmp_path)
    assert torch.equal(logits(again), want)
    if method == "lora":
        lora.merge(again)
        assert not [n for n in again.state_dict() if "lora" in n]
        assert difference(logits(again), want) < rounding
        write_merged(folders[shape], tmp_path, read_run(tmp_path), tmp_path / "merged", "trained", torch.float32)
        assert difference(logits(loaded(tmp_path / "merged", "fp32")[0]), want) < rounding


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("which", ["query", "key", "value"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_chosen_rows_move(shape, base, which, dora, folders, tmp_path):
    """Lit-GPT before #900 wrote the updates of values into rows of keys."""
    torch.manual_seed(2)
    model, _ = loaded(folders[shape], base)
    flags = {f"lora_{t}": t == which for t in ("query", "key", "value")}
    lora.inject(model, LoRAArgs(lora_r=2, lora_dora=dora, **flags))
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.5)
    layer = model.transformer.h[0].attn.qkv.eval()
    assert isinstance(layer, LoRALinear) and isinstance(model.transformer.h[0].attn.proj, type(layer.linear))
    x = torch.randn(3, model.config.n_embd, dtype=model.transformer.wte.weight.dtype)
    got, of_base = layer(x).split(model.config.qkv_sizes, 1), layer.linear(x).split(model.config.qkv_sizes, 1)
    weights, before = (w.split(model.config.qkv_sizes) for w in (layer.merged(), layer.linear.dequantize()))
    for i, name in enumerate(("query", "key", "value")):
        assert torch.equal(got[i], of_base[i]) == torch.equal(weights[i], before[i]) == (name != which), name
        assert name != which or bool((weights[i] != before[i]).any(1).all())  # all of its rows
    bias = 0 if layer.linear.bias is None else layer.linear.bias.float()
    assert difference(torch.cat(got, 1).float(), x.float() @ torch.cat(weights).T + bias) < ROUNDING[base]
