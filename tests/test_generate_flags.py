"""What the flags of sampling do in the generate scripts, whichever code runs the model."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_tokenizer
from tiny import tiny

from lit_gpt.args import SamplingArgs
from lit_gpt.cli.values import convert
from lit_gpt.errors import UserError
from lit_gpt.generation.answer import print_completion, stream_compiled
from lit_gpt.generation.batching.draft import load_draft
from lit_gpt.generation.conversation import Asked
from lit_gpt.generation.engine import Engine, joined
from lit_gpt.generation.request import Request, Sampling
from lit_gpt.tokenizer import Tokenizer

FABRIC = SimpleNamespace(autocast=nullcontext)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    torch.manual_seed(0)
    return tiny("llama-gqa"), Tokenizer(folder)


def printed(place, capsys, *, stop_ids=frozenset(), compile=False, n=1, **flags):
    """Stdout of a completion, without its prompt."""
    model, tokenizer = place
    ids = tokenizer.encode("some words")
    torch.manual_seed(7)
    args = SamplingArgs(**{"max_new_tokens": 12, **flags})
    asked = Asked(ids, "some words", frozenset(stop_ids))
    print_completion(FABRIC, model, tokenizer, asked, args, echo=True, compile=compile, num_samples=n)
    out, err = capsys.readouterr()
    assert err.count("Time for inference: ") == n and err.endswith("tokens/sec\n")
    return out


def test_a_seed_gives_the_same_texts_and_each_sample_is_another(place, capsys):
    texts = printed(place, capsys, n=3, max_new_tokens=6)
    assert texts == printed(place, capsys, n=3, max_new_tokens=6)
    assert texts.startswith("some words") and len(set(texts.split("some words")[1:])) == 3


def test_stop_strings_stop_tokens_and_what_puts_them_off(place, capsys):
    model, tokenizer = place
    text = printed(place, capsys, temperature=0).removeprefix("some words").removesuffix("\n")
    (answer,) = Engine(model, tokenizer, max_tokens=99).complete(
        [Request(tokenizer.encode("some words"), 12, Sampling(temperature=0))]
    )
    assert answer.text == text
    stop = text[len(text) // 2 :][:2]
    assert printed(place, capsys, temperature=0, stop=(stop,)) == "some words" + text[: text.index(stop)] + "\n"
    ids = [t.id for t in answer.tokens]
    last = next(i for i in ids[4:] if i not in ids[:4])
    ended = printed(place, capsys, temperature=0, stop_ids={last})
    assert ended == "some words" + tokenizer.decode(ids[: ids.index(last)]) + "\n"
    assert printed(place, capsys, temperature=0, stop_ids={last}, ignore_eos=True) == "some words" + text + "\n"
    late = printed(place, capsys, temperature=0, stop_ids={last}, min_new_tokens=12)
    assert len(late) > len(ended) and late != "some words" + text + "\n"


@pytest.mark.parametrize("min_new_tokens", [0, 9])
def test_the_compiled_way_gives_what_the_engine_gives(place, min_new_tokens):
    model, tokenizer = place
    engine = Engine(model, tokenizer, max_tokens=200)
    for seed in range(6):
        sampling = Sampling(seed=seed, temperature=0.2, top_p=0.95, repetition_penalty=1.2, frequency_penalty=0.2)
        request = Request(
            tokenizer.encode("some words"),
            20,
            sampling,
            stop=("a", "o"),
            stop_ids=frozenset(range(seed * 9, seed * 9 + 20)),
            min_new_tokens=min_new_tokens,
        )
        (want,) = engine.complete([request])
        got = joined(list(stream_compiled(model, tokenizer, request, compile=False)))
        ended_by_token = isinstance(want.stop_reason, int)
        assert [t.id for t in got.tokens] == [t.id for t in want.tokens[: len(want.tokens) - ended_by_token]]
        assert got.text == want.text and got.finish == want.finish


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"top_p": 0.0}, "--top_p 0.0 must be more than 0"),
        ({"top_p": 1.5}, "--top_p 1.5 must be at most 1"),
        ({"min_p": -0.1}, "--min_p -0.1 must be at least 0"),
        ({"repetition_penalty": 0.0}, "--repetition_penalty 0.0 must be more than 0"),
        ({"min_new_tokens": 51}, "--min_new_tokens 51 is more than --max_new_tokens 50"),
    ],
)
def test_values_out_of_range_are_refused(flags, message):
    with pytest.raises(UserError) as e:
        SamplingArgs(**flags)
    assert str(e.value) == message


@pytest.mark.parametrize(
    ("written", "stop"),
    [("\n", ("\n",)), ('["\\n\\n", "Question:"]', ("\n\n", "Question:")), ("###", ("###",)), ('["a, b"]', ("a, b",))],
)
def test_stop_strings_may_be_white_space_and_have_commas(written, stop):
    assert convert(tuple[str, ...], written) == stop


def test_speculation_leaves_the_text_as_it_is_and_does_not_go_with_compiled_code(place, capsys):
    texts = {printed(place, capsys, speculate=s, temperature=0.4, max_new_tokens=20) for s in ("ngram", "none", None)}
    assert len(texts) == 1
    with pytest.raises(UserError, match="--compile true runs single tokens"):
        printed(place, capsys, speculate="ngram", compile=True)
    with pytest.raises(UserError, match="--draft_dir speculates, and --speculate none does not"):
        SamplingArgs(draft_dir=Path("x"), speculate="none")


def test_a_draft_of_another_tokenizer_is_refused(place, tmp_path):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    backend = json.loads(file.read_text())
    vocab = backend["model"]["vocab"]
    first, second = list(vocab)[20:22]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(backend))
    with pytest.raises(UserError, match=r"--draft_dir .* has another tokenizer: its token \d+ is "):
        load_draft(FABRIC, tmp_path, place[1])
