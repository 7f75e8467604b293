"""Rows that begin alike read what they share once, and get what each gets alone."""

import pytest
import torch
from conftest import write_tokenizer
from parts import ONE_OF_EACH
from tiny import tiny

from lit_gpt.generation.batching import alike, attention, forward
from lit_gpt.generation.batching.batch import Batch, Shared
from lit_gpt.generation.batching.scheduler import Due
from lit_gpt.generation.cpu import scripted
from lit_gpt.generation.cpu.cascade import cascade_attention
from lit_gpt.generation.cpu.stretches import stretch_end, stretch_of
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request, Sampling
from lit_gpt.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("dirty_memory")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture
def parts(monkeypatch):
    """What is shared in each pass that shares something, where eight tokens are enough."""
    found = []
    plain_init = Batch.__init__

    def watched(self, *args, **options):
        plain_init(self, *args, **options)
        if shared := [(j - i, n) for i, j, _, n, _ in self.parts if n]:
            found.append(shared)

    monkeypatch.setattr(alike, "_FEWEST", 8)
    monkeypatch.setattr(Batch, "__init__", watched)
    return found


def draw_ids(n, seed):
    return torch.randint(0, 320, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


A, B, C = draw_ids(40, 1), draw_ids(20, 2), draw_ids(30, 3)
PROMPTS = [A + draw_ids(5, 4), A + B + draw_ids(9, 5), [*C, 7], A + B + [3], C + draw_ids(4, 6), draw_ids(25, 7), A]


@pytest.mark.parametrize(
    ("kind", "pack"),
    [*((kind, True) for kind in ONE_OF_EACH), ("llama-gqa", False), ("phi3-long", False), ("neox", False)],
)
def test_rows_get_what_each_gets_alone(kind, pack, tokenizer, parts):
    model = tiny(kind).bfloat16().float()
    requests = [Request(p, 12, GREEDY, logprobs=3) for p in PROMPTS]
    want = [Engine(model, tokenizer, max_tokens=100, pack=pack).complete([r])[0] for r in requests]
    assert not parts
    for request, answer, alone in zip(
        requests, Engine(model, tokenizer, max_tokens=900, pack=pack).complete(requests), want, strict=True
    ):
        assert len(answer.tokens) == 12 and not answer.error
        assert [t.id for t in answer.tokens] == [t.id for t in alone.tokens], len(request.ids)
        for one, other in zip(answer.tokens, alone.tokens, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=2e-5)
    assert any(sum(n_rows for n_rows, _ in shared) == 6 for shared in parts), parts


def test_the_shared_part_is_computed_for_all_rows_at_once(tokenizer, parts, monkeypatch):
    """What the rows have of their own copies of it may be anything."""
    model = tiny("llama-gqa")
    requests = [Request([*A, i], 6 if i else 30, GREEDY) for i in range(4)]  # the first is there to the end
    engine = Engine(model, tokenizer, max_tokens=900)
    want = engine.complete(requests)
    engine = Engine(model, tokenizer, max_tokens=900)
    tickets = [engine.submit(r, lambda d: None) for r in requests]
    deltas = {t: [] for t in tickets}
    rows = [engine._rows[t] for t in tickets]
    for row in rows:
        row.deliver = deltas[row.ticket].append
    while not all(row.n_new for row in rows):
        engine.step()
    (first,) = {group[0].ticket for group in alike._groups(rows)}
    assert first == tickets[0]
    for row in rows:
        if row.ticket != first:
            for pool in (*engine.pool.k, *engine.pool.v):
                pool[row.start : row.start + 40] = 9.0
    while engine.step():
        pass
    got = [[t.id for d in deltas[t] for t in d.tokens] for t in tickets]
    assert got == [[t.id for t in a.tokens] for a in want]


def test_a_row_that_reads_its_text_again_shares_nothing(tokenizer, parts):
    """After it had to give up its memory, it may feed a single token in the middle of what it shares."""
    engine = Engine(tiny("llama-gqa"), tokenizer, max_tokens=900)
    rows = [engine._rows[engine.submit(Request([*A, i], 30, GREEDY), lambda delta: None)] for i in range(3)]
    while not all(row.n_new for row in rows):
        engine.step()
    due, guesses = [Due(row, 1) for row in rows], [[], [], []]
    assert engine.passes._shared(due, guesses).keys() == {row.ticket for row in rows}
    rows[0].n = 5
    assert engine.passes._shared(due, guesses).keys() == {row.ticket for row in rows[1:]}
    assert not engine.passes._shared(due, [[], [7], []])  # a guess makes it two tokens


@pytest.mark.parametrize("scripted_too", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_attention_in_two_parts_is_attention(scripted_too, dtype, error):
    g = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(200, 2, 16, generator=g).to(dtype) for _ in range(2))
    q = (3 * torch.randn(3, 2, 4, 16, generator=g)).to(dtype)
    function = torch.jit.script(cascade_attention) if scripted_too else cascade_attention
    y = function(q, keys, values, [90, 120, 150], ends=[91, 150, 190], shared=10, n=70, scale=0.3)
    for i, (begin, end) in enumerate([(90, 91), (120, 150), (150, 190)]):
        at = [*range(10, 80), *range(begin, end)]
        k, v = keys[at].transpose(0, 1).double(), values[at].transpose(0, 1).double()
        want = (q[i].double() @ k.mT * 0.3).softmax(-1) @ v
        assert (y[i].double() - want).abs().max() <= error * max(1, want.abs().max())


class Prompt:
    """As much of a row as groups are made of."""

    def __init__(self, ticket, ids, key=None):
        self.ticket, self.prompt, self.key, self.start = ticket, torch.tensor(ids, dtype=torch.int32).numpy(), key, 5


def test_groups_share_what_saves_most():
    a, b = list(range(200)), list(range(300, 400))
    rows = [
        Prompt(0, [*a, 1]),
        Prompt(1, a + b),
        Prompt(2, b),
        Prompt(3, [*a[:70], 9]),  # would make the two others share 70
        Prompt(4, a + b + [2]),
        Prompt(5, a + b, key="another run"),
        Prompt(6, [*b[:63], 9]),  # too little
    ]
    found = alike.Alike()
    assert found.of(rows) == dict.fromkeys((0, 1, 4), Shared(5, 200))
    rows[0].start = rows[1].start = rows[4].start = 11  # the pool was packed
    assert found.of(rows) == dict.fromkeys((0, 1, 4), Shared(11, 200))
    assert found.of(rows[1:5]) == dict.fromkeys((1, 4), Shared(11, 300))
    assert found.of(rows[:1]) == found.of([]) == {}


def test_a_thousand_rows_are_grouped():
    rows = [Prompt(i, list(range(2000 - i))) for i in range(1500)]
    assert len(alike.Alike().of(rows)) > 1000


def test_windows_and_caps_are_left_as_they_are(tokenizer, parts, monkeypatch):
    """Their keys are not those of a whole text."""

    def unexpected(*args, **options):
        raise AssertionError("keys beyond a window were read")

    monkeypatch.setattr(attention, "cascade_attention", unexpected)
    monkeypatch.setattr(scripted, "scriptable", lambda block: False)
    monkeypatch.setattr(forward, "scriptable", lambda block: False)
    for kind in ("mistral", "gemma2"):
        answers = Engine(tiny(kind), tokenizer, max_tokens=900).complete([Request([*A, i], 3, GREEDY) for i in (1, 2)])
        assert not any(a.error for a in answers)
    assert parts


@pytest.mark.parametrize("scripted_too", [False, True])
def test_rows_of_as_many_keys_at_equal_distances_are_one_view(scripted_too):
    find, view = (torch.jit.script(f) if scripted_too else f for f in (stretch_end, stretch_of))
    pool = torch.randn(100, 2, 4)
    begins = [5, 15, 25, 40, 50, 60, 70, 20, 10, 10]
    ends = [9, 19, 29, 44, 54, 65, 75, 30, 20, 20]
    at, found = 0, []
    while at < len(begins):
        stop = find(begins, ends, at)
        found.append((at, stop))
        rows = view(pool, begins, ends, first=at, stop=stop)
        assert rows.untyped_storage().data_ptr() == pool.untyped_storage().data_ptr()
        want = [pool[begin:end].transpose(0, 1) for begin, end in zip(begins[at:stop], ends[at:stop], strict=True)]
        assert torch.equal(rows, torch.stack(want))
        at = stop
    assert found == [(0, 3), (3, 5), (5, 7), (7, 8), (8, 9), (9, 10)]


@pytest.mark.parametrize("kind", ["llama-gqa", "mistral", "gemma2", "gpt-oss"])
def test_answers_to_one_prompt_are_attended_to_at_once_and_are_what_each_is_alone(kind, tokenizer, monkeypatch):
    model, sizes = tiny(kind), []
    plain = attention._attend
    counted = lambda q, *rest, **more: sizes.append(q.size(0)) or plain(q, *rest, **more)  # noqa: E731
    monkeypatch.setattr(attention, "_attend", counted)
    requests = [Request(p, 24, Sampling(seed=10 * k + i)) for k, p in enumerate((B, B[:9])) for i in range(5)]
    for pack in (True, False):
        want = [Engine(model, tokenizer, max_tokens=100, pack=pack).complete([r])[0] for r in requests]
        sizes.clear()
        found = Engine(model, tokenizer, max_tokens=900, pack=pack).complete(requests)
        assert [[t.id for t in a.tokens] for a in found] == [[t.id for t in a.tokens] for a in want]
    assert max(sizes) >= 4
