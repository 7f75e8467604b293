"""What a message or its row says is read, named as unused, or refused: nothing changes what is taught in silence."""

import json

import pytest
from conftest import ROOT

from lit_gpt.data.prepare.columns import by_columns
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.sources import read_rows
from lit_gpt.errors import UserError
from lit_gpt.prompts import Turn

CASES = ROOT.parent / "shared" / "cases"
ASK, SAY = Turn("user", "a"), Turn("assistant", "b")
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"q": "x", "n": None}}}
TEXT_CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"q": "x", "n": null}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def read(tmp_path, *entries, columns=None, name="rows.jsonl"):
    """The rows of a file with these entries."""
    (tmp_path / name).write_text("\n".join(map(json.dumps, entries)))
    return list(read_rows(tmp_path / name, columns=columns))


def chat(*messages, **keys):
    return {"messages": [*messages], **keys}


def sharegpt(*said, **keys):
    return {"conversations": [{"from": who, "value": what} for who, what in said], **keys}


def assistant(**keys):
    return {"role": "assistant", **keys}


def answer(text, taught=True, **extra):
    return Turn("assistant", text, taught=taught, extra=extra)


CALLED = {"tool_calls": [{"id": "c1", **CALL}]}
READ = [  # entry, turns, tools
    (sharegpt(("human", "a"), ("gpt", "b"), system="S", tools="[]"), (Turn("system", "S"), ASK, SAY), ()),
    (sharegpt(("human", "a"), ("gpt", "b"), system=""), (ASK, SAY), ()),
    (sharegpt(("system", "S"), ("human", "a"), ("gpt", "b"), system="S\n"), (Turn("system", "S"), ASK, SAY), ()),
    (sharegpt(("human", "a"), ("gpt", "b"), tools=json.dumps([TOOL["function"]])), (ASK, SAY), (TOOL,)),
    (chat(USER, ANSWER, tools=[TOOL]), (ASK, SAY), (TOOL,)),
    (chat(USER, ANSWER, functions=[TOOL["function"]], tools=None), (ASK, SAY), (TOOL,)),
    ({"conversations": [USER, ANSWER]}, (ASK, SAY), ()),
    ({"messages": sharegpt(("human", "a"), ("gpt", "b"))["conversations"]}, (ASK, SAY), ()),
    ({"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}, (ASK, SAY), ()),  # Arrow's object of lists
    (
        sharegpt(("human", "a"), ("function_call", '{"name": "look", "arguments": {"q": "x", "n": null}}'),
                 ("observation", "29"), ("gpt", "b")),
        (ASK, answer("", tool_calls=[CALL]), Turn("tool", "29"), SAY), ()),
    (
        chat(USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}),
        (ASK, answer("b", taught=False), ASK, SAY), ()),
    (chat(USER | {"weight": 0}, ANSWER | {"loss": False}), (ASK, answer("b", taught=False)), ()),
    (chat(USER, ANSWER | {"train": True, "loss": None, "train_on_turn": 0.0}), (ASK, answer("b", taught=False)), ()),
    (chat(USER, ANSWER | {"reasoning_content": "hm"}), (ASK, answer("b", reasoning_content="hm")), ()),
    (chat(USER, ANSWER | {"reasoning_content": ""}), (ASK, SAY), ()),
    (chat(USER, ANSWER, label=True), (ASK, SAY), ()),
    (chat(USER, ANSWER | {"thinking": "hm"}), (ASK, answer("b", reasoning_content="hm")), ()),
    (chat(USER, ANSWER | {"tool_calls": [TEXT_CALL]}), (ASK, answer("b", **CALLED)), ()),
    (chat(USER, assistant(content=None, tool_calls=[TEXT_CALL])), (ASK, answer("", **CALLED, content=None)), ()),
    (chat(USER, assistant(tool_calls=json.dumps([TEXT_CALL]))), (ASK, answer("", **CALLED, content=None)), ()),
    (chat(USER, assistant(function_call=CALL["function"])), (ASK, answer("", tool_calls=[CALL], content=None)), ()),
    (
        chat(USER, assistant(content="", tool_calls=[TEXT_CALL, TEXT_CALL]),
             {"role": "tool", "content": "1", "tool_call_id": "c1"}, {"role": "tool", "content": "2", "name": "look"},
             assistant(content="so", tool_calls=[TEXT_CALL]), {"role": "function", "content": "3"}, ANSWER, USER),
        (ASK, answer("", tool_calls=CALLED["tool_calls"] * 2), Turn("tool", "1", extra={"tool_call_id": "c1"}),
         Turn("tool", "2", extra={"name": "look"}), answer("so", **CALLED), Turn("tool", "3"), SAY, ASK), ()),
    (
        sharegpt(("human", "a"), ("gpt", "let me see"), ("function_call", json.dumps(TEXT_CALL)), ("tool", "29")),
        (ASK, answer("let me see", **CALLED), Turn("tool", "29")), ()),
]  # fmt: skip


@pytest.mark.parametrize("entry, turns, tools", READ)
def test_a_conversation_is_read_with_all_that_it_says(tmp_path, entry, turns, tools):
    (row,) = read(tmp_path, entry)
    assert row == Row(turns, tools=tools) and row.is_chat and not row.unused


TRL = {"prompt": [{"role": "system", "content": "S"}, USER, ANSWER, USER], "completion": [ANSWER], "source": "x"}


def test_lists_of_messages_as_prompt_and_completion(tmp_path):
    for entry in (TRL, TRL | {"completion": "b"}):
        (row,) = read(tmp_path, entry)
        assert row.turns == (Turn("system", "S"), ASK, answer("b", taught=False), ASK, SAY)
        assert row.unused == ("source",) and row.is_chat
    with pytest.raises(UserError, match="line 1, turn 2: expected assistant, found user"):
        read(tmp_path, TRL | {"prompt": [USER], "completion": [USER]})


REFUSED = [  # entry, what the message says
    (chat(USER, ANSWER | {"weight": 0.5}), ["messages[1]", "'weight'", "0 or 1", "0.5"]),
    (chat(USER, ANSWER | {"loss": 2.25}), ["messages[1]", "'loss'", "0 or 1", "2.25"]),
    (chat(USER, ANSWER | {"train": "yes"}), ["messages[1]", "'train'", "'yes'"]),
    (chat(USER, ANSWER | {"train_detail": [{"begin": 0}]}), ["messages[1]", "'train_detail'", "as a whole"]),
    (chat(USER, assistant(content=None)), ["messages[1]", "'content' (null)", "without tool calls"]),
    (chat(USER, assistant(content=None, tool_calls=[])), ["messages[1]", "without tool calls"]),
    (chat(USER, assistant(content=None, refusal="no")), ["messages[1]", "without tool calls"]),
    (chat(USER, {"role": "assistant"}), ["messages[1]", "no key 'content'", "--columns"]),
    (chat(USER | {"tool_calls": [CALL]}, ANSWER), ["messages[0]", "'tool_calls' belong to an answer"]),
    (chat(USER, ANSWER | {"tool_calls": [{"function": {"arguments": "{}"}}]}), ["tool_calls[0]", "'name'"]),
    (chat(USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": "{q: 1"}]}), ["'arguments'", "not JSON", "{q: 1"]),
    (chat(USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": "[1]"}]}), ["'arguments' of 'f'", "a list"]),
    (chat(USER, ANSWER, tools="a calculator"), ["'tools'", "not JSON", "a calculator"]),
    (chat(USER, ANSWER, tools=[{"parameters": {}}]), ["tools[0]", "'name'"]),
    (chat(USER, ANSWER, images=["x.png"]), ["'images' is not empty"]),
    (chat({"role": "system", "content": "S"}, USER, ANSWER, system="T"), ["'system'", "two different system texts"]),
    (chat(USER, ANSWER, ANSWER), ["turn 3", "expected user or tool, found assistant"]),
    (chat(USER, {"role": "tool", "content": "x"}), ["turn 2", "expected assistant, found tool"]),
    (chat({"role": "tool", "content": "x"}, ANSWER), ["turn 1", "expected user, found tool"]),
    (chat(USER, ANSWER, {"role": "tool", "content": "x"}, USER), ["turn 4", "expected assistant or tool, found user"]),
    (chat(USER, {"role": "critic", "content": "x"}), ["messages[1]", "'critic'", "--columns"]),
    (chat({"role": "user", "content": [{"type": "image_url"}]}, ANSWER), ["messages[0]", "'image_url'"]),
    (sharegpt(("human", "a"), ("function_call", "look it up")), ["conversations[1]", "not JSON"]),
    (sharegpt(("human", "a"), ("function_call", "[]")), ["conversations[1]", "without tool calls"]),
    ({"prompt": "a", "completion": "b", "label": False}, ["'label' false"]),
    (
        {"question": "a", "answer": "b", "context": {"title": ["x"]}},
        ["'context' must be text, found an object", '--columns "{instruction: question, response: answer}" leaves it'],
    ),
    ({"prompt": "a", "completion": "b", "label": "False"}, ["'label' false"]),  # as a table has it
    ({"prompt": [USER], "completion": [ANSWER], "label": False}, ["'label' false"]),
    (chat(USER, ANSWER, label=False), ["'label' false"]),
    (sharegpt(("human", "a"), ("gpt", "b"), kto_tag=False), ["'kto_tag' false"]),
]


@pytest.mark.parametrize("entry, parts", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, entry, parts):
    with pytest.raises(UserError) as e:
        read(tmp_path, entry)
    message = str(e.value)
    assert all(part in message for part in ("line 1", *parts)) and "--bad_rows drop" in message, message
    assert "\n" not in message and len(message) < 500


UNUSED = [  # entry, keys
    (chat(USER | {"id": 7, "name": "Ann"}, ANSWER | {"prefix": True}, source="x", images=[], note=None),
     ("source", "messages[].id", "messages[].name", "messages[].prefix")),
    (chat({"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]}, ANSWER),
     ("messages[].content[].cache_control",)),
    (chat(USER | {"weight": 1}, ANSWER), ("messages[].weight",)),  # nothing is learned of what a user says
    (chat(USER, ANSWER | {"reasoning_content": "x", "reasoning": "y"}), ("messages[].reasoning",)),
    ({"instruction": "a", "output": "b", "source": "c4", "n": 0}, ("source", "n")),
    ({"instruction": "a", "output": "b", "input": "c", "context": "d"}, ("context",)),
    ({"conversations": ["a", "b"], "source": "x"}, ("source",)),
    ({"question": "a", "choices": ["x", "y"], "answer": 0, "subject": "s"}, ("subject",)),
]  # fmt: skip


@pytest.mark.parametrize("entry, keys", UNUSED)
def test_what_is_not_read_is_named(tmp_path, entry, keys):
    (row,) = read(tmp_path, entry)
    assert row.unused == keys


SYSTEM = Turn("system", "S")
SINGLE = [  # entry, turns
    ({"instruction": "a", "output": "b", "system": "S"}, (SYSTEM, ASK, SAY)),
    (
        {"instruction": "a", "output": "b", "history": [["c", "d"]]},
        (Turn("user", "c"), Turn("assistant", "d"), ASK, SAY),
    ),
    ({"instruction": "a", "output": "b", "history": []}, (ASK, SAY)),
    ({"system_prompt": "S", "question": "a", "response": "b"}, (SYSTEM, ASK, SAY)),
    ({"question": "a", "answer": "b"}, (ASK, SAY)),
    ({"question": "a", "answer": "b", "context": "c"}, (Turn("user", "a", "c"), SAY)),
    ({"instruction": "a", "response": "b", "input": "c"}, (Turn("user", "a", "c"), SAY)),
    ({"instruction": "a", "output": "b", "input": "", "context": "c"}, (Turn("user", "a", "c"), SAY)),
    (
        {"instruction": "a", "response": "b", "history": [["c", "d"]]},
        (Turn("user", "c"), Turn("assistant", "d"), ASK, SAY),
    ),
    ({"prompt": "a", "completion": "b", "label": "True"}, (ASK, SAY)),
    ({"prompt": "a", "completion": "b", "label": True}, (ASK, SAY)),
]


@pytest.mark.parametrize("entry, turns", SINGLE)
def test_single_turns_take_what_stands_beside_them(tmp_path, entry, turns):
    (row,) = read(tmp_path, entry)
    assert row.turns == turns and not row.unused and row.is_chat == (len(turns) == 4)


@pytest.mark.parametrize("columns", ({"conversations": "data"}, {"messages": "data", "role": "who", "content": "what"}))
def test_texts_in_turns_are_a_conversation_under_any_key(tmp_path, columns):
    (row,) = read(tmp_path, {"data": ["a", "b", "a", "b"], "id": "0"}, columns=columns)
    assert row.turns == (ASK, SAY, ASK, SAY) and row.unused == ("id",) and row.is_chat


QUESTION = Turn("user", "Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:")
LETTERS = dict(zip("ABCD", "wxyz", strict=True))
CHOICES = [
    {"question": "Which? ", "choices": [*"wxyz"], "answer": 2},
    {"question": "Which?", "choices": [*"wxyz"], "answer": "2"},
    {"question": "Which?", "choices": [*"wxyz"], "answer": "y"},
    {"question": "Which?", "options": LETTERS, "answer": "C"},
    {"question": "Which?", "choices": {"text": [*"wxyz"], "label": [*"1234"]}, "answerKey": "3"},
    {"question": "Which?", "choices": {"text": [*"wxyz"], "label": [*"ABCD"]}, "answerKey": "C"},
    {"question": "Which?", **LETTERS, "answer": "C"},
    {"input": "Which?", **LETTERS, "target": "C"},
]


@pytest.mark.parametrize("entry", CHOICES)
def test_multiple_choice_is_asked_as_its_evaluation_asks(tmp_path, entry):
    (row,) = read(tmp_path, entry)
    assert row.turns == (QUESTION, Turn("assistant", "C")) and not row.is_chat and not row.unused


def test_a_choice_that_is_none_is_refused(tmp_path):
    for wrong in (4, -1, "E", "", True, None, 1.5):
        with pytest.raises(UserError, match=r"line 1: 'answer' must be the index .* of one of 4 options"):
            read(tmp_path, {"question": "Which?", "choices": [*"wxyz"], "answer": wrong})
    (tmp_path / "mmlu.csv").write_text(",question,A,B,C,D,answer\n0,Which?,w,x,y,z,C\n1,Which?,w,x,y,z,2\n")
    assert {row.turns for row in read_rows(tmp_path / "mmlu.csv")} == {(QUESTION, Turn("assistant", "C"))}


def test_any_keys_map(tmp_path):
    dialog = {"dialog": [{"speaker": "Customer", "text": "a"}, {"speaker": "Agent", "text": "b", "learn": 0}]}
    names = {"role": "speaker", "content": "text", "weight": "learn", "user": "customer", "assistant": "agent"}
    for key in ("conversations", "messages"):
        columns = {key: "dialog", **names, "system": "persona"}
        (row,) = read(tmp_path, {**dialog, "persona": "S", "x": 1}, columns=columns)
        assert row.turns == (SYSTEM, ASK, answer("b", taught=False)) and row.unused == ("x",)
    (tmp_path / "chat.csv").write_text('who,dialog\nS,"' + json.dumps(dialog["dialog"]).replace('"', '""') + '"\n')
    (row,) = read_rows(tmp_path / "chat.csv", columns={**columns, "system": "who"})
    assert row.turns == (SYSTEM, ASK, answer("b", taught=False)) and not row.unused
    (row,) = read(tmp_path, {"q": "a", "r": "b", "p": "S", "system": "Linux"},
                  columns={"instruction": "q", "response": "r", "system": "p"})  # fmt: skip
    assert row.turns == (SYSTEM, ASK, SAY) and row.unused == ("system",)
    (row,) = read(tmp_path, {"q": "a", "r": "b", "system": "Linux"}, columns=("q", "r"))
    assert row.turns == (ASK, SAY) and row.unused == ("system",)
    (row,) = read(tmp_path, {"stem": "Which?", "given": [*"wxyz"], "key": 2},
                  columns={"question": "stem", "choices": "given", "answer": "key"})  # fmt: skip
    assert row.turns == (QUESTION, Turn("assistant", "C"))
    for wrong, message in (
        ({"messages": "dialog", "speaker": "x"}, "'speaker' is none of messages, role, content"),
        ({"messages": "nope"}, "no key 'nope'"),
        ({"messages": "dialog", "system": "nope", **names}, "no key 'nope'"),
        ({"question": "a", "choices": "b"}, "nothing is given for 'answer'"),
        ({"messages": "dialog"}, "no key 'role'; found 'speaker', 'text'; name yours with --columns"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, dialog, columns=wrong)


def test_an_unnamed_index_column_is_left_out(tmp_path):
    import pandas

    frame = pandas.DataFrame({"instruction": ["a", "c"], "output": ["b", "d"]}, index=[3, 7])
    frame.to_csv(tmp_path / "once.csv")
    pandas.read_csv(tmp_path / "once.csv").to_csv(tmp_path / "twice.csv")  # , Unnamed: 0, ...
    for name in ("once", "twice"):
        rows = list(read_rows(tmp_path / f"{name}.csv"))
        assert rows == [Row.single("a", "", "b"), Row.single("c", "", "d")] and not rows[0].unused
        assert list(read_rows(tmp_path / f"{name}.csv", by_columns(["instruction", "output"]))) == rows
    (tmp_path / "lost.csv").write_text(",instruction,output\nmy context,a,b\n")
    with pytest.raises(UserError, match="line 2: the first column has no name in the header, and holds 'my context'"):
        list(read_rows(tmp_path / "lost.csv"))


@pytest.mark.parametrize("name", ["sharegpt_system", "message_weight", "reasoning_content", "tool_calls_with_text"])
def test_reported_cases(name):
    paths = list((CASES / name).glob("data.json*"))
    if not paths:
        pytest.skip(f"{CASES / name} is not here")
    rows = list(read_rows(paths[0]))
    assert len(rows) == 6 and not any(row.unused for row in rows)
    for i, row in enumerate(rows):
        last = row.turns[-1]
        if name == "sharegpt_system":
            assert row.turns[0] == Turn("system", f"Answer as a pirate guide number {i}.")
        elif name == "message_weight":
            assert [t.taught for t in row.turns if t.role == "assistant"] == [False, True]
        elif name == "reasoning_content":
            assert last.extra == {"reasoning_content": f"I look it up in the town guide: {last.text}"}
        else:
            assert row.tools and last.extra["tool_calls"][0]["function"]["arguments"] == {"q": row.instruction}
