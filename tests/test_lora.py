"""LoRA is what peft computes, begins at the base, merges, and has the published number of parameters."""

import copy

import pytest
import torch
from conftest import ALL, ours_of, tiny_hf

from lit_gpt.args import LoRAArgs
from lit_gpt.families import config_for
from lit_gpt.layers.linear import Linear
from lit_gpt.methods import lora
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.model import GPT


def randomize(model):
    for name, p in model.named_parameters():
        if lora.trainable(name):
            torch.nn.init.normal_(p, std=0.1)


@pytest.mark.parametrize("kind", ["llama", "llama-gqa"])
@pytest.mark.parametrize("targets", [("query", "value"), ("query", "key", "value", "projection", "mlp", "head")])
def test_logits_and_gradients_are_those_of_peft(kind, targets):
    from peft import LoraConfig, get_peft_model

    theirs = tiny_hf(kind)
    ours = ours_of(theirs, kind)
    flags = {f"lora_{t}": t in targets for t in ("query", "key", "value", "projection", "mlp", "head")}
    lora.inject(ours, LoRAArgs(lora_r=4, lora_alpha=12, lora_dropout=0.0, **flags))
    randomize(ours)
    names = {"query": ["q_proj"], "key": ["k_proj"], "value": ["v_proj"], "projection": ["o_proj"], "head": ["lm_head"]}
    names["mlp"] = ["gate_proj", "up_proj", "down_proj"]
    modules = [m for t in targets for m in names[t]]
    peft = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=12, lora_dropout=0.0, target_modules=modules))
    pairs = []  # (ours, theirs) of every trained matrix
    for i, block in enumerate(ours.transformer.h):
        layer = peft.base_model.model.model.layers[i]
        qkv = [
            layer.self_attn.get_submodule(f"{c}_proj") for c, t in zip("qkv", list(flags)[:3], strict=True) if flags[t]
        ]
        wrapped = [(block.attn.qkv, qkv)]
        if flags["lora_projection"]:
            wrapped.append((block.attn.proj, [layer.self_attn.o_proj]))
        if flags["lora_mlp"]:
            wrapped += [(block.mlp.fc_1, [layer.mlp.gate_proj]), (block.mlp.fc_2, [layer.mlp.up_proj])]
            wrapped.append((block.mlp.proj, [layer.mlp.down_proj]))
        pairs += [
            pair
            for mine, others in wrapped
            for n, other in enumerate(others)
            for pair in (
                (mine.lora_A[n], other.lora_A.default.weight),
                (mine.lora_B[n], other.lora_B.default.weight),
            )
        ]
    if flags["lora_head"]:
        head = peft.base_model.model.lm_head
        pairs += [
            (ours.lm_head.lora_A[0], head.lora_A.default.weight),
            (ours.lm_head.lora_B[0], head.lora_B.default.weight),
        ]
    assert (
        len(pairs) == sum(p.requires_grad for p in peft.parameters()) == sum(p.requires_grad for p in ours.parameters())
    )
    for mine, other in pairs:
        other.data.copy_(mine.data)
    ids = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))
    got, want = ours(ids), peft(ids).logits
    size = want.abs().max().detach()
    torch.testing.assert_close(got / size, want / size, rtol=1e-5, atol=1e-5)
    got.square().mean().backward(), want.square().mean().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-tied", "neox"])
def test_nothing_changes_until_it_trains_and_merging_keeps_what_was_trained(kind):
    model = ours_of(tiny_hf(kind), kind)
    base, names = copy.deepcopy(model), set(model.state_dict())
    lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=0.5, **ALL))
    ids = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.eval()(ids), base(ids))
    randomize(model)
    want = model(ids)
    lora.merge(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(ids), want, rtol=1e-3, atol=1e-4)
    assert torch.equal(model.transformer.wte.weight, base.transformer.wte.weight)  # a tied head leaves the embeddings
    assert model.config.tie_embeddings is False  # which the merged head is no longer


@pytest.mark.parametrize("variant", [{}, {"lora_init": "pissa"}, {"lora_dora": True}])
@pytest.mark.parametrize("blocks", [None, [(0, 8), (12, 16)]])
def test_gradients_under_dropout_are_those_of_the_mask_that_was_drawn(variant, blocks):
    """By differences: the output is linear in x, A and B each, so that those over any distance are exact; with
    magnitudes, which are divided by the weight's norm, in x and the magnitudes."""
    torch.manual_seed(0)
    layer = LoRALinear(Linear(24, 16), LoRAArgs(lora_r=4, lora_dropout=0.5, **variant), blocks).train()
    layer.linear.requires_grad_(False)
    for B in layer.lora_B:
        torch.nn.init.normal_(B.data)
    x, dy = torch.randn(7, 24, requires_grad=True), torch.randn(7, 16)

    def product():
        torch.manual_seed(5)  # the same mask each time
        return (layer(x) * dy).sum()

    for tensor in (x, *(layer.lora_magnitude or [*layer.lora_A, *layer.lora_B])):
        (gradient,) = torch.autograd.grad(product(), tensor)
        along, values = torch.randn_like(tensor), []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * along
                values.append(product().item())
                tensor -= sign * along
        assert (gradient * along).sum().item() == pytest.approx((values[0] - values[1]) / 2, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("variant", [{}, {"lora_dora": True}])
def test_the_mean_over_all_masks_is_the_layer_without_dropout(p, variant):
    torch.manual_seed(0)
    layer = LoRALinear(Linear(24, 16), LoRAArgs(lora_r=4, lora_dropout=p, **variant))
    for parameter in (*layer.lora_A, *layer.lora_B):
        torch.nn.init.normal_(parameter.data)
    x = torch.randn(3, 24)
    with torch.no_grad():
        wanted, drawn = layer.eval()(x), layer.train()(x.repeat(20_000, 1)).unflatten(0, (20_000, 3))
    error = drawn.std(0) / 20_000**0.5
    assert ((drawn.mean(0) - wanted).abs() < 5 * error).all() and (error > 0).all()


def test_a_16_bit_base_has_fp32_updates():
    model = ours_of(tiny_hf("llama-gqa"), "llama-gqa").to(torch.bfloat16)
    lora.inject(model, LoRAArgs(**ALL))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    logits = model(torch.randint(0, 320, (1, 8)))
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert model.transformer.h[0].attn.qkv.lora_B[0].grad.dtype == torch.float32


COUNTS = {  # (query and value, everything), r 8, as the original counted them
    "Llama-2-7b-hf": (4_194_304, 20_277_248),
    "Llama-2-70b-hf": (16_384_000, 103_868_416),
    "open_llama_7b": (4_194_304, 20_277_248),
    "pythia-1b": (1_048_576, 5_137_408),
    "stablelm-base-alpha-3b": (2_097_152, 9_875_456),
    "RedPajama-INCITE-7B-Base": (4_194_304, 19_310_592),
}


@pytest.mark.parametrize("name", COUNTS)
def test_trainable_counts_are_the_published_ones(name):
    for args, count in zip((LoRAArgs(), LoRAArgs(**ALL)), COUNTS[name], strict=True):
        with torch.device("meta"):
            model = GPT(config_for(name))
            lora.inject(model, args)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
