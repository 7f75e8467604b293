"""On a GPU, steps that are captured, and compiled, give the tokens and logits of steps that are not."""

import warnings

import pytest
import torch

from lit_gpt.config import Config
from lit_gpt.generation.decode import Decoder
from lit_gpt.generation.engine import generate_batch
from lit_gpt.model import GPT

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
    "neox": {"qkv_bias": True, "proj_bias": True, "mlp_bias": True},
    "gemma": LLAMA | GEMMA | {"norm_unit_offset": True, "activation": "gelu_tanh", "tie_embeddings": True},
}


def made(shape, dtype=torch.float32):
    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_head": 8, "n_embd": 256, "intermediate_size": 704, "block_size": 1024, "vocab_size": 1000}
    return GPT(Config(name=shape, **sizes | SHAPES[shape])).to("cuda", dtype).eval()


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
    ways = [{}, {"capture": True}, {"backend": "inductor"}, {"backend": "inductor", "capture": True}]
    decoders = [Decoder(model, n_rows, 300, **way) for way in ways]
    logits = [d.prefill(PROMPTS[:n_rows]) for d in decoders]
    for i in range(20):
        token = torch.tensor([(7 * i + r) % 1000 for r in range(n_rows)], device="cuda")
        logits = [d.step(token).clone() for d in decoders]
        for other in logits[1:]:
            error = (other - logits[0]).float().norm() / logits[0].float().norm()
            assert error < {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-4}[dtype], f"step {i}"
    assert all(len(d.graphs) == (2 if d.capture else 0) for d in decoders)


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
