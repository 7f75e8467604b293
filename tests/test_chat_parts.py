"""The parts of a chat: what was said, what the user types, and columns of a terminal."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.chat.columns import Columns, padded, wrapped
from lit_gpt.chat.conversation import Conversation, Said
from lit_gpt.chat.lines import message
from lit_gpt.chat.terminal import harmless, width
from lit_gpt.data.prepare.schemas import recognize

TEXTS = st.text(alphabet="ab \n\té🦙漢\u0301\u200b\x1b\x07\x9b", max_size=30)
SAYINGS = st.builds(Said, TEXTS, TEXTS, TEXTS, st.lists(st.integers(0, 9), max_size=3).map(tuple), st.booleans())


@given(TEXTS, st.lists(st.one_of(SAYINGS, st.sampled_from(["undo", "clear", "later"])), max_size=12))
def test_a_conversation_shows_what_was_said_from_some_question_on(system, steps):
    c, said, first = Conversation(system), [], 0
    for step in steps:
        if isinstance(step, Said):
            c.add(step)
            said.append(step)
        elif step == "undo":
            assert c.take_back() == (said.pop() if said else None)
        elif step == "clear":
            c.clear()
            said, first = [], 0
        else:  # as `Voice.fit` does where there is no room
            first = c.first = len(said)
        first = min(first, max(0, len(said) - (step == "undo"))) if step == "undo" else first
        assert c.said == said and 0 <= c.first <= len(said)
        turns = c.turns("next")
        assert [t.role for t in turns] == ["system"] * bool(system) + ["user", "assistant"] * (len(said) - c.first) + [
            "user"
        ]
        assert [t.text for t in turns if t.role == "assistant"] == [s.answer for s in said[c.first :]]
        for s in said:
            found = c.ids_of(s.written)
            assert found is None or any(found == other.ids and other.written == s.written for other in said)
    messages = c.row()["messages"]
    assert json.loads(json.dumps(messages)) == messages
    assert [m.get("weight", 1) for m in messages if m["role"] == "assistant"] == [
        int(s.is_whole and bool(s.answer.strip())) for s in said
    ]
    if said:
        (row,) = recognize(c.row(), "rows")(c.row(), "rows", "row 1")
        assert [t.text for t in row.turns if t.role == "user"] == [s.question for s in said] and not row.unused


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["one"], "one"),
        (["one\\", "two\\", "", "left"], "one\ntwo\n"),
        (['"""one"""', "left"], "one"),
        (['  """', "one", "", ' two"""', "left"], "one\n\n two"),
        (['"""one', "two"], "one\ntwo"),
        (["one\\"], "one"),
        (["\\"], ""),
        (['say """', "left"], 'say """'),
    ],
)  # fmt: skip
def test_a_message_has_as_many_lines_as_its_marks_say(lines, expected):
    left = list(lines)

    def read(prompt):
        if not left:
            raise EOFError
        return left.pop(0)

    assert message(read) == expected
    assert left == [line for line in lines if line == "left"]
    with pytest.raises(EOFError):
        left.clear()
        message(read)


@given(st.text())
def test_no_text_controls_the_terminal(text):
    shown = harmless(text)
    assert not [c for c in shown if (c < " " or "\x7f" <= c <= "\x9f") and c not in "\n\t"]
    assert "".join(c for c in text if c in shown) == shown


@given(TEXTS.map(lambda text: harmless(text).replace("\n", "").replace("\t", "")), st.integers(2, 9))
def test_lines_are_wrapped_within_the_width_and_lose_nothing_but_spaces(text, size):
    lines = wrapped(text, size)
    assert all(width(line) <= size for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(width(padded(line, size)) == size for line in lines)


@given(st.lists(st.tuples(st.integers(0, 1), TEXTS), max_size=8), st.integers(12, 40))
def test_columns_show_both_texts_whole_each_on_its_side(parts, total):
    shown = []
    columns = Columns(["left", "right"], total, shown.append, lambda title: title)
    for i, text in parts:
        columns.push(i, text)
    for i in range(2):
        columns.end(i)
    rows = [row for piece in shown[1:] for row in piece.removesuffix("\n").split("\n")]
    assert all(width(row) < total for row in rows)
    sides = [row.split("│") if "│" in row else [row, ""] for row in rows]
    for side in (0, 1):
        text = "".join(text for i, text in parts if i == side)
        assert "".join("".join(s[side] for s in sides).split()) == "".join(harmless(text).split())


def test_a_character_has_the_width_that_terminals_give_it():
    assert [width(text) for text in ("a", "é", "e\u0301", "漢字", "🦙", "\u200b", "", "\uff41")] == [
        1,
        1,
        1,
        4,
        2,
        0,
        0,
        2,
    ]


def test_the_history_is_where_the_user_keeps_state_and_private(tmp_path, monkeypatch):
    pytest.importorskip("readline")
    from lit_gpt.chat.lines import _Keyboard

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    said = iter(["one", "two\nlines", "  "])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    keyboard = _Keyboard()
    assert [keyboard("> ") for _ in range(3)] == ["one", "two\nlines", "  "]
    path = Path(tmp_path, "state", "lit-gpt", "chat_history")
    assert path.read_text() == "one\ntwo lines\n" and path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.write_text("".join(f"line {i}\n" for i in range(2500)))
    _Keyboard()
    assert path.read_text().splitlines() == [f"line {i}" for i in range(1500, 2500)]
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    said = iter(["one"])
    assert _Keyboard()("> ") == "one"  # there is no such place: it is forgotten
