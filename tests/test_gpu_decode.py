"""On a GPU, steps that are captured, and compiled, give the tokens and logits of steps that are not."""

import warnings

import pytest
import torch

from lit_gpt.config import Config
from lit_gpt.generation.lockstep.batch import generate_batch
from lit_gpt.generation.lockstep.decode import Decoder
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.mlp import ACTIVATIONS
from lit_gpt.layers.quantize import quantized
from lit_gpt.layers.rope import apply_rope
from lit_gpt.layers.self_attention import attend
from lit_gpt.model import GPT, visible

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PROMPTS = [[5, 9, 200] * 83, [7], [3, 1, 4, 1, 5, 9, 2, 6]]
"""The first has 249 tokens: eight more fill the first room."""
LLAMA = {"norm": "rms", "mlp": "gated", "activation": "silu", "parallel_residual": False, "rotary_percentage": 1.0}
GEMMA = {"scale_embeddings": True, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "post_norm": True}
SHAPES = {
    "mha": LLAMA,
    "gqa": LLAMA | {"n_query_groups": 2},
    "mqa": LLAMA | {"n_query_groups": 1, "qk_norm": "head"},
    "window": LLAMA | {"n_query_groups": 2, "sliding_window": 100, "sliding_layers": [0, 2]},
    "unrotated": LLAMA | {"n_query_groups": 2, "unrotated_layers": [1]},
    "two bases": LLAMA | {"sliding_window": 100, "sliding_layers": [0, 2], "rope_base": 1e6, "rope_local_base": 1e4},
    "neox": {"qkv_bias": True, "proj_bias": True, "mlp_bias": True},
    "gemma": LLAMA | GEMMA | {"norm_unit_offset": True, "activation": "gelu_tanh"},
}
HEADS = [(32, 32, 128, 128, 0.0, 0), (32, 8, 128, 128, 0.0, 300), (71, 1, 64, 64, 0.0, 0)]
HEADS = [*HEADS, (8, 4, 256, 256, 50.0, 0), (32, 32, 80, 20, 0.0, 0), (4, 2, 96, 96, 0.0, 100)]
"""H, G, head_size, channels that are rotated, cap and window of attention."""
WAYS = [("plain", False), ("plain", True), ("kernels", False), ("kernels", True)]


def made(shape, dtype=torch.float32):
    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_head": 8, "n_embd": 256, "intermediate_size": 704, "block_size": 1024, "vocab_size": 1000}
    model = GPT(Config(name=shape, **sizes | SHAPES[shape])).to("cuda").eval()
    for p in model.parameters():  # and not the frequencies of rotation
        p.data = p.data.to(dtype)
    return model


def drawn(model, compile, prompts=PROMPTS, n=40, **settings):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*CUDA graphs.*")
        return list(generate_batch(model, prompts, n, compile=compile, **{"temperature": 0} | settings))


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["ragged", "alone"])
@pytest.mark.parametrize("shape", SHAPES)
def test_captured_and_compiled_steps_draw_the_same_tokens(shape, prompts):
    model = made(shape)
    plain = drawn(model, False, prompts)
    assert len({c[0] for c in plain}) > 4
    assert drawn(model, None, prompts) == plain
    assert drawn(model, True, prompts) == plain
    assert drawn(model, True, prompts) == plain  # in the second run nothing is compiled


@pytest.mark.parametrize("settings", [{}, {"top_k": 50}])
def test_a_seed_gives_the_same_draws(settings):
    model, columns = made("gqa"), []
    for compile in (False, None, True):
        torch.manual_seed(1)
        columns.append(drawn(model, compile, temperature=1.0, **settings))
    assert columns[0] == columns[1] == columns[2]


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_logits_of_the_same_tokens_are_close(shape, dtype, n_rows):
    model = made(shape, dtype)
    decoders = [Decoder(model, n_rows, 300, *way) for way in WAYS]
    logits = [d.prefill(PROMPTS[:n_rows]) for d in decoders]
    for i in range(20):
        token = torch.tensor([(7 * i + r) % 1000 for r in range(n_rows)], device="cuda")
        logits = [d.step(token).clone() for d in decoders]
        for other in logits[1:]:
            error = (other - logits[0]).float().norm() / logits[0].float().norm()
            assert error < {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-4}[dtype], f"step {i}"
    assert [len(d.graphs) for d in decoders] == [0, 2, 0, 1]


@pytest.mark.parametrize("activation", ["", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1000, 11008), (33, 100), (512, 1280)])
def test_the_product_with_one_row_is_that_of_float64(n, k, dtype, activation):
    from lit_gpt.generation.kernels.matvec import Weight, matvec

    def layer(spread):
        weight, bias = torch.randn(n, k, device="cuda") * k**-0.5, torch.randn(n, device="cuda")
        if dtype.itemsize > 1:
            return Weight(weight.to(dtype), None, bias.to(dtype))
        return Weight((spread * weight).clamp(-127, 127).to(dtype), (torch.rand(n, device="cuda") + 0.5) / spread, bias)

    def exactly(layer):
        y = x.double() @ layer.weight.double().T
        return (y if layer.scale is None else y * layer.scale.double()) + layer.bias.double()

    row = dtype if dtype.itemsize > 1 else torch.bfloat16
    x, one, gate = torch.randn(1, 1, k, device="cuda", dtype=row), layer(1000.0), layer(1000.0)
    want = exactly(one)
    if activation:
        want = want * ACTIVATIONS[activation](exactly(gate))
    got = matvec(x, one, gate if activation else None, activation).double()
    tolerance = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-6}[row]
    assert (got - want).norm() < tolerance * want.norm()


