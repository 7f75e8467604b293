"""Decoding on a CPU by packed weights and compiled blocks gives what the plain model gives."""

from contextlib import nullcontext

import pytest
import torch
from conftest import ALL, write_tokenizer
from gradient_steps import gradients_of, loss_of, model_of
from tiny import tiny

from lit_gpt.args import AdapterArgs, LoRAArgs
from lit_gpt.generation.batching.batch import Piece
from lit_gpt.generation.batching.forward import ExtentModel
from lit_gpt.generation.batching.passes import in_pass
from lit_gpt.generation.batching.pool import Pool
from lit_gpt.generation.cpu import compiling, products
from lit_gpt.generation.cpu.products import packed, product, speeds_up
from lit_gpt.generation.cpu.scripted import _norm, _normed, scriptable
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.quantize import quantizable, quantized
from lit_gpt.methods import adapter_v2, lora
from lit_gpt.rollouts.drawing import switched_off
from lit_gpt.tokenizer import Tokenizer

KINDS = [
    "llama-gqa", "llama-biases", "llama-tied", "neox", "falcon-40b", "mistral", "mixtral", "phi", "phi3-long", "gemma2",
    "gemma3", "qwen3", "qwen3-moe", "smollm3", "olmo2", "stablelm-12b",
]  # fmt: skip
PROMPTS = [torch.randint(0, 320, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 17, 40)]
needs_packing = pytest.mark.skipif(not products._packs(), reason="this torch packs no weights in fp16 on this CPU")


def as_16_bits(model):
    """The model in fp32, with weights that bf16 has, as those of a checkpoint are."""
    return model.bfloat16().float()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def drawn(model, tokenizer, pack):
    answers = Engine(model, tokenizer, max_tokens=300, pack=pack).complete([Request(p, 33, GREEDY) for p in PROMPTS])
    return [[token.id for token in answer.tokens] for answer in answers]


@torch.inference_mode()
def logits(model, ids=PROMPTS[2]):
    """Logits of the last token of a text that is read in one piece, and of the one after it."""
    n = len(ids)
    extents = ExtentModel(model, Pool(model, n + 1, torch.float32), {}, fast=True)
    extents.hidden([Piece([1], 0, start=0)])  # the first pass may have weights as they are
    hidden = [extents.hidden([Piece(ids, 0, start=0)])[-1:], extents.hidden([Piece([7], n, start=0)])]
    return extents.logits(torch.cat(hidden), [None, None])


@pytest.mark.parametrize("kind", ["llama-gqa", "mixtral", "phi", "stablelm-12b"])
@pytest.mark.parametrize("fast", [True, False])
@torch.inference_mode()
def test_hidden_states_that_are_wanted_are_those_of_all_tokens(kind, fast):
    model = as_16_bits(tiny(kind))
    extents = ExtentModel(model, Pool(model, 60, torch.float32), {}, fast=fast)
    extents._may_not_wait = False
    pieces = [Piece(PROMPTS[1], 0, start=0), Piece(PROMPTS[0], 0, start=30)]
    whole, n_rows = extents.hidden(pieces), []
    if extents.is_fast and scriptable(model.transformer.h[0]):
        layer = extents.layers[-1]
        extents.layers[-1] = lambda *args: (n_rows.append(len(y := layer(*args))), y)[1]
    for wanted in ([0], [3, 16, 20], list(range(len(whole)))):
        got = extents.hidden(pieces, wanted)
        assert got.shape == (len(wanted), whole.size(1))
        assert (got - whole[wanted]).abs().max() < 1e-5
    assert n_rows in ([], [1, 3, len(whole)])  # the last layer computes no others
    assert bool(n_rows) == (fast and scriptable(model.transformer.h[0]))


@pytest.mark.parametrize("n", [1, 7, 8, 40])
@pytest.mark.parametrize("heads", [(), (3,)])
def test_norms_of_few_and_many_rows_are_those_of_the_layer(n, heads):
    norm = tiny("llama-gqa").transformer.ln_f
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(n, *heads, len(norm.weight), generator=torch.Generator().manual_seed(n))
    with torch.no_grad():
        assert torch.allclose(_normed(x, _norm(norm)), norm(x), atol=1e-5)


