"""rsLoRA, PiSSA, DoRA and LoRA+ are what peft and a loop written by hand compute, and survive saving and merging."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ALL, ROOT, VARIANTS, ours_of, tiny_hf
from peft_models import as_peft, close, move, state_of, trainable

from lit_gpt import cli
from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, load_finetuned, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.convert.peft import to_peft
from lit_gpt.data.batches import Order, steps
from lit_gpt.data.packing import Packing
from lit_gpt.data.store import stack
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.layers.linear import Linear
from lit_gpt.methods import lora
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.methods.lora.principal import principal
from lit_gpt.training.loop import fit
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.session import Session

IDS = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-biases", "llama-tied", "neox"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_peft(kind, variant):
    theirs = tiny_hf(kind)
    args = LoRAArgs(lora_r=4, lora_alpha=12, lora_dropout=0.0, **ALL, **VARIANTS[variant])
    model = ours_of(theirs, kind)
    lora.inject(model, args)
    move(model)
    with torch.no_grad():
        close(model(IDS), as_peft(theirs, model, args).eval()(IDS).logits)


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-biases"])
@pytest.mark.parametrize("variant", ["rslora", "dora", "pissa"])
def test_gradients_are_those_of_peft(kind, variant):
    """PiSSA against peft's own, whose base lacks what its adapter begins with."""
    from peft import LoraConfig, get_peft_model

    theirs = tiny_hf(kind)
    more = VARIANTS[variant]
    args = LoRAArgs(lora_r=4, lora_alpha=12, lora_dropout=0.0, **ALL | {"lora_head": False}, **more)
    model = ours_of(theirs, kind)
    lora.inject(model, args)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {"use_rslora": variant == "rslora", "use_dora": variant == "dora"}
    init = "pissa" if variant == "pissa" else True
    peft = get_peft_model(
        theirs, LoraConfig(r=4, lora_alpha=12, target_modules=targets, init_lora_weights=init, **config)
    )
    pairs = []
    for block, layer in zip(model.transformer.h, peft.base_model.model.model.layers, strict=True):
        a, m = layer.self_attn, layer.mlp
        for mine, others in (
            (block.attn.qkv, (a.q_proj, a.k_proj, a.v_proj)),
            (block.attn.proj, (a.o_proj,)),
            (block.mlp.fc_1, (m.gate_proj,)),
            (block.mlp.fc_2, (m.up_proj,)),
            (block.mlp.proj, (m.down_proj,)),
        ):
            for i, other in enumerate(others):
                pair = [(mine.lora_A[i], other.lora_A.default.weight), (mine.lora_B[i], other.lora_B.default.weight)]
                if variant == "pissa":  # singular vectors may have the other sign
                    (A, A_theirs), (B, B_theirs) = pair
                    close(B @ A, B_theirs @ A_theirs)
                    signs = (A * A_theirs).sum(1).sign()
                    A_theirs.data *= signs[:, None]
                    B_theirs.data *= signs
                    close(A, A_theirs, 1e-4)
                if variant == "dora":
                    pair.append((mine.lora_magnitude[i], other.lora_magnitude_vector.default.weight))
                    close(*pair[-1])
                pairs += pair
    move(model)
    for mine, other in pairs:
        other.data.copy_(mine.data)
    assert len(pairs) == len(trainable(model))
    got, want = model(IDS), peft(IDS).logits
    close(got, want)
    got.square().mean().backward(), want.square().mean().backward()
    for mine, other in pairs:
        close(mine.grad, other.grad, 1e-4 if variant == "pissa" else 1e-5)  # their base is rounded


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_the_formula(variant):
    """What autograd makes of y = m / n (W x + s (B A - B0 A0) x), n a constant."""
    torch.manual_seed(0)
    linear = Linear(24, 20)
    torch.nn.init.normal_(linear.bias)
    layer = LoRALinear(linear, LoRAArgs(lora_r=3, **VARIANTS[variant]), [(0, 8), (12, 20)]).eval()
    for p in linear.parameters():
        p.requires_grad = False
    move(layer, 0.3)
    x = torch.randn(2, 5, 24, requires_grad=True)
    y = layer(x)
    weight = linear.weight.detach()
    rows = [weight[0:8], weight[8:12], weight[12:20]]
    starts = (0, 0) if layer.lora_A_start is None else (layer.lora_A_start.split(3), layer.lora_B_start.split(8))
    for i, part in ((0, 0), (1, 2)):
        start = 0 if starts == (0, 0) else starts[1][i] @ starts[0][i]
        v = rows[part] + layer.scaling * (layer.lora_B[i] @ layer.lora_A[i] - start)
        if variant in ("dora", "all"):
            v = (layer.lora_magnitude[i] / v.norm(dim=1).detach()).unsqueeze(1) * v
        rows[part] = v
    want = F.linear(x, torch.cat(rows), linear.bias)
    close(y, want)
    dy = torch.randn_like(y)
    wrt = [x, *trainable(layer).values()]
    for got, expected in zip(torch.autograd.grad(y, wrt, dy), torch.autograd.grad(want, wrt, dy), strict=True):
        close(got, expected)


