"""Our model computes what transformers computes, for every architecture; converting back gives the same bits."""

import pytest
import torch
from conftest import tiny_hf

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import from_hf, to_hf
from lit_gpt.families import MODELS
from lit_gpt.generation.engine import generate, generate_batch
from lit_gpt.model import GPT, KVCache

KINDS = {
    "llama": {},
    "llama-gqa": {},
    "llama-tied": {},
    "llama-linear": {"rope_scaling": {"type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "neox": {},
    "neox-sequential": {"use_parallel_residual": False},
    "neox-full-rotary": {"rotary_pct": 1.0},
}


def both(kind):
    theirs = tiny_hf(kind, **KINDS[kind])
    hf_config = {**theirs.config.to_dict(), "architectures": [type(theirs).__name__]}
    config = config_from_hf(hf_config, kind, "config.json")
    state = theirs.state_dict()
    ours = GPT(config).eval()
    ours.load_state_dict(from_hf(config, state, state.__getitem__))
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_transformers(kind):
    ours, theirs = both(kind)
    ids = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    want, got = theirs(ids).logits, ours(ids)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    want.square().mean().backward(), got.square().mean().backward()
    name = "gpt_neox.embed_in" if kind.startswith("neox") else "model.embed_tokens"
    torch.testing.assert_close(
        ours.transformer.wte.weight.grad, theirs.get_submodule(name).weight.grad, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_converting_back_is_bit_exact(kind):
    ours, theirs = both(kind)
    back = to_hf(ours.config, ours.state_dict())
    state = {
        n.replace("lm_head", "embed_out") if kind.startswith("neox") else n: x for n, x in theirs.state_dict().items()
    }
    for name in back:
        assert torch.equal(back[name], state[name]), name
    left = set(state) - set(back)
    assert left <= ({"lm_head.weight"} if kind == "llama-tied" else set())


@pytest.mark.parametrize("kind", ["llama-gqa", "neox"])
@torch.no_grad()
def test_the_cache_changes_nothing(kind):
    ours, _ = both(kind)
    ids = torch.randint(0, 320, (1, 20), generator=torch.Generator().manual_seed(1))
    want, cache = ours(ids), KVCache(ours, 1, 20)
    pieces = [ours(ids[:, :7], torch.arange(7), cache)]
    pieces += [ours(ids[:, i : i + 1], torch.tensor([i]), cache) for i in range(7, 20)]
    torch.testing.assert_close(torch.cat(pieces, 1), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama-gqa", "neox"])
@torch.no_grad()
def test_greedy_generation_is_the_argmax_without_a_cache_and_rows_do_not_mix(kind):
    ours, _ = both(kind)
    prompts = [[5, 9, 200], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    columns = list(generate_batch(ours, prompts, 12, temperature=0))
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(ours(torch.tensor([ids]))[0, -1].argmax()))
        assert [c[row] for c in columns] == ids[len(prompt) :]
        assert list(generate(ours, prompt, 12, temperature=0)) == ids[len(prompt) :]
        stop = ids[len(prompt) + 5]
        until = ids[len(prompt) :].index(stop)
        assert list(generate(ours, prompt, 12, temperature=0, stop_ids={stop})) == ids[len(prompt) :][:until]


def test_generation_stops_where_the_model_is_full():
    ours, _ = both("llama")
    assert len(list(generate(ours, [1] * 504, 50, temperature=0))) == 8
    with pytest.raises(ValueError, match="512"):
        list(generate(ours, [1] * 512, 5))


def test_positions_stay_apart_in_16_bits():
    """In bf16 positions above 256 would round to each other; Fabric builds models under that default dtype."""
    ours, _ = both("llama")
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = GPT(ours.config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.cos.dtype == torch.float32
    assert torch.equal(model.cos, ours.cos) and torch.equal(model.sin, ours.sin)


COUNTS = {  # parameters as published
    "Llama-2-7b-hf": 6_738_415_616,
    "Llama-2-13b-chat-hf": 13_015_864_320,
    "FreeWilly2": 68_976_648_192,
    "open_llama_3b": 3_426_473_600,
    "vicuna-33b-v1.3": 32_528_943_616,
    "SmolLM2-135M-Instruct": 134_515_008,
    "pythia-160m": 162_322_944,
    "pythia-12b-deduped": 11_846_072_320,
    "RedPajama-INCITE-Base-3B-v1": 2_775_864_320,
    "RedPajama-INCITE-7B-Chat": 6_857_302_016,
    "stablelm-base-alpha-3b": 3_637_321_728,
    "stablelm-tuned-alpha-7b": 7_868_755_968,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        model = GPT(Config.from_name(name))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_we_list_has_a_configuration(name):
    assert Config.from_name(MODELS[name]["hf_repo"]) == Config.from_name(name)


def test_an_unknown_name_shows_close_matches():
    with pytest.raises(ValueError, match="pythia-160m"):
        Config.from_name("EleutherAI/pythia-165m")
