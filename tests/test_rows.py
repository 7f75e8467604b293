"""Rows come out of every published schema, and what is wrong with a file is said in one line with its place."""

import gzip
import json

import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.data.prepare import entries, schemas
from lit_gpt.data.prepare.columns import by_columns
from lit_gpt.data.prepare.download import FLAN_SUBSETS, PUBLISHED, flan_files, locate, verify
from lit_gpt.data.prepare.entries import read_objects
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.sources import read_rows
from lit_gpt.errors import UserError
from lit_gpt.prompts import Turn

CHAT = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
NODE = {"message_id": "1", "lang": "en", "deleted": False, "review_result": True}


def node(role, text, *replies, **fields):
    """A message of OpenAssistant's export."""
    return {**NODE, "role": role, "text": text, "replies": list(replies), **fields}


TREE = {
    "message_tree_id": "1",
    "tree_state": "ready_for_export",
    "prompt": node(
        "prompter",
        "q",
        node("assistant", "second", rank=1),
        node("assistant", "first", node("prompter", "q2", node("assistant", "a2", rank=0)), rank=0),
        node("assistant", "gone", rank=2, deleted=True),
        node("assistant", "bad", rank=3, review_result=False),
        node("assistant", "asked", node("prompter", "q3"), node("prompter", "q4"), rank=None),
    ),
}
FIXTURES = [  # entry as published, rows
    ({"instruction": "i", "input": "c", "output": "r"}, [Row.single("i", "c", "r")]),
    ({"instruction": "i", "output": "r"}, [Row.single("i", "", "r")]),
    ({"instruction": "i", "input": None, "output": "r"}, [Row.single("i", "", "r")]),
    ({"instruction": "i", "context": "c", "response": "r", "category": "open_qa"}, [Row.single("i", "c", "r")]),
    ({"prompt": "i", "completion": "r"}, [Row.single("i", "", "r")]),
    ({"inputs": "i", "targets": "r", "task": "coqa"}, [Row.single("i", "", "r")]),
    ({"input": "i", "output": "r", "source": "c4", "subset": "x"}, [Row.single("i", "", "r")]),
    (
        {"id": "s", "instruction": "i", "instances": [{"input": "c", "output": "r"}, {"input": "", "output": "s"}]},
        [Row.single("i", "c", "r"), Row.single("i", "", "s")],
    ),
    ({"conversations": ["a", "b", "c", "d"], "source": "multi_turn"}, [Row(CHAT)]),
    (
        {
            "id": "x",
            "conversations": [{"from": f, "value": v} for f, v in zip(("human", "gpt") * 2, "abcd", strict=True)],
        },
        [Row(CHAT)],
    ),
    (
        {"messages": [{"role": "system", "content": "s"}, *({"role": t.role, "content": t.text} for t in CHAT)]},
        [Row((Turn("system", "s"), *CHAT))],
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": "b"},
            ]
        },
        [Row(CHAT[:2])],
    ),
    (TREE, [Row((Turn("user", "q"), Turn("assistant", "first"), Turn("user", "q2"), Turn("assistant", "a2")))]),
]


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("entry, rows", FIXTURES)
def test_every_published_schema_is_recognised(tmp_path, entry, rows, lines):
    path = tmp_path / "rows.json"
    both = [entry, entry]
    path.write_text("\n\n".join(map(json.dumps, both)) if lines else json.dumps(both, indent=1))
    assert list(read_rows(path)) == rows * 2
    with gzip.open(tmp_path / "rows.json.gz", "wt") as file:
        file.write(path.read_text())
    assert list(read_rows(tmp_path / "rows.json.gz")) == rows * 2


def test_schemas_that_a_script_names():
    chat = {"conversations": ["a", "b", "c", "d"]}
    assert schemas.lima_first(chat, "f", "p") == [Row(CHAT[:2])] and schemas.lima(chat, "f", "p") == [Row(CHAT)]
    assert schemas.alpaca_libre({"instruction": "i", "input": "<noinput>", "output": "r"}, "f", "p")[0].context == ""
    paths = [[t.text for t in row.turns] for row in schemas.Trees("all")(TREE, "f", "p")]
    assert paths == [["q", "second"], ["q", "first", "q2", "a2"], ["q", "asked"]]
    assert schemas.Trees("best", "de")(TREE, "f", "p") == []
    assert len(FLAN_SUBSETS) == 66 and flan_files("coqa", "test")[0][1] == "coqa_10templates_test.jsonl"
    for subsets, message in (("coqa, coqaa", "no 'coqaa'"), (" ,", "names none")):
        with pytest.raises(UserError, match=message):
            flan_files(subsets, "train")


