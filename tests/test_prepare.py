"""From a file to supervised tokens: nothing is lost, cut or masked unsaid, and a failure leaves the old data alone."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
from conftest import ROOT, SHARED, assert_one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st
from script_processes import run

from lit_gpt.args import PrepareArgs
from lit_gpt.cli import parse
from lit_gpt.data import store
from lit_gpt.data.prepare import schemas, seams
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.run import Files, prepare
from lit_gpt.data.prepare.sources import read_rows
from lit_gpt.data.prepare.split import held_out
from lit_gpt.data.prepare.tokens import Encoder
from lit_gpt.data.store import IGNORE
from lit_gpt.errors import UserError
from lit_gpt.prompts import STYLES, Exchange, Turn
from lit_gpt.tokenizer import Tokenizer

TEXT = st.text(max_size=30).filter(lambda text: text.isascii() or text.encode("utf-8", "ignore").decode() == text)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer(checkpoint)


def encode(tokenizer, rows, limit=10**6, **flags):
    counts = Counts()
    samples = Encoder(tokenizer, PrepareArgs(**{"prompt_style": "alpaca", **flags}), limit).encode(rows, counts)
    assert (
        counts.read == len(rows)
        and counts.kept == len(samples)
        and sum(counts.dropped.values()) == counts.read - counts.kept
    )
    return samples, counts


@st.composite
def rows(draw):
    n = draw(st.integers(1, 3))
    turns = [Turn("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(n):
        turns += [Turn("user", draw(TEXT), draw(TEXT)), Turn("assistant", draw(TEXT))]
    return Row(tuple(turns[: len(turns) - draw(st.integers(0, 1))]))


@settings(max_examples=150, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=4), st.sampled_from(list(STYLES)), st.booleans())
def test_any_text_survives_and_every_label_is_accounted_for(tokenizer, made, style, last):
    samples, _ = encode(tokenizer, made, prompt_style=style, last_turn_only=last)
    used = iter(samples)
    for row in made:
        turns = row.turns[:-1] if row.turns[-1].role == "user" else row.turns
        answers = [t.text for t in turns if t.role == "assistant"]
        if not answers or not all(a.strip() for a in answers):
            continue
        ids, labels = next(used)
        runs = [r for r in np.split(np.array(ids), np.flatnonzero(np.diff(np.array(labels) == IGNORE)) + 1)]
        taught = [r.tolist() for r in runs[labels[0] == IGNORE :: 2]]
        shown = STYLES[style]
        if not any("<s>" in t.text + t.context or "</s>" in t.text + t.context for t in row.turns):
            expected = [shown.answer(a) for a in (answers[-1:] if last else answers)]
            assert [tokenizer.decode(r) for r in taught if r] == expected or labels[0] != IGNORE
            whole = tokenizer.decode(ids)
            texts = [text for t in turns for text in (t.text, t.context) if text.strip()]
            assert all((text if shown.trims == "no" else text.strip()) in whole for text in texts)
        assert all(label in (IGNORE, i) for i, label in zip(ids, labels, strict=True))
        assert labels[-1] == tokenizer.eos_id
        assert labels.count(tokenizer.eos_id) >= (1 if last else len(answers))
    assert next(used, None) is None


LONG = Row(
    (
        Turn("user", "why " * 40, "see " * 20),
        Turn("assistant", "so " * 10),
        Turn("user", "and"),
        Turn("assistant", "no"),
    )
)


@pytest.mark.parametrize("limit", [37, 60, 100, 200])
def test_the_prompt_is_cut_within_what_the_style_puts_around_it(tokenizer, limit):
    rows = [LONG, Row.single("hi", "", "x" * 30)]
    samples, counts = encode(tokenizer, rows, limit, prompt_style="platypus", truncation="cut_prompt")
    whole, _ = encode(tokenizer, rows, prompt_style="platypus")
    assert all(len(ids) <= limit for ids, _ in samples) and counts.cut["in the prompt"] + counts.dropped.total() > 0
    if limit == 200:  # as much is left as there is room for
        ids, labels = samples[0]
        assert len(ids) > limit - 4 and tokenizer.decode(ids).startswith("### Instruction:\n\nwhy why")
        assert [i for i in labels if i != IGNORE] == [i for i in whole[0][1] if i != IGNORE]
        assert counts.cut == {"in the prompt": 1}


def test_the_end_is_cut_so_that_an_answer_ends_it(tokenizer):
    (whole,), _ = encode(tokenizer, [LONG], prompt_style="plain")
    for limit in range(2, len(whole[0])):
        samples, counts = encode(tokenizer, [LONG], limit, prompt_style="plain", truncation="cut_end")
        for ids, labels in samples:
            assert len(ids) <= limit and labels[-1] == ids[-1] == tokenizer.eos_id
            assert ids[:-1] == whole[0][: len(ids) - 1]
        assert counts.cut["at the end"] == len(samples) == 1 - counts.dropped[f"longer than {limit} tokens"]
    with pytest.raises(UserError, match=r"a sample of \d+ tokens, more than 20.*--truncation"):
        encode(tokenizer, [LONG], 20, truncation="error")


def test_ids_that_differ_from_those_of_the_whole_text_are_counted(tokenizer):
    rows = [Row.single("t", "", "he"), Row.single("t", "", "xe")]  # t + he is one token
    (first, _), counts = encode(tokenizer, rows, prompt_style="plain")
    assert counts.tokenized_apart == 1 and first[0][:-1] != tokenizer.encode("the")
    assert encode(tokenizer, rows, prompt_style="alpaca")[1].tokenized_apart == 0


PIECES = [
    "the",
    "The ",
    " a",
    "\n",
    "\n\n",
    "   ",
    "\t",
    ".",
    "'s",
    "'",
    "12",
    "é",
    "你好",
    "🦙",
    "ing",
    "_",
    "(",
    "\r\n",
    "t",
]


@pytest.mark.parametrize("name", ["tiny", "smollm2", "gpt-2", "gpt-neox-20b", "falcon", "mistral-v1"])
def test_the_count_of_rows_that_differ_is_exact(checkpoint, name):
    folder = checkpoint if name == "tiny" else SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    tokenizer, rng = Tokenizer(folder), random.Random(0)
    n_apart = 0
    for _ in range(500):
        prompt, answer = ("".join(rng.choices(PIECES, k=rng.randint(1, 8))) for _ in range(2))
        ((ids, _),), counts = encode(tokenizer, [Row.single(prompt, "", answer + "x")], prompt_style="plain")
        assert counts.tokenized_apart == (ids[:-1] != tokenizer.encode(prompt + answer + "x")), (prompt, answer)
        n_apart += counts.tokenized_apart
    assert 0 < n_apart < 250


def test_threads_count_tokens_over_seams_while_others_begin_anew(checkpoint, monkeypatch):
    """Of which the memory is bounded: a thread begins a new one while others have what they know in the old."""
    monkeypatch.setattr(seams, "_MOST_SEAMS", 20)
    tokenizer = Tokenizer(checkpoint)
    some = [[Exchange(f"{i} the", "re")] for i in range(4)]  # known to most batches, of which some take longer
    batches = [[*some, *([Exchange(f"{n} {i} the", "re")] for i in range(1 + n % 5 * 100))] for n in range(100)]
    wanted = [seams.Seams(tokenizer).n_apart(batch) for batch in batches]
    shared = seams.Seams(tokenizer)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(shared.n_apart, [*batches, *batches[::-1]])) == [*wanted, *wanted[::-1]]


def test_a_begin_of_sequence_comes_once(checkpoint, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    tokenizer = Tokenizer(tmp_path)
    samples, _ = encode(tokenizer, [LONG, Row.single("<s>already", "", "there")], prompt_style="plain")
    assert all(ids.count(tokenizer.bos_id) == 1 and ids[0] == tokenizer.bos_id for ids, _ in samples)


def test_a_split_keeps_near_identical_prompts_on_one_side():
    words = np.array(["oak", "pear", "sun", "rain", "book", "door", "lake", "coin", "ship", "moss", "rope", "bell"])
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(words, 30)) for _ in range(100)]
    prompts += [p + "." for p in prompts[:50]]
    out = held_out(prompts, 0.2, seed=1)
    assert 20 <= out.sum() <= 30 and (out[:50] == out[100:]).all() and 0 < out[:50].sum() < 50
    assert (held_out(prompts, 0.2, seed=1) == out).all() and not (held_out(prompts, 0.2, seed=2) == out).all()
    with pytest.raises(UserError, match="near-identical"):
        held_out(["the same"] * 5, 0.5, 0)


def write(path, n, bad=""):
    lines = [json.dumps({"instruction": f"{i} " * 9, "output": f"and {i}"}) for i in range(n)]
    path.write_text("\n".join([*lines, bad]))
    return Files((path,))


def test_nothing_is_written_until_all_is_read_and_a_failure_leaves_the_old_data(checkpoint, tmp_path, monkeypatch):
    data = tmp_path / "data"
    with pytest.raises(UserError, match="line 31"):
        prepare(write(tmp_path / "a.jsonl", 30, "{"), None, data, checkpoint, PrepareArgs())
    assert not data.exists()
    prepare(write(tmp_path / "a.jsonl", 30), None, data, checkpoint, PrepareArgs(test_split_fraction=0.1))
    (data / "mine.txt").write_text("stays")
    before = {p.name: p.read_bytes() for p in data.iterdir()}
    failures = [
        (write(tmp_path / "b.jsonl", 9, '{"instruction": "a", "output": 1}'), {}, "line 10: 'output' must be text"),
        (write(tmp_path / "c.jsonl", 3000), {"truncation": "error", "max_seq_length": 40}, "more than 40"),
    ]
    for files, flags, message in failures:
        with pytest.raises(UserError, match=message):
            prepare(files, None, data, checkpoint, PrepareArgs(overwrite=True, **flags))
        assert {p.name: p.read_bytes() for p in data.iterdir()} == before
    assert store.load(data)[2]["rows"]["train"] == {
        "read": 27,
        "kept": 27,
        "dropped": {},
        "cut": {},
        "tokenized_apart": 0,
        "last_answer_only": 0,
    }
    prepare(
        failures[0][0], None, data, checkpoint, PrepareArgs(bad_rows="drop", test_split_fraction=0.2, overwrite=True)
    )
    meta = store.load(data)[2]
    assert meta["rows"]["train"]["dropped"] == {"not of the schema": 1} and meta["rows"]["train"]["read"] == 8
    assert (data / "mine.txt").is_file() and not list(data.glob(".*"))


def test_many_rows_are_stored_as_one_batch_is(checkpoint, tokenizer, tmp_path, monkeypatch):
    import lit_gpt.data.prepare.run as module

    files = write(tmp_path / "a.jsonl", 50)
    monkeypatch.setattr(module, "BATCH", 7)
    prepare(files, files, tmp_path / "data", checkpoint, PrepareArgs())
    train, val, meta = store.load(tmp_path / "data")
    want, _ = encode(tokenizer, [Row.single(f"{i} " * 9, "", f"and {i}") for i in range(50)])
    for samples in (train, val):
        assert len(samples) == 50 and meta["targets"]["val"] == samples.n_targets
        assert all((samples[i][0].tolist(), samples[i][1].tolist()) == want[i] for i in range(50))


SCRIPTS = {  # script -> (flags, lines of a file of its schema)
    "dolly": ("--data_file", '{"instruction": "%s", "context": "", "response": "r", "category": "x"}'),
    "lima": ("--data_file", '{"conversations": ["%s", "b"], "source": "x"}'),
    "longform": ("--data_file", '{"input": "%s", "output": "r", "source": "x"}'),
    "oasst1": (
        "--data_file",
        '{"prompt": {"role": "prompter", "text": "%s", "replies": [{"role": "assistant", "text": "r"}]}}',
    ),
    "alpaca_libre": ("--data_file", '{"instruction": "%s", "input": "<noinput>", "output": "r"}'),
    "json": ("--json_path", '{"prompt": "%s", "completion": "r"}'),
    "csv": ("--csv_path", '"%s","","r"'),
}


def call(script, *argv):
    """A script's `main` with arguments from a command line, in this process."""
    spec = spec_from_file_location(f"prepare_{script}", ROOT / "scripts" / f"prepare_{script}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(**parse(module.main, [*map(str, argv), "--prompt_style", "plain", "--check", "false"]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_prepares_a_file_of_its_schema(script, checkpoint, tmp_path, monkeypatch):
    flag, line = SCRIPTS[script]
    header = ["instruction,input,output"] if script == "csv" else []
    path = tmp_path / ("rows.csv" if script == "csv" else "rows.jsonl")
    path.write_text("\n".join(header + [line % (f"{i} " * 9).strip() for i in range(12)]))
    monkeypatch.chdir(tmp_path)
    call(script, flag, path, "--checkpoint_dir", checkpoint)
    train, val, _ = store.load(tmp_path / "data" / script)
    answer = "b" if script == "lima" else "r"
    wanted = {tuple(Tokenizer(checkpoint).encode((f"{i} " * 9).strip() + answer, eos=True)) for i in range(12)}
    assert {tuple(part[i][0].tolist()) for part in (train, val) for i in range(len(part))} == wanted


def test_flan_takes_its_own_test_sets_and_says_what_it_lacks(checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "flan"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    sizes = {"coqa": (5, 2), "rte": (6, 1)}
    for name, n in [(f"{k}_10templates_{s}", n[s == "test"]) for k, n in sizes.items() for s in ("train", "test")]:
        lines = (json.dumps({"inputs": f"{name} {i}", "targets": "y"}) for i in range(n))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    call("flan", "--checkpoint_dir", checkpoint, "--subsets", "coqa,rte_10templates")
    train, val, meta = store.load(folder)
    assert (len(train), len(val)) == (11, 3) and "coqa_10templates_test.jsonl" in meta["validation_source"]
    with pytest.raises(UserError, match="FLAN has no 'nope'"):
        call("flan", "--checkpoint_dir", checkpoint, "--subsets", "nope", "--overwrite", "true")


MEASURED = {  # row of the table in docs/prepare_data.md -> (file, prompt style, paths of trees)
    "alpaca_libre (a part)": ("alpaca_libre.json", "alpaca", None),
    "64 rows of it": ("bench_64.json", "alpaca", None),
    "Self-Instruct's seed tasks": ("self_instruct_seed_tasks.jsonl", "alpaca", None),
    "oasst1, 100 English trees, best paths": ("oasst_en_100_trees.jsonl", "vicuna", "best"),
    "the same, all paths": ("oasst_en_100_trees.jsonl", "vicuna", "all"),
    "ShareGPT's sample of FastChat": ("sharegpt_500.json", "vicuna", None),
}


@pytest.mark.parametrize("column, name", enumerate(["mistral-v1", "gpt-neox-20b", "smollm2"]))
def test_the_figures_of_the_documentation_are_those_of_today(column, name):
    if not (SHARED / "tokenizers" / name).is_dir():
        pytest.skip(f"{SHARED} is not here")
    tokenizer = Tokenizer(SHARED / "tokenizers" / name)
    lines = (ROOT / "docs/prepare_data.md").read_text().splitlines()
    table = {cells[1]: cells[2:-1] for line in lines if len(cells := [c.strip() for c in line.split("|")]) == 8}
    for row, (file, style, paths) in MEASURED.items():
        parse = schemas.Trees(paths) if paths else schemas.alpaca_libre if "alpaca_libre" in file else None
        read = list(read_rows(SHARED / "instruct" / file, parse))
        samples, counts = encode(tokenizer, read, 2048, prompt_style=style)
        n_targets = sum(label != IGNORE for _, labels in samples for label in labels)
        n_rows, *tokens, longer = table[row]
        assert n_rows == f"{len(read):,}"
        assert tokens[column] == f"{sum(len(ids) for ids, _ in samples):,} / {n_targets:,}", (row, name)
        assert longer.split(", ")[column if "," in longer else 0] == str(counts.dropped.total())
        assert not counts.tokenized_apart


def test_a_script_checks_what_it_prepared_and_fails_in_one_line(checkpoint, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,about,answer\n" + "\n".join(f"{i} {i} {i},x,yes" for i in range(100, 130)))
    common = ("scripts/prepare_csv.py", "--csv_path", path, "--checkpoint_dir", checkpoint, "--columns")
    done = run(*common, "[question, answer]", cwd=tmp_path)
    assert done.returncode == 0 and "30 rows read" not in done.stdout and "27 rows read, 27 kept" in done.stdout
    assert (
        "the key 'about' of 30 rows is not used" in done.stdout
        and "learns to write" in done.stdout
        and (tmp_path / "data/csv/lengths.png").is_file()
    )
    assert_one_line_error(
        run(*common, "[question, reply]", "--overwrite", "true", cwd=tmp_path),
        "rows.csv: no column 'reply'; found",
        "'answer'",
        "--columns",
    )