def test_a_head_s_keys_lie_next_to_each_other():
    pool = Pool(tiny("llama-gqa"), 50, torch.float32)
    assert all(x.size(0) == 50 and x[:, 0].is_contiguous() for x in (*pool.k, *pool.v))


def plain_logits(model, ids=PROMPTS[2]):
    with torch.inference_mode():
        return model(torch.tensor([[*ids, 7]]))[0, -2:].float()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_of_several_rows_are_those_of_the_plain_model(kind, tokenizer):
    model = as_16_bits(tiny(kind))
    assert speeds_up(model)
    assert drawn(model, tokenizer, pack=True) == drawn(model, tokenizer, pack=False)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_only_the_first_pass_in_fp32_does_not_wait_for_packed_weights(kind, tokenizer):
    model = tiny("llama-gqa")
    if kind == "int8":
        for path in quantizable(model):
            model.set_submodule(path, quantized(model.get_submodule(path), "int8"))
    engine = Engine(model.bfloat16() if kind == "bf16" else model, tokenizer, max_tokens=300)
    made = vars(engine.passes.model)  # what a `cached_property` has made is among these
    engine.submit(Request(PROMPTS[0], 9, GREEDY), lambda delta: None)
    engine.step()
    assert ("layers" in made, "lm_head" in made) == ((False, False) if kind == "fp32" else (True, True))
    engine.step()
    assert "layers" in made and "lm_head" in made


def test_weights_that_fp16_does_not_keep_are_taken_as_they_are(tokenizer):
    model = tiny("llama-gqa")
    assert not products._exact(model.lm_head.weight)
    assert drawn(model, tokenizer, pack=True) == drawn(model, tokenizer, pack=False)
    torch.testing.assert_close(logits(model), plain_logits(model), rtol=1e-5, atol=1e-5)


@needs_packing
@pytest.mark.parametrize("kind", ["llama-gqa", "mixtral", "neox", "gemma2"])
def test_logits_in_bf16_are_nearer_to_those_in_fp32_than_the_plain_model_s(kind, monkeypatch):
    """Many rows are multiplied as the plain model does where the CPU does that fast, so this one does not."""
    monkeypatch.setattr(products, "MISSING", frozenset({torch.bfloat16}))
    model = tiny(kind).bfloat16()
    found, plain = logits(model), plain_logits(model)
    want = plain_logits(model.float())
    assert found.dtype == torch.float32
    assert (found - want).abs().max() < (plain - want).abs().max() < 0.3


@needs_packing
@pytest.mark.parametrize("large", [1, 2**40])
def test_an_int8_product_is_that_of_its_codes(large, monkeypatch):
    monkeypatch.setattr(products, "_LARGE", large)
    torch.manual_seed(0)
    layers = [quantized(Linear(96, n), "int8") for n in (48, 16)]
    x = torch.randn(5, 96) * torch.logspace(-3, 3, 5).unsqueeze(1)
    x[0] = 0
    want = torch.cat([x.double() @ m.dequantize().double().T + m.bias.double() for m in layers], -1)
    found = torch.jit.script(product(*layers))(x)
    by_layer = torch.cat([m(x) for m in layers], -1)
    size = x.abs().amax(-1, keepdim=True).clamp(min=1)
    assert ((found - want) / size).abs().max() < 2e-4 < 2e-3 < ((by_layer - want) / size).abs().max()


@needs_packing
@pytest.mark.parametrize("large", [1, 2**40])
def test_a_model_in_int8_decodes_as_its_weights_say(large, monkeypatch):
    monkeypatch.setattr(products, "_LARGE", large)
    model = as_16_bits(tiny("llama-gqa"))
    for path in quantizable(model):
        model.set_submodule(path, quantized(model.get_submodule(path), "int8"))
    found = logits(model)
    own = plain_logits(model)
    for path, layer in list(model.named_modules()):
        if type(layer).__name__ == "Int8Linear":
            plain = Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight.data = layer.dequantize()
            model.set_submodule(path, plain)
    want = plain_logits(model)
    assert (found - want).abs().max() < 1e-3 < (own - want).abs().max()


