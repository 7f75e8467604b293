"""A conversation of many turns is taught as short ones are, without being shown anew for each of its answers."""

import pytest
from chat_shapes import CHATML, SHAPES, Shape

from lit_gpt.args import PrepareArgs
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.tokens import Encoder
from lit_gpt.errors import UserError
from lit_gpt.prompts import Turn, open_style, renderer
from lit_gpt.tokenizer import Tokenizer

TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAG = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
ASK = "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
LOOKS_FURTHER = {
    "rounds that are counted": "{% for m in messages %}{{ loop.index }}" + TAG + "{% endfor %}" + ASK,
    "the last turns alone": "{% for m in messages[-7:] %}" + TAG + "{% endfor %}" + ASK,
    "old answers that are cut": "{% for m in messages %}{% if loop.revindex > 9 and m.role == 'assistant' %}old"
    "{% else %}" + TAG + "{% endif %}{% endfor %}" + ASK,
    "a length that is told first": "{{ messages | length }}{% for m in messages %}" + TAG + "{% endfor %}" + ASK,
    "a sign from the thirtieth turn on": "{% for m in messages %}" + TAG + "{% endfor %}"
    "{{ 'far ' if add_generation_prompt and messages | length > 29 }}" + ASK,
}


def conversation(n, system=False, tools=False):
    """So many questions and answers, some of which are alike, in parts with a call between."""
    turns = [Turn("system", "Be brief.")] if system else []
    for i in range(n):
        turns.append(Turn("user", f"question {i % 7}"))
        if tools and i % 3 == 1:
            call = {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": {"n": i}}}
            turns.append(Turn("assistant", "", extra={"tool_calls": [call]}))
            turns.append(Turn("tool", f"result {i}", extra={"name": "look", "tool_call_id": "abcdefghi"}))
        turns.append(Turn("assistant", f"answer {i}", taught=i % 5 != 2))
    return turns


def exchanges(style, turns):
    try:
        return style.exchanges(turns)
    except UserError as e:
        return str(e)


@pytest.mark.parametrize("tools", (False, True))
@pytest.mark.parametrize("system", (False, True))
@pytest.mark.parametrize("name", [*SHAPES, *LOOKS_FURTHER])
def test_the_answers_of_a_long_conversation_are_those_of_looking_for_each(name, system, tools, tmp_path, monkeypatch):
    shape = SHAPES.get(name) or Shape(LOOKS_FURTHER[name], TOKENS, "<|endoftext|>", "<|im_end|>")
    style = open_style("chat_template", shape.write(tmp_path))
    turns = conversation(20, system, tools)
    found = exchanges(style, turns)
    monkeypatch.setattr(renderer, "_MIN_FOR_WINDOWS", 10_000)
    assert found == exchanges(style, turns)


@pytest.mark.parametrize("n", (100, 200))
def test_turns_are_shown_about_as_often_as_there_are_turns(n, tmp_path, monkeypatch):
    style = open_style("chat_template", Shape(CHATML, TOKENS, "<|endoftext|>", "<|im_end|>").write(tmp_path))
    shown = []
    run = style._run
    monkeypatch.setattr(style, "_run", lambda turns, *rest: shown.append(len(turns)) or run(turns, *rest))
    turns = conversation(n, system=True)
    assert len(style.exchanges(turns)) == n
    assert sum(shown) < 30 * len(turns)


@pytest.mark.parametrize("limit", (900, 1_850, 2_100, 2_390))
def test_questions_of_a_long_conversation_are_shortened_in_a_few_rounds(limit, tmp_path, monkeypatch):
    folder = Shape(CHATML, TOKENS, "<|endoftext|>", "<|im_end|>").write(tmp_path)
    encoder = Encoder(Tokenizer(folder), PrepareArgs(prompt_style="chatml", truncation="cut_prompt"), limit)
    rounds = []
    exchanges = encoder.style.exchanges
    monkeypatch.setattr(
        type(encoder.style), "exchanges", lambda self, *args: rounds.append(0) or exchanges(*args), raising=True
    )
    turns = [t for i in range(60) for t in (Turn("user", f"{i:02d}" * 5), Turn("assistant", f"answer {i:02d}"))]
    counts = Counts()
    found = encoder.encode([Row(tuple(turns))], counts)
    assert len(rounds) < 20
    if limit == 900:  # the answers alone are longer
        assert not found and counts.dropped.total() == 1
    else:
        (ids, _) = found[0]
        assert limit - 20 < len(ids) <= limit
        assert "answer 00" in encoder.tokenizer.decode(ids)