def test_training_is_that_of_peft_with_steps_written_out_by_hand(tmp_path):
    """Five steps; the second matrices learn four times as fast (LoRA+)."""
    kind, ratio = "llama-gqa", 4.0
    rng = np.random.default_rng(0)
    data = stack([(ids := rng.integers(0, 320, n).tolist(), ids) for n in rng.integers(4, 20, 20)])
    theirs = tiny_hf(kind)
    model = ours_of(theirs, kind)
    args = LoRAArgs(lora_r=4, lora_alpha=8, lora_dropout=0.0, lora_plus_ratio=ratio, **ALL | {"lora_head": False})
    lora.inject(model, args)
    peft = as_peft(theirs, model, args).train()
    train = TrainArgs(learning_rate=0.003, batch_size=4, max_steps=5, lr_schedule="linear", weight_decay=0.02)

    matrices = [[p for n, p in peft.named_parameters() if f".lora_{x}." in n] for x in "AB"]
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for group in matrices for p in group}
    for t, batches in enumerate(steps(data, Order(len(data), 20, 1), 4, Packing(512)), 1):
        (batch,) = batches
        parts = (x.split(batch.documents.lengths) for x in (batch.ids, batch.targets))  # each token predicts one
        losses = [F.cross_entropy(peft(x[None]).logits[0], y, reduction="sum") for x, y in zip(*parts, strict=True)]
        (sum(losses) / batch.n_targets).backward()
        norm = torch.stack([p.grad.norm() for p in moments]).norm()
        for factor, group in zip((1.0, ratio), matrices, strict=True):
            lr = 0.003 * (1 - (t - 1) / 5) * factor
            for p in group:
                g = p.grad * (1.0 / (norm + 1e-6)).clamp(max=1)
                m, v = moments[p]
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).add_(g * g, alpha=0.001)
                p.data.mul_(1 - lr * 0.02)
                p.data.sub_(lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
                p.grad = None

    class Silent:
        def __getattr__(self, name):
            return lambda *a, **k: {}

    session = Session(CheckpointStore(tmp_path, "lora"), Silent())
    fit(make_fabric("32-true"), model, data, data, session, train, ValidationArgs(), seed=1)
    want = {n: x for n, x in peft.state_dict().items() if ".lora_" in n}
    got = to_peft(model.config, args, state_of(model))[0]
    assert len(got) == len(want)
    for name, x in got.items():
        close(x, want[name.replace(".weight", ".default.weight")], 1e-4)


def test_pissa_of_large_weights_takes_the_principal_part():
    torch.manual_seed(0)
    weight = torch.randn(300, 200) @ torch.diag(0.93 ** torch.arange(200.0))
    U, S, Vh = principal(weight, 4)
    U2, S2, Vh2 = torch.linalg.svd(weight, full_matrices=False)
    close(U @ S.diag() @ Vh, U2[:, :4] @ S2[:4].diag() @ Vh2[:4])


def test_pissa_of_fewer_channels_than_the_rank_is_all_of_them():
    torch.manual_seed(0)
    layer = LoRALinear(Linear(16, 12), LoRAArgs(lora_r=6, lora_init="pissa"), [(4, 8)])
    close(layer.scaling * layer.lora_B[0] @ layer.lora_A[0], layer.linear.weight[4:8])


def test_a_run_of_pissa_is_loaded_without_a_search_for_its_start(checkpoint, tmp_path, monkeypatch):
    """What it began with is saved: it depends on no SVD, and 8-bit weights can take the place of the base's."""
    model, digest = load_base(make_fabric("32-true"), checkpoint)
    args = LoRAArgs(lora_r=4, lora_init="pissa", **ALL)
    lora.inject(model, args)
    move(model)
    save_trained(model, trained_path(tmp_path, "lora"))
    save_run(Run("lora", vars(args), "plain", str(checkpoint), digest, {}, {}, {}), tmp_path)
    monkeypatch.setattr("lit_gpt.methods.lora.layer.principal", None)
    with torch.no_grad():
        want = model.eval()(IDS)
        assert torch.equal(load_finetuned(make_fabric("32-true"), checkpoint, tmp_path)[0].eval()(IDS), want)
        in_8_bits, _ = load_finetuned(make_fabric("32-true"), checkpoint, tmp_path, "int8")
        assert 0 < (in_8_bits.eval()(IDS) - want).norm() < 0.1 * want.norm()


def test_pissa_of_quantized_weights_is_refused(checkpoint):
    model, _ = load_base(make_fabric("32-true"), checkpoint, "int8")
    with pytest.raises(UserError, match="--lora_init pissa"):
        lora.inject(model, LoRAArgs(lora_init="pissa"))


def test_rows_of_zeros_stay_zeros():
    linear = Linear(8, 4)
    with torch.no_grad():
        linear.weight[1] = 0
    layer = LoRALinear(linear, LoRAArgs(lora_r=2, lora_dora=True)).eval()
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in (x, *layer.lora_A, *layer.lora_B, *layer.lora_magnitude))
    assert torch.equal(layer(x)[:, 1], linear.bias[1].expand(3)) and layer.merged()[1].abs().sum() == 0


def test_the_recipe_is_what_the_script_takes():
    import runpy

    main = runpy.run_path(str(ROOT / "finetune" / "lora.py"))["main"]
    recompute = ROOT / "finetune" / "recipes" / "lora_all_linear.yaml"
    values = cli.parse(main, ["--config", str(recompute), "--lora_alpha", "32"])
    args, train = values["lora"], values["train"]
    assert (args.lora_r, args.lora_alpha, args.lora_scaling) == (32, 32, "rslora")
    assert {flag for flag in ALL if not getattr(args, flag)} == {"lora_per_layer", "lora_head"}
    assert (train.learning_rate, train.max_norm, train.batch_size) == (2e-4, 1.0, 16)


@pytest.mark.parametrize("flag", ["lora_alpha", "lora_plus_ratio"])
def test_what_would_train_nothing_is_refused(flag):
    with pytest.raises(UserError, match=f"--{flag} 0"):
        LoRAArgs(**{flag: 0})