@pytest.mark.parametrize("method", ["lora", "adapter_v2", "nf4"])
def test_adapters_and_other_quantized_layers_are_part_of_it(method):
    model = as_16_bits(tiny("llama-gqa"))
    torch.manual_seed(1)
    if method == "lora":
        lora.inject(model, LoRAArgs(lora_r=2, **ALL))
    elif method == "adapter_v2":
        adapter_v2.inject(model, AdapterArgs(adapter_start_layer=0))
    else:
        pytest.importorskip("bitsandbytes")
        for path in quantizable(model):
            model.set_submodule(path, quantized(model.get_submodule(path), "bnb.nf4"))
    for name, p in model.named_parameters():
        if p.requires_grad and p.is_floating_point():
            torch.nn.init.normal_(p, std=0.2, mean=float("norm" in name or "scale" in name))
    assert speeds_up(model.eval())
    torch.testing.assert_close(logits(model), plain_logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [("neox", {}), ("llama-biases", {"lora_dora": True}), ("gemma2", {"lora_init": "pissa", "lora_mlp": False})],
)
def test_updates_are_trained_beside_weights_that_are_packed_once(kind, flags, monkeypatch):
    made, n_made, plain = [], [], products._frozen_product
    monkeypatch.setattr(products, "_frozen_product", lambda layers: made.append(len(layers)) or plain(layers))
    model = as_16_bits(tiny(kind)).eval()
    lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=0.0, **ALL | {"lora_head": False} | flags))
    assert all(map(scriptable, model.transformer.h))
    trained = [p for p in model.parameters() if p.requires_grad]
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in trained:
                p.add_(torch.randn_like(p), alpha=0.1)
        torch.testing.assert_close(logits(model), plain_logits(model), rtol=1e-4, atol=1e-4)
        n_made.append(len(made))
    if "lora_dora" not in flags:
        with switched_off(model):
            torch.testing.assert_close(logits(model), plain_logits(model), rtol=1e-4, atol=1e-4)
    assert {len(made)} == set(n_made) and made


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_the_optimizer_changed_is_seen(method):
    """The kernel of its step leaves the versions of the tensors as they are."""
    model, ids = as_16_bits(model_of(method)), list(range(12))
    gradients = gradients_of(model, offload_gradients=False)
    for step in range(2):
        before = logits(model, ids)
        loss_of(model).backward()
        gradients.step(step + 1)
        torch.testing.assert_close(logits(model, ids), plain_logits(model, ids), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits(model, ids), before, atol=1e-3)


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_output_channels_may_be_packed_in_parts(dtype, monkeypatch):
    monkeypatch.setattr(products, "_LARGE", 2**40)
    torch.manual_seed(0)
    layers = [Linear(32, n).bfloat16().to(torch.float32 if dtype == torch.int8 else dtype) for n in (24, 7)]
    if dtype == torch.int8:
        layers = [quantized(layer, "int8") for layer in layers]
    x = torch.randn(3, 32)
    whole = torch.jit.script(product(*layers))(x)
    monkeypatch.setattr(products, "_ROWS", 5)
    compiling.release()
    parts = product(*layers)
    assert len(parts.packed) == 5 + 2 and whole.shape == (3, 31)
    torch.testing.assert_close(torch.jit.script(parts)(x), whole)


@pytest.mark.parametrize("kind", ["int8", "lora", "biases", "falcon-40b"])
def test_what_is_packed_in_a_thread_does_not_follow_the_default_dtype(kind, monkeypatch):
    """Another thread may be in Fabric's context for a model in 16 bits, which changes the default for all threads."""
    monkeypatch.setattr(products, "_LARGE", 1)
    model = tiny(kind if kind == "falcon-40b" else "llama-gqa")
    if kind == "lora":
        lora.inject(model, LoRAArgs(lora_r=2, lora_dora=True, **ALL))
    if kind == "biases":  # one of two layers side by side
        model.transformer.h[0].mlp.fc_1.bias = torch.nn.Parameter(torch.randn(model.config.intermediate_size))
    model = as_16_bits(model)
    for path in quantizable(model) if kind == "int8" else ():
        model.set_submodule(path, quantized(model.get_submodule(path), "int8"))
    found = logits(model)
    compiling.release()
    torch.set_default_dtype(torch.bfloat16)
    try:
        fast = ExtentModel(model, Pool(model, 100, torch.float32), {}, fast=True)
        assert fast.layers and fast.lm_head, "it waits for them"
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(logits(model), found)


