"""Fast decoding draws the tokens that the model gives without any cache, whatever is compiled or captured."""

import pytest
import torch
from conftest import tiny_hf
from draws import fast, plainly
from parts import DECODED, TRACED

from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.generation.lockstep.batch import generate_batch
from lit_gpt.generation.lockstep.cache import room
from lit_gpt.generation.sampling.sampler import sample
from lit_gpt.model import GPT

PROMPTS = [[5, 9, 200] * 83, [7], [3, 1, 4, 1, 5, 9, 2, 6]]
"""The first has 249 tokens: eight more fill the first room."""


def tiny(kind, folder, **overrides):
    tiny_hf(kind, **overrides).save_pretrained(folder)
    source = open_source(folder)
    model = GPT(config_from_hf(source.hf_config, kind, "config.json")).eval()
    model.load_state_dict(from_hf(model.config, source.names, source.get))
    return model


@pytest.mark.parametrize("kind", DECODED)
def test_compiled_steps_draw_what_the_model_draws_over_two_rooms(kind, tmp_path):
    model = tiny(kind, tmp_path)
    want = plainly(model, PROMPTS, 16)
    assert list(generate_batch(model, PROMPTS, 16, temperature=0)) == want
    if kind in TRACED:
        assert fast(model, PROMPTS, 16) == want


@pytest.mark.parametrize("n", [16, 80])  # with their prompts, shorter and longer than the 64 that it was trained for
def test_longrope_goes_by_the_length_of_the_text_not_by_what_is_reserved_for_it(n, tmp_path):
    model = tiny("phi3-short", tmp_path)
    want = plainly(model, PROMPTS[1:], n)
    assert fast(model, PROMPTS[1:], n) == want
    assert list(generate_batch(model, PROMPTS[1:], n, temperature=0)) == want


@pytest.mark.parametrize("top_k", [None, 5])
def test_a_seed_gives_the_same_draws(top_k, tmp_path):
    model = tiny("llama-gqa", tmp_path)
    columns = []
    for run in (plainly, fast):
        torch.manual_seed(1)
        columns.append(run(model, PROMPTS, 16, temperature=5.0, top_k=top_k))
    torch.manual_seed(1)
    columns.append(list(generate_batch(model, PROMPTS, 16, temperature=5.0, top_k=top_k)))
    assert columns[0] == columns[1] == columns[2]
    assert len({c[1] for c in columns[0]}) > 8  # it did draw


def test_rows_end_at_stop_ids_and_where_the_model_is_full(tmp_path):
    model = tiny("llama-gqa", tmp_path)
    prompts = [[1] * 504, [2] * 40, [3] * 500]
    columns = fast(model, prompts, 30)
    assert [sum(c[i] is not None for c in columns) for i in range(3)] == [8, 30, 12]
    assert columns == list(generate_batch(model, prompts, 30, temperature=0))
    alone = [c[0] for c in fast(model, [[2] * 40], 30)]
    assert [c[1] for c in columns] == alone
    stop = alone[7]
    stopped = fast(model, prompts, 30, stop_ids={stop})
    n = alone.index(stop)
    assert [c[1] for c in stopped[:n]] == alone[:n] and all(c[1] is None for c in stopped[n:])


def test_one_compiled_block_serves_all_layers_lengths_and_rooms_and_draws_the_same(tmp_path):
    model = tiny("llama-gqa", tmp_path, num_hidden_layers=3)
    want = plainly(model, PROMPTS, 16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert list(generate_batch(model, PROMPTS, 16, temperature=0, compile=True)) == want
    assert list(generate_batch(model, PROMPTS, 100, temperature=0, compile=True))[:16] == want
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a block, and the output projection
    assert not torch._dynamo.utils.counters["graph_break"]


def test_the_model_stays_as_it_was(tmp_path):
    model = tiny("llama-gqa", tmp_path)
    before, modules = {n: p.clone() for n, p in model.state_dict().items()}, list(model.modules())
    fast(model, PROMPTS, 3)
    assert list(model.modules()) == modules
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_rooms_are_few_and_not_much_larger_than_what_is_in_them():
    rooms = [room(n) for n in range(1, 32_769)]
    assert all(n <= r <= max(256, n + 255, n * 1.25) for n, r in enumerate(rooms, 1))
    assert rooms == sorted(rooms) and len(set(rooms)) <= 32 and all(r % 256 == 0 for r in rooms)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, -1)
    torch.manual_seed(0)
    for top_k, kept in ((None, 4), (2, 2), (9, 4)):
        want = torch.where(logits[0] >= logits[0].topk(kept).values[-1], logits[0] / 0.7, -torch.inf).softmax(-1)
        got = sample(logits, 0.7, top_k).bincount(minlength=4) / 20_000
        torch.testing.assert_close(got, want, atol=0.015, rtol=0)