def test_keys_of_the_users_own(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"q": "i", "a": "r", "about": "c"}')
    wanted = {"instruction": "q", "response": "a", "context": "about"}
    (row,) = read_rows(tmp_path / "q.jsonl", columns=wanted)
    assert row == Row.single("i", "c", "r") and row.where == f"{tmp_path / 'q.jsonl'}, line 1"
    for columns, message in (
        ({"instruction": "q"}, "nothing is given for 'response'"),
        (wanted | {"answer": "x"}, "'answer' is none of"),
        (wanted | {"context": "x"}, "no key 'x'; found 'q', 'a', 'about'"),
    ):
        with pytest.raises(UserError, match=message):
            list(read_rows(tmp_path / "q.jsonl", columns=columns))
    (tmp_path / "q.csv").write_text('question;answer;x\n"two\nlines; and";yes;\n\nb;"say ""c""";z\n')
    parse = by_columns(["question", "answer"])
    rows = list(read_rows(tmp_path / "q.csv", parse))
    assert rows == [Row.single("two\nlines; and", "", "yes"), Row.single("b", "", 'say "c"')]
    assert [r.location for r in rows] == ["line 2", "line 5"]


def turns(*roles):
    return json.dumps({"messages": [{"role": r, "content": "x"} for r in roles]})


GOOD = '{"instruction": "a", "output": "b"}'
GZIPPED = gzip.compress(GOOD.encode(), mtime=0)  # the same bytes, which name a test, in each process
FLIPPED = bytearray(GZIPPED)
FLIPPED[12] ^= 255
TO_COMPLETE = '{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}'
BAD = [  # name, bytes, what the message says
    ("x.jsonl", f"{GOOD}\n" + GOOD[:-4], ["line 2", "column", "is the file cut?"]),
    ("x.json", f"[{GOOD},\n{GOOD[:-9]}", ["entry 2", "line 2", "is the file cut?"]),
    ("x.json", f"[{GOOD},\n{GOOD[:-1]}", ["entry 2", "line 2", "is the file cut?"]),
    ("x.json", f"[{GOOD},\n{GOOD[:-3]}", ["entry 2", "line 2", "never ends"]),
    ("x.json", f"[{GOOD}\n", ["after entry 1", "the end of the file"]),
    ("x.json", f"[{GOOD}\n{GOOD}]", ["line 2", "expected ',' or ']' after entry 1"]),
    ("x.json", f"[{GOOD}]\n{GOOD}", ["line 2", "nothing after the list"]),
    ("x.json", f"[{GOOD},]", ["entry 2", "not valid JSON"]),
    ("x.json", "{\n" + GOOD[1:], ["line 1", "an object over several lines"]),
    ("x.json", f"[{GOOD},\n" + '{"instruction": "é"}]', ["line 2", "0xe9 is not UTF-8"]),
    ("x.jsonl", f"{GOOD}\n" + '{"instruction": "é"}', ["line 2", "0xe9 is not UTF-8"]),
    ("x.jsonl", f"{GOOD}\n\0", ["line 2", "zero"]),
    ("x.json", f"[{GOOD},\n\0", ["line 2", "zero"]),
    ("x.jsonl", "\ufeff" + GOOD.replace('"a"', "5"), ["line 1", "'instruction'", "must be text", "the number 5"]),
    ("x.jsonl", GOOD.encode("utf-16"), ["UTF-16"]),
    ("x.json", "PAR1...", ["a Parquet file"]),
    ("x.json", "<!DOCTYPE html><html>", ["a web page"]),
    ("x.json", b"\x1f\x8b\x08\x00\x00", ["damaged or cut"]),
    ("x.json", GZIPPED[:-9], ["damaged or cut"]),
    ("x.json", FLIPPED, ["damaged or cut"]),
    ("x.jsonl", "[" * 100_000, ["nested too deep"]),
    ("x.jsonl", GOOD.replace('"a"', "9" * 5000), ["line 1", "a number of too many digits"]),
    ("x.json", f"[{GOOD.replace(chr(34) + 'a' + chr(34), '9' * 5000)}]", ["entry 1", "a number of too many digits"]),
    ("x.jsonl", GOOD.replace('"a"', r'"\ud83d"'), ["half a character", r"\ud83d"]),
    ("x.jsonl", turns("user", "user", "assistant"), ["line 1", "turn 2", "expected assistant, found user"]),
    ("x.jsonl", turns("assistant", "user"), ["turn 1", "expected user, found assistant"]),
    ("x.jsonl", turns("user", "system"), ["turn 2", "expected assistant, found system"]),
    ("x.jsonl", turns("user", "tool"), ["line 1", "turn 2", "expected assistant, found tool"]),
    ("x.jsonl", turns(), ["at least one turn"]),
    ("x.jsonl", turns("user").replace('"x"', "null"), ["messages[0]", "'content'", "null"]),
    (
        "x.jsonl",
        f"{TO_COMPLETE}\n" + TO_COMPLETE.replace("completion", "complation"),
        ["line 2", "no key 'completion'"],
    ),
    ("x.jsonl", '{"conversations": "hi"}', ["'conversations' must be a list", "text"]),
    ("x.jsonl", '{"text": "hi"}', ["instruction+output", "found 'text'", "--columns"]),
    ("x.jsonl", f"{GOOD}\n" + '{"text": "hi"}', ["line 2", "no key 'instruction'", "'text'"]),
    ("x.csv", "instruction,output\na,b\na,b,c\n", ["line 3", "expected 2 columns", "found 3"]),
    ("x.csv", "instruction,output\na,b\na\n", ["line 3", "expected 2 columns", "found 1"]),
    ("x.csv", 'instruction,output\na,"b\nc,d\n', ["line 2", "not valid CSV"]),
    ("x.csv", "instruction,instruction\na,b\n", ["a name of its own"]),
    ("x.csv", "instruction,output\n", ["has no rows"]),
    ("x.csv", "instruction,input,answer\na,b,c\n", ["expected the keys", "--columns"]),
    ("x.csv", "instruction,output\na,\0\n", ["line 2", "zero"]),
    ("x.csv", "<html>", ["a web page"]),
    ("x.csv", "\nx", ["a header"]),
]


