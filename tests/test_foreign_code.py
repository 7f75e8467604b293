"""Tokenizers and chat templates run within limits of time and memory, and damaged ones are refused in one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from campaigns import campaign_of
from chat_shapes import CHATML, SHAPES, Shape
from conftest import write_tokenizer
from damage import flipped, mutated, outcome_of, with_content

from lit_gpt.args import PrepareArgs
from lit_gpt.data.prepare import beginnings
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.sources import read_entries
from lit_gpt.data.prepare.tokens import Encoder
from lit_gpt.errors import UserError
from lit_gpt.foreign import LimitError, Limits, Remote
from lit_gpt.prompts import Turn, hosted, open_style
from lit_gpt.tokenizer import Tokenizer

TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MUCH = Limits(20, 2**29)
LONG_LOOP = "{% for i in range(90000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}"
"""A loop that takes many seconds, and ends."""


def folder_with(template, folder):
    return Shape(template, TOKENS, "<|endoftext|>", "<|im_end|>").write(folder)


@pytest.mark.parametrize(
    ("factory", "args", "limits", "says"),
    (
        ("time:sleep", (5,), Limits(0.1, 2**29), "the thing takes more than 0 s when it is loaded"),
        ("builtins:bytearray", (2**28,), Limits(20, 2**26), "the thing takes more than 0.1 GB of memory"),
        ("os:abort", (), MUCH, r"the thing ends the process that runs it \(SIGABRT"),
        ("os:_exit", (3,), MUCH, r"the thing ends the process that runs it \(exit code 3\)"),
    ),
)
def test_what_exceeds_its_limits_or_ends_its_process_is_named_and_others_go_on(factory, args, limits, says, tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.encode("the end")
    with pytest.raises(LimitError, match=says):
        Remote("the thing", factory, *args, limits=limits)
    assert tokenizer.encode("the end") == ids


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system does not tell a process's time")
def test_a_process_that_does_not_get_the_processor_has_its_time_by_the_processor():
    Remote("the thing", "time:sleep", 1.5, limits=Limits(0.5, 2**29))
    with pytest.raises(LimitError, match="takes more than 0 s"):
        Remote("the thing", "builtins:sum", range(2**40), limits=Limits(0.5, 2**29))


def test_relative_paths_are_those_of_the_process_that_asks(tmp_path, monkeypatch):
    """Also after it has gone to another folder, and after a limit has ended the process for foreign code."""
    for name in ("one", "two"):
        (tmp_path / name / "tiny").mkdir(parents=True)
        write_tokenizer(tmp_path / name / "tiny")
        monkeypatch.chdir(tmp_path / name)
        tokenizer = Tokenizer(Path("tiny"))
    ids = tokenizer.encode("the end")
    monkeypatch.chdir("/")
    with pytest.raises(LimitError):
        Remote("the thing", "os:abort", limits=MUCH)
    assert tokenizer.encode("the end") == ids


def test_a_forked_process_has_a_process_of_its_own_for_foreign_code(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.encode("the end")

    def forked():
        assert tokenizer.encode("the end") == ids

    assert outcome_of(forked).kind == "read"
    assert tokenizer.encode("the end") == ids


@pytest.mark.parametrize(
    ("template", "says"),
    (
        (LONG_LOOP, "takes more than 1 s for a conversation of"),
        ("{{ 'a' * 2**28 }}", "takes more than 0.1 GB of memory"),
        ("{{ 'a' | center(2**28) }}", "takes more than 0.1 GB of memory"),
        ("{{ " + "(" * 9_000 + ")" * 9_000 + " }}", "is no Jinja program"),
    ),
)
def test_a_template_that_takes_too_much_is_named(template, says, tmp_path, monkeypatch):
    monkeypatch.setattr(hosted, "_SECONDS", 1)
    monkeypatch.setattr(hosted, "_MEMORY", 2**26)
    with pytest.raises(UserError, match=says):
        open_style("chat_template", folder_with(template, tmp_path))


def test_a_row_for_which_a_template_takes_too_long_is_named_or_dropped(tmp_path, monkeypatch):
    folder = folder_with("{% if messages | length > 4 %}" + LONG_LOOP + "{% endif %}" + CHATML, tmp_path)
    turns = (Turn("user", "a"), Turn("assistant", "b"))
    rows = [Row(turns * n, file="f", location=f"line {i}") for i, n in enumerate((1, 3, 1), 1)]
    tokenizer = Tokenizer(folder)
    for bad_rows in ("error", "drop"):
        encoder = Encoder(tokenizer, PrepareArgs(prompt_style="chat_template", bad_rows=bad_rows), 900)
        monkeypatch.setattr(hosted, "_SECONDS", 1)
        counts = Counts()
        if bad_rows == "error":
            with pytest.raises(UserError, match=r"f, line 2: .* takes more than 1 s .*--bad_rows drop"):
                encoder.encode(rows, counts)
        else:
            assert len(encoder.encode(rows, counts)) == counts.kept == 2
            assert counts.dropped == {"beyond the limits of time and memory": 1}
        monkeypatch.undo()


@pytest.mark.parametrize("truncation", ("drop", "cut_end", "cut_prompt", "error"))
def test_a_row_far_too_long_is_not_tokenized_whole_and_comes_out_as_if_it_were(truncation, tmp_path, monkeypatch):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    long = "".join(f"the {i} thing, and " for i in range(30_000))
    question, answer = (long, "fine") if truncation == "cut_prompt" else ("Well?", long)
    row = replace(Row.single(question, "", answer), file="f", location="line 7")
    seen, found = [], {}
    encode = tokenizer.backend._encode
    monkeypatch.setattr(
        tokenizer.backend, "_encode", lambda how, texts: seen.append(sum(map(len, texts))) or encode(how, texts)
    )
    for least in (0, 10**9):
        monkeypatch.setattr(beginnings, "_LONG", least)
        encoder = Encoder(tokenizer, PrepareArgs(prompt_style="plain", truncation=truncation), 100)
        counts = Counts()
        try:
            found[least] = encoder.encode([row], counts), counts.dropped, counts.cut
        except UserError as e:
            found[least] = str(e)
        if not least:
            assert sum(seen) < len(long) / 10
    if truncation == "error":
        assert all(text.startswith("f, line 7: a sample of ") for text in found.values())
    elif truncation == "cut_prompt":
        (pairs, _, cut), (others, _, theirs) = found.values()
        assert cut == theirs and len(pairs) == len(others) == 1 and 50 < len(pairs[0][0]) <= 100
    else:
        assert found[0] == found[10**9]


def faults_of(make, place, file_bytes=2**20):
    """What went wrong with some seconds of cases, after a line with figures."""
    found = campaign_of(make, place, file_bytes)
    print(found)
    return found.faults


def read_tokenizer(folder):
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode("Hello, the end of 12 \u00e9\u4e2d")
    assert tokenizer.decode(ids) == tokenizer.backend.local.decode(ids)
    tokenizer.encode_batch(["and so on"], eos=True)
    tokenizer.fingerprint()


def test_a_damaged_tokenizer_json_is_read_or_refused(tmp_path):
    write_tokenizer(tmp_path)
    whole = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def make(random, folder):
        name = random.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json"))
        for other, content in whole.items():
            with_content(folder / other, content)
        content = mutated(json.loads(whole[name]), random) if random.random() < 0.5 else flipped(whole[name], random)
        with_content(folder / name, content)
        return lambda: read_tokenizer(folder)

    assert not faults_of(make, tmp_path)


def test_a_damaged_tokenizer_model_is_read_or_refused(tmp_path):
    import sentencepiece

    text = with_content(tmp_path / "text", "the quick brown fox jumps over the lazy dog and runs away\n" * 20)
    options = {"vocab_size": 60, "model_type": "bpe", "byte_fallback": False, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), minloglevel=2, **options
    )
    whole = (tmp_path / "tokenizer.model").read_bytes()

    def make(random, folder):
        with_content(folder / "tokenizer.model", flipped(whole, random))
        return lambda: read_tokenizer(folder)

    assert not faults_of(make, tmp_path)


def test_a_damaged_template_is_rendered_or_refused(tmp_path):
    turns = [Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b")]
    odd = ("{{", "}}", "{%", "%}", "|", " loop ", " * 99 ", "'", "(", ")", "[", " if ", "messages", "\0", "range(9)")

    def make(random, folder):
        text = random.choice(list(SHAPES.values())).template
        for _ in range(random.choice((1, 1, 2, 4))):
            at, to = sorted(random.randrange(len(text) + 1) for _ in range(2))
            text = text[:at] + random.choice((*odd, text[at : at + 40])) + text[min(to, at + 12) :]
        folder_with(text, folder)

        def read():
            for found in open_style("chat_template", folder).exchanges_of([(turns, ())]):
                if isinstance(found, UserError):
                    raise found

        return read

    assert not faults_of(make, tmp_path)


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": {"n": 1}}}
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}]
CALLS = [MESSAGES[0], {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "r"}, MESSAGES[1]]
TREE = {"text": "q", "role": "prompter", "replies": [{"text": "a", "role": "assistant", "rank": 0, "replies": []}]}
ENTRIES = (
    {"instruction": "q", "input": "c", "output": "a", "history": [["q", "a"]], "system": "s"},
    {"messages": MESSAGES},
    {"messages": CALLS, "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
    {"conversations": ["q", "a"]},
    {"prompt": MESSAGES[:1], "completion": MESSAGES[1:], "label": True},
    {"prompt": "q", "completion": "a"},
    {"prompt": TREE, "message_tree_id": "x"},
    {"instruction": "q", "instances": [{"input": "c", "output": "a"}]},
    {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
    {"prompt": "q", "chosen": MESSAGES, "rejected": MESSAGES},
)


def test_damaged_rows_are_read_or_refused(tmp_path):
    tokenizer_folder = folder_with(CHATML, tmp_path / "folder")
    texts = (None, 2**70, -1, float("nan"), 1e400, "\ud800", "a\0b", "x" * 5_000_000)
    texts += ([], {}, [[]], [None], True, "{", "")

    def make(random, folder):
        path = with_content(folder / "rows.jsonl", mutated(random.choice(ENTRIES), random, texts) + "\n")

        def read():
            encoder = Encoder(
                Tokenizer(tokenizer_folder), PrepareArgs(prompt_style="chat_template", truncation="drop"), 200
            )
            rows = [row for found in read_entries(path, None) for row in found]  # type: ignore[union-attr]
            encoder.encode(rows, Counts())

        return read

    assert not faults_of(make, tmp_path, 2**24)