def captured_ms(fn, arguments):
    """Median time of a call on the GPU, in ms, over calls with each of `arguments` in turn."""
    times = []
    fn(*arguments[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for a in arguments:
            fn(*a)
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(arguments))
    return sorted(times)[len(times) // 2]


@pytest.mark.parametrize(("n", "k"), [(12288, 4096), (4096, 4096), (11008, 4096), (4096, 11008), (32000, 4096)])
def test_the_product_with_one_row_is_no_slower_than_that_of_torch(n, k):
    from lit_gpt.generation.kernels.matvec import Weight, matvec

    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(max(2, 2**29 // (n * k)))]
    x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16)  # weights: more of them than the cache holds
    ours = captured_ms(matvec, [(x, Weight(w)) for w in weights])
    theirs = captured_ms(torch.nn.functional.linear, [(x, w) for w in weights])
    rates = [f"{2 * n * k / ms / 1e6:.0f} GB/s" for ms in (ours, theirs)]
    print(f"{n} x {k}: ours {rates[0]}, torch {rates[1]}")
    assert ours < 1.05 * theirs, rates


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("H", "G", "D", "rotated", "cap", "window"), HEADS)
@torch.no_grad()
def test_attention_over_a_cache_is_that_of_float64(H, G, D, rotated, cap, window, dtype):
    from lit_gpt.generation.kernels.attention import attention

    config = Config(n_head=H, n_embd=H * D, n_query_groups=G, attn_logit_softcapping=cap, rotary_percentage=1.0)
    qkv = torch.randn(3, 1, (H + 2 * G) * D, device="cuda", dtype=dtype)
    q, k, v = (p.unflatten(-1, (-1, D)).transpose(1, 2) for p in qkv.split((H * D, G * D, G * D), -1))
    angle = torch.rand(3, 1, 1, rotated // 2, device="cuda").mul(6).repeat(1, 1, 1, 2)
    cached = [torch.randn(2048, 3, G, D, device="cuda", dtype=dtype) for _ in range(2)]
    keys, values = (x.clone() for x in cached)
    position = torch.tensor([1999, 0, 333], device="cuda")
    turned = (angle.cos(), angle.sin())
    got = attention(q, k, v, *turned, tuple(cached), position[:, None], D**-0.5, cap, window)
    rows = torch.arange(3, device="cuda")
    keys[position, rows], values[position, rows] = apply_rope(k, *turned)[:, :, 0], v[:, :, 0]
    torch.testing.assert_close(cached[0], keys, rtol=1e-2, atol=1e-3)
    assert torch.equal(cached[1], values)
    seen = visible(position[:, None], torch.arange(2048, device="cuda"), window)
    past = (x.permute(1, 2, 0, 3).double() for x in (keys, values))
    want = attend(apply_rope(q, *turned).double(), *past, seen, config).transpose(1, 2).flatten(2)
    error = (got.double() - want).norm() / want.norm()
    assert error < {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]


@torch.inference_mode()
def test_steps_of_torch_compile_have_the_same_logits_too():
    model = made("gqa")
    plain, compiled = drawn_logits(model, "plain"), drawn_logits(model, "inductor")
    assert (compiled - plain).norm() < 1e-4 * plain.norm()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_weights_in_8_bits_decode_as_well_as_their_own_products(kind):
    model = made("gqa", torch.bfloat16)
    exact = drawn_logits(model, "plain")
    for module in list(model.transformer.h.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, quantized(child, kind))
    rounded, ours = drawn_logits(model, "plain"), drawn_logits(model, "kernels")
    assert (ours - exact).norm() < 1.1 * (rounded - exact).norm()


@torch.inference_mode()
def drawn_logits(model, way):
    """Logits after each of twenty given tokens."""
    decoder = Decoder(model, 1, 300, way, capture=True)
    decoder.prefill(PROMPTS[:1])
    return torch.cat([decoder.step(torch.tensor([7 * i], device="cuda")).float() for i in range(20)])


def test_a_model_that_waits_for_the_gpu_decodes_without_graphs():
    class Waits(torch.nn.Module):
        def forward(self, x):
            return x * float(x.sum() * 0 + 1)

    model = made("mha")
    plain = drawn(model, False)
    model.transformer.h[1].post_mlp_norm = Waits()
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        assert list(generate_batch(model, PROMPTS, 40, temperature=0)) == plain


def test_stop_ids_end_a_text_where_they_are_drawn():
    model = made("gqa")
    alone = [c[0] for c in drawn(model, False, PROMPTS[:1])]
    stop = alone[20]
    n = alone.index(stop)
    for compile in (None, True):
        assert [c[0] for c in drawn(model, compile, PROMPTS[:1], stop_ids={stop})] == alone[:n]