@pytest.mark.parametrize("name, content, parts", BAD)
def test_bad_input_is_named_in_one_line_with_place_found_and_expected(tmp_path, name, content, parts):
    if isinstance(content, str):
        content = content.encode("latin-1" if "é" in content else "utf-8")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as e:
        list(read_rows(tmp_path / name))
    message = str(e.value)
    assert all(part in message for part in (name, *parts)), message
    assert "\n" not in message and len(message) < 500


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text(f'[{{"instruction": "{"a" * (1 << 20)}\0"')
    with pytest.raises(UserError, match="line 1: found a zero byte"):
        list(read_rows(tmp_path / "x.json"))
    monkeypatch.setattr(entries, "MAX_ENTRY", 10**6)
    long = json.dumps({"instruction": "a" * 10**7, "output": "b"})
    for text, message in ((f"{GOOD}\n{long}", "line 2"), (f"[{GOOD}, {long}]", "entry 2"), (f"[{long}", "entry 1")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=rf"{message}\b.*longer than 1,000,000"):
            list(read_rows(tmp_path / "x.json"))
    many = [json.loads(GOOD)] * 200_000  # one line of 7 MB, but of many entries
    (tmp_path / "x.json").write_text(json.dumps(many))
    assert sum(1 for _ in read_rows(tmp_path / "x.json")) == 200_000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=6), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_a_list_is_read_in_pieces_as_json_reads_it_whole(tmp_path_factory, values, piece, indent, ascii_only):
    """Pieces of any size, ending anywhere: within a number, an escape, a character."""
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with open(path, "rb") as file:

        class Slow:
            def read(self, n):
                return file.read(piece)

        got = [value for _, value in entries.list_entries(entries.Text(path, Slow()))]
    assert got == values
    assert [value for _, value in read_objects(path)] == values


def test_a_download_is_compared_with_the_published_file(tmp_path):
    name = "databricks-dolly-15k.jsonl"
    path = tmp_path / name
    path.write_text("{}")
    with pytest.raises(UserError, match="gave 2 bytes, expected 13,085,339"):
        verify(path, f"https://host/{name}?download=true")
    path.write_bytes(bytes(PUBLISHED[name].n_bytes))
    with pytest.raises(UserError, match="another file than the published one"):
        verify(path, f"https://host/{name}")
    with pytest.raises(UserError, match="there is no file"):
        locate(tmp_path / "no.json", "", "", tmp_path)


@pytest.mark.parametrize(
    "name, n_rows, n_turns",
    [
        ("alpaca_libre.json", 3097, 2),
        ("dolly_6400.jsonl", 6400, 2),
        ("self_instruct_seed_tasks.jsonl", 175, 2),
        ("oasst_en_100_trees.jsonl", 100, None),
        ("sharegpt_500.json", 500, None),
    ],
)
def test_real_files_are_read_whole(name, n_rows, n_turns):
    path = SHARED / "instruct" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    rows = list(read_rows(path))
    assert len(rows) == n_rows and all(len(r.turns) == n_turns for r in rows if n_turns)
    assert all(t.text for r in rows for t in r.turns if t.role == "user")