@needs_packing
def test_a_weight_that_changes_is_packed_again():
    model = as_16_bits(tiny("llama-gqa"))
    before = logits(model)
    torch.testing.assert_close(logits(model), before)
    with torch.no_grad():
        model.transformer.h[1].mlp.proj.weight.mul_(2)
        model.lm_head.weight.mul_(-1)
    torch.testing.assert_close(logits(model), plain_logits(model), rtol=1e-5, atol=1e-5)


@needs_packing
def test_a_packed_layer_is_made_once_and_keeps_its_weight():
    model = tiny("llama-gqa").bfloat16()
    linear = model.lm_head
    assert packed(linear).product is packed(linear).product
    assert packed(linear).weight is linear.weight


@pytest.mark.parametrize("kind", ["llama-biases", "gemma3", "neox"])
def test_blocks_of_the_same_structure_are_compiled_once_and_keep_their_own_values(kind, monkeypatch):
    script, made = torch.jit.script, []

    def counted(x, **more):
        made.extend([x] if isinstance(x, torch.nn.Module) else [])  # it is called for functions, too
        return script(x, **more)

    monkeypatch.setattr(torch.jit, "script", counted)
    model = tiny(kind).eval()
    found = logits(model)
    assert len(model.transformer.h) > 1 and len(made) == 2, "a block, and the output projection"
    torch.testing.assert_close(found, plain_logits(model), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(compiling, "_structure", id)  # none is like another one
    compiling.release()
    assert torch.equal(logits(model), found) and len(made) == 2 + len(model.transformer.h) + 1


def test_what_differs_in_more_than_values_is_compiled_on_its_own(monkeypatch):
    layers = [Linear(8, 4), Linear(8, 4, bias=False), Linear(8, 6).bfloat16(), Linear(8, 5)]
    kinds = {compiling._structure(product(layer)) for layer in layers}
    assert len(kinds) == (3 if products._packs() else 2), "with a bias, without one, and packed"


def test_a_pass_runs_as_it_is_written():
    assert torch._C._get_graph_executor_optimize()
    with in_pass(nullcontext):
        assert not torch._C._get_graph_executor_optimize()
    assert torch._C._get_graph_executor_optimize()


@needs_packing
@pytest.mark.parametrize("why", ["autocast", "memory", "range", "meta"])
def test_a_model_that_packing_does_not_serve_runs_as_it_is(why, monkeypatch):
    model = tiny("llama-gqa").bfloat16()
    assert speeds_up(model)
    if why == "memory":
        model = tiny("llama-gqa").bfloat16()
        monkeypatch.setattr(products, "_SHARE", 1e-9)
    elif why == "range":
        model.lm_head.weight.data[0, 0] = 1e6
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.clone())
    elif why == "meta":
        model = model.to("meta")
    with torch.autocast("cpu", enabled=why == "autocast"):
        assert not speeds_up(model)


@needs_packing
def test_many_rows_are_multiplied_by_the_weight_itself_where_the_cpu_multiplies_it_fast(monkeypatch):
    monkeypatch.setattr(products, "MISSING", frozenset())
    linear = Linear(32, 24).bfloat16()
    fast = torch.jit.script(product(linear))
    x = torch.randn(products._FEW + 1, 32)
    by_bf16 = (x.bfloat16() @ linear.weight.T).float() + linear.bias.float()
    torch.testing.assert_close(fast(x), by_bf16, rtol=1e-2, atol=1e-2)
    few = fast(x[: products._FEW])
    torch.testing.assert_close(few, x[: products._FEW] @ linear.weight.float().T + linear.bias.float())
    assert not torch.equal(fast(x)[: products._FEW], few)
