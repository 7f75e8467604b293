"""A conversation of many turns is taught as short ones are, without being shown anew for each of its answers."""

import pytest
from chat_shapes import CHATML, SHAPES, Shape

from lit_gpt.errors import UserError
from lit_gpt.prompts import Turn, chat_template, open_style

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
    monkeypatch.setattr(chat_template, "_MANY", 10_000)
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
