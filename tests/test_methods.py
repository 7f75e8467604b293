"""Every method on every kind of attention and of base weights: where it begins, what it moves, what is saved of it.

The methods' own tests say what they compute; here is what all of them promise. Each method meets each kind of attention
and each of weights, and these each other; not each combination of the three has a case.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from conftest import ALL, VARIANTS
from pairs import in_pairs
from tiny import documents_of, tiny

from lit_gpt.args import AdapterArgs, FullArgs, LoRAArgs, TrainArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, load_finetuned, read_run, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.data.batches import collate
from lit_gpt.files import save_state
from lit_gpt.lightning import Fabric
from lit_gpt.merge.write import write_merged
from lit_gpt.methods import METHODS, lora
from lit_gpt.methods.lora.layer import LoRALinear
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


def _is_offered(shape, base, name):
    """Whether the method works on weights of few bits; those of bnb.int8 are tried with one kind of attention."""
    return (base in ("fp32", "bf16") or name not in NOT_ON_FEW_BITS) and (base != "bnb.int8" or shape == "gqa")


CASES = in_pairs(list(SHAPES), [*BASES, "bnb.int8"], list(ARGS), allowed=_is_offered)
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


@dataclass(frozen=True)
class Seen:
    """What was seen of a method that was put into a base, trained three steps, and saved."""

    shape: str
    base: str
    name: str
    out_dir: Path
    start: torch.Tensor
    """Logits of the base."""
    begun: torch.Tensor
    """With the method in it."""
    end: torch.Tensor
    """After the steps."""
    dtypes: set[torch.dtype]
    """Of what trains."""
    gradients: list[dict[str, tuple[bool, bool, bool]]]
    """Of each step, by parameter: whether it trains, has a gradient, and one that is not zero."""
    moved: set[str]
    trains: set[str]
    """Names of what is another than before, and of what was to be."""

    @property
    def method(self):
        return ARGS[self.name][0]

    @property
    def rounding(self):
        return ROUNDING[self.base] * (OTHER_EXPERT if self.shape == "moe" else 1)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def seen(request, folders, tmp_path_factory):
    """A case, trained once for all that is promised of it."""
    shape, base, name = request.param
    torch.manual_seed(2)
    model, digest = loaded(folders[shape], base)
    method, args = ARGS[name]
    start = logits(model)
    METHODS[method].inject(model, args)
    begun = logits(model)
    trained, frozen = values(model, True), values(model, False)
    batch, found = collate(documents_of((40, 33, 40))), []
    optimizer = make_optimizer(model, TrainArgs(learning_rate=0.01))
    for _ in range(3):
        with torch.no_grad():
            loss_sum(model.eval(), batch)
        model.train().zero_grad()
        (loss_sum(model, batch) / batch.n_targets).backward()
        parameters = dict(model.named_parameters()).items()
        found.append({n: (p.requires_grad, p.grad is not None, p.grad is not None and bool(p.grad.any()))
                      for n, p in parameters})  # fmt: skip
        optimizer.step()
    out_dir = tmp_path_factory.mktemp("run")
    save_trained(model, trained_path(out_dir, method))
    training = {"precision": "bf16-true" if base == "bf16" else "32-true"}
    quantize = BASES.get(base, base)
    save_run(Run(method, asdict(args), "plain", str(folders[shape]), digest, {}, training, {}, quantize), out_dir)
    return Seen(
        *(shape, base, name, out_dir, start, begun, logits(model)),
        dtypes={x.dtype for x in trained.values()},
        gradients=found,
        moved=changed(model, trained) | changed(model, frozen),
        trains=set(trained),
    )


def test_a_method_begins_at_its_base(seen):
    """To the last bit, but for PiSSA: what it takes off the weight it puts on again, rounded."""
    exact = "lora_init" not in VARIANTS.get(seen.name, {})
    assert difference(seen.begun, seen.start) <= (0 if exact else seen.rounding)


def test_what_trains_is_in_fp32_unless_it_is_the_base_itself(seen):
    assert seen.dtypes == {torch.bfloat16 if (seen.name, seen.base) == ("full", "bf16") else torch.float32}


def test_gradients_go_to_what_trains_and_nowhere_else(seen):
    for step, parameters in enumerate(seen.gradients):
        for n, (trains, there, not_zero) in parameters.items():
            begins = step == 0 and ("lora_A" in n or "adapter_wte" in n)  # behind a B, or a gate, of zeros
            assert there == trains and (not_zero == trains or begins), n


def test_all_that_trains_moves_and_nothing_else_and_so_do_the_logits(seen):
    assert seen.moved == seen.trains
    assert difference(seen.end, seen.start) > 0.005


def test_what_a_run_has_saved_is_what_it_ended_with(seen, folders):
    again, _ = load_finetuned(fabric_of(seen.base), folders[seen.shape], seen.out_dir)
    assert torch.equal(logits(again), seen.end)


def test_merged_in_memory_or_in_a_file_lora_answers_as_the_run(seen, folders, tmp_path):
    if seen.method != "lora":
        pytest.skip("only LoRA is merged")
    again, _ = load_finetuned(fabric_of(seen.base), folders[seen.shape], seen.out_dir)
    lora.merge(again)
    assert not [n for n in again.state_dict() if "lora" in n]
    assert difference(logits(again), seen.end) < seen.rounding
    run = read_run(seen.out_dir)
    write_merged(folders[seen.shape], seen.out_dir, run, tmp_path / "merged", "trained", torch.float32)
    assert difference(logits(loaded(tmp_path / "merged", "fp32")[0]), seen.end) < seen.rounding


@pytest.mark.parametrize(
    "shape, base, which, dora", in_pairs(list(SHAPES), list(BASES), ["query", "key", "value"], [False, True])
)
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
