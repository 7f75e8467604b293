"""Whatever makes training useless stops it, whatever makes it worse is named with its place, and clean data passes."""

import json
import sys

import numpy as np
import pytest
from conftest import SHARED, assert_one_line_error
from damage import outcome_of
from script_processes import run

from lit_gpt.args.curation import CheckArgs
from lit_gpt.data import store
from lit_gpt.data.curate.check import check
from lit_gpt.data.curate.check.lengths import edges, histogram
from lit_gpt.data.curate.check.samples import show
from lit_gpt.data.curate.check.texts import FAULTS, without_common
from lit_gpt.data.curate.check.tokens import check_tokens, doubled, per_sample
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer

HEAD = "### Instruction:\n"
WORDS = ("river", "stone", "lamp", "green", "seven", "cloud", "paper", "music", "train", "apple", "winter", "glass")


def sentence(i, n=14):
    return " ".join(np.random.default_rng(i).choice(WORDS, n))


def sample(tokenizer, question, answer, end=True):
    prompt = tokenizer.encode(f"{HEAD}{question}\n### Response:\n")
    response = [*tokenizer.continue_batch([answer])[0], *([tokenizer.eos_id] if end else [])]
    return [*prompt, *response], [*[store.IGNORE] * len(prompt), *response]


@pytest.fixture
def make(checkpoint, tmp_path):
    """Write a prepared set of 40 clean rows, and those given, and say where it is."""
    tokenizer = Tokenizer(checkpoint)

    def write(extra=(), train=None, **meta):
        rows = [sample(tokenizer, sentence(i), sentence(i + 1000)) for i in range(40)] if train is None else train
        val = [sample(tokenizer, sentence(i), sentence(i + 2000)) for i in range(50, 58)]
        splits = {"train": store.stack([*rows, *extra]), "val": store.stack(val)}
        counts = {name: len(s) for name, s in splits.items()}
        base = {"checkpoint_dir": str(checkpoint), "tokenizer": tokenizer.fingerprint(), "prompt_style": "alpaca"}
        store.save(tmp_path / "set", splits, base | {"max_seq_length": 512, "samples": counts} | meta)
        return tmp_path / "set"

    return tokenizer, write


def warnings(findings):
    return [f.text for f in findings if f.level == "warning"]


def test_clean_data_passes_and_everything_is_said(make, capsys):
    _, write = make
    rows = {"train": {"read": 45, "kept": 40, "dropped": {"empty response": 5, "x": 0}, "cut": {"the end": 3}}}
    folder = write(rows=rows)
    assert warnings(check(folder, CheckArgs(epochs=3))) == []
    out = capsys.readouterr().out
    assert "45 rows read, 40 kept, 5 dropped (5 empty response), 3 cut (3 the end)" in out
    train = store.load(folder)[0]
    assert f"3 epochs: {3 * len(train.ids):,} tokens, of which {3 * train.n_targets:,} are targets" in out
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert out.count("\nsample ") == 3 and "  | ### Instruction:\n" in out and "\033" not in out
    learned = [line[4:] for line in out.splitlines() if line.startswith("  > ")]
    assert len(learned) == 3 and all(line.endswith("</s>") and line[:-4].split()[0] in WORDS for line in learned)


def fault(tokenizer, name):
    """Rows with one fault, and what the check says of them."""
    eos, bos = tokenizer.eos_id, tokenizer.bos_id
    ids, labels = sample(tokenizer, sentence(70), sentence(71))
    clean = sample(tokenizer, sentence(0), sentence(1000))
    nearly = sample(tokenizer, sentence(0), sentence(1000) + "s")
    return {
        "no target": ([(ids, [store.IGNORE] * len(ids))], "1 of 41 rows have no target, such as sample 40 of train"),
        "only the first": ([(ids, [ids[0], *[store.IGNORE] * (len(ids) - 1)])], "rows have no target"),
        "no end": ([sample(tokenizer, sentence(70), sentence(71), end=False)], "do not end with a supervised end"),
        "end masked": ([(ids, [*labels[:-1], store.IGNORE])], "do not end with a supervised end"),
        "two ends": ([([*ids, eos], [*labels, eos])], "1 of 41 rows have an end of sequence twice in a row"),
        "two begins": ([([bos, bos, *ids], [-100, -100, *labels])], "have a begin of sequence twice in a row"),
        "empty": ([sample(tokenizer, sentence(70), " ")], "1 of 41 rows have an empty answer"),
        "twice": ([clean], "1 of 41 rows repeat an earlier one, such as sample 40 of train and sample 0"),
        "nearly twice": ([nearly], "1 of 41 rows are nearly the same as an earlier one, such as sample 40"),
        "nearly in val": (
            [sample(tokenizer, sentence(50), sentence(2050) + "s")],
            "val: 1 of 8 rows are nearly the same as one",
        ),
        "in val": ([sample(tokenizer, sentence(50), sentence(2050))], "val: 1 of 8 rows are nearly the same as one"),
        "undecodable": ([sample(tokenizer, "caf\ufffd " + sentence(70), "a")], "could not be decoded"),
        "mojibake": ([sample(tokenizer, "cafÃ© " + sentence(70), "a")], "read as Latin-1, such as sample 40"),
        "control": (
            [sample(tokenizer, "a\x02b " + sentence(70), "a")],
            "have a control character, such as",
        ),
    }[name]


FAULTY = ["no target", "only the first", "no end", "end masked", "two ends", "two begins", "empty", "twice"]
FAULTY += ["nearly twice", "nearly in val", "in val", "undecodable", "mojibake", "control"]


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_named_with_its_place_and_no_other_is(make, name):
    tokenizer, write = make
    extra, said = fault(tokenizer, name)
    found = warnings(check(write(extra), CheckArgs(n_samples=0)))
    assert any(said in text for text in found), found
    allowed = {"no target": 2, "only the first": 2}.get(name, 1)  # such a row has no end, either
    assert len(found) == allowed, found


def test_the_end_of_a_row_and_the_same_token_that_begins_the_next_are_not_doubled():
    rows = store.stack([([0, 5, 0], [-100, 5, 0]), ([0, 6, 0, 0], [-100, 6, 0, 0]), ([], []), ([0, 0], [-100, 0])])
    assert doubled(rows, [0]).tolist() == [1, 3]
    assert per_sample(rows.labels != store.IGNORE, rows).tolist() == [2, 3, 0, 1]


def test_what_is_read_of_the_arrays_is_not_kept_in_memory(tmp_path, checkpoint):
    """Of 256 MB in files, or what they become, a process that has looked at each value and row holds a few parts."""
    tokenizer, n, length = Tokenizer(checkpoint), 2**19, 64
    ids = np.full(n * length, 5, dtype=np.int32)
    ids[length - 1 :: length] = tokenizer.eos_id
    samples = store.Samples(ids, ids, np.arange(n + 1) * length)
    few = store.stack([([5, tokenizer.eos_id],) * 2])
    meta = {"tokenizer": "", "prompt_style": "plain", "checkpoint_dir": "", "samples": {"train": n, "val": 1}}
    store.save(tmp_path, {"train": samples, "val": few}, meta)

    def look() -> None:
        train, _, _ = store.load(tmp_path)
        assert train.n_targets == n * length and len(train.contents()) == 16
        found = check_tokens("train", train, tokenizer, [tokenizer.eos_id])
        assert [f.level for f in found] == ["ok"] * len(found)

    outcome = outcome_of(look)
    assert outcome.kind == "read", outcome.text
    assert outcome.n_bytes < 80e6, f"{outcome.n_bytes:,}"


def test_what_makes_training_useless_stops_it(make, tmp_path, checkpoint):
    tokenizer, write = make
    rows = [sample(tokenizer, sentence(i), sentence(i + 1000)) for i in range(10)]
    masked = [(ids, [store.IGNORE] * len(ids)) for ids, _ in rows]
    with pytest.raises(UserError, match="train: 9 of 10 rows have no target"):
        check(write(train=[*rows[:1], *masked[1:]]), CheckArgs(n_samples=0))
    endless = [sample(tokenizer, sentence(i), sentence(i + 1000), end=False) for i in range(10)]
    with pytest.raises(UserError, match="0 of 10 rows end with a supervised end of sequence"):
        check(write(train=endless), CheckArgs(n_samples=0))
    with pytest.raises(UserError, match="another one than the checkpoint's"):
        check(write(tokenizer="0123"), CheckArgs())
    with pytest.raises(UserError, match="which is not here; pass --checkpoint_dir"):
        check(write(checkpoint_dir="gone"), CheckArgs())
    assert check(write(checkpoint_dir="gone"), CheckArgs(n_samples=0), checkpoint)
    with pytest.raises(UserError, match="is not a prepared data set"):
        check(tmp_path / "nothing", CheckArgs())
    told = {"{}": "has no checkpoint_dir and no tokenizer", "[]": "holds no JSON object", "{": "is not valid JSON"}
    for text, message in told.items():
        (write() / store.META).write_text(text)
        with pytest.raises(UserError, match=f"meta.json {message}"):
            check(tmp_path / "set", CheckArgs())


def test_the_ends_of_a_style_of_its_own_count(make):
    tokenizer, write = make
    end = tokenizer.encode("!", bos=False)[0]
    rows = [([*ids[:-1], end], [*labels[:-1], end]) for ids, labels in [sample(tokenizer, sentence(9), sentence(8))]]
    val = json.loads((write(train=rows * 9, end_ids=[end, tokenizer.eos_id]) / store.META).read_text())
    assert val["end_ids"] and check(write(train=rows * 9, end_ids=[end, tokenizer.eos_id]), CheckArgs(n_samples=0))
    with pytest.raises(UserError, match="end of sequence"):
        check(write(train=rows * 9), CheckArgs(n_samples=0))


def test_what_the_style_adds_makes_no_two_rows_alike_and_accents_are_no_fault():
    frame = "Below is an instruction that describes a task.\n### Instruction:\n{}\n### Response:\n{}"
    rows = [frame.format(sentence(i, 3), sentence(i + 500, 2)) for i in range(50)]
    assert without_common(rows) == [f"{sentence(i, 3)}\n{sentence(i + 500, 2)}" for i in range(50)]
    many = rows * 90  # of which some are counted
    assert len(many) > 4000 and without_common(many)[-50:] == without_common(rows)
    own = [f"{i} {sentence(i)} ASSISTANT: {sentence(i + 99)}" for i in range(50)]
    assert without_common([f"A chat with a curious user. USER: {text}" for text in own]) == own
    fine = "Ångström café NÃO garçon Ärger naïve “quoted” - £5 €7 ½ Â ß Îles ñandú 你好 🦙\n\ttab\r\n"
    misread = FAULTS["have text in UTF-8 that was read as Latin-1"]
    broken = fine.encode("utf-8").decode("latin-1")
    assert not any(pattern.search(fine) for pattern in FAULTS.values())
    assert misread.search(broken)
    for word in ("café", "“quoted”", "naïve", "£5", "🦙", "señor", "Ärger"):
        assert misread.search(word.encode().decode("cp1252", "replace")), word


@pytest.mark.smoke
def test_other_languages_are_counted(make):
    pytest.importorskip("py3langid")
    tokenizer, write = make
    german = "Die Katze sitzt auf dem Dach und schaut den Vögeln zu, die über den Garten fliegen."
    english = "The committee decided yesterday that the new library should open before the end of the year."
    rows = [sample(tokenizer, f"{english} {sentence(i, 2)}", english) for i in range(30)]
    folder = write([sample(tokenizer, german, german)], train=rows)
    (found,) = [t for t in warnings(check(folder, CheckArgs(n_samples=0, language="en"))) if "language" in t]
    assert "1 of 39 rows are in another language than en, such as sample 30 of train (de" in found
    with pytest.raises(UserError, match="'xx' is not known"):
        check(folder, CheckArgs(n_samples=0, language="xx"))


def test_every_sample_is_in_a_bar():
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(1, 10 ** (seed % 4 + 1), 300)
        lines = histogram(lengths)
        assert sum(int(line.split()[-1].replace(",", "")) for line in lines) == 300
        assert 1 <= len(lines) <= 13 and edges(lengths)[-1] >= lengths.max()


def test_the_script_ends_with_one_line_where_training_is_in_vain(make):
    tokenizer, write = make
    folder = write()
    done = run("scripts/check_data.py", "--data_dir", folder, "--n_samples", 1, cwd=folder)
    assert done.returncode == 0 and "ok  train: no rows have no target" in done.stdout, done.stderr
    endless = [sample(tokenizer, sentence(i), sentence(i + 1000), end=False) for i in range(10)]
    done = run("scripts/check_data.py", "--data_dir", write(train=endless), cwd=folder)
    assert_one_line_error(done, "0 of 10 rows end with a supervised end of sequence")
    assert "useless" in done.stdout


def test_of_a_long_conversation_the_beginning_and_the_end_are_shown_in_time_in_proportion(checkpoint, monkeypatch):
    """Counted in tokens that are decoded, since time is nobody's here."""
    tokenizer, n_decoded = Tokenizer(checkpoint), []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: n_decoded.append(len(ids)) or decode(ids))
    counts, shown = [], []
    for n in (100, 200):
        ids, labels = [], []
        for i in range(n):
            theirs, ours = sample(tokenizer, f"question {i}", f"answer {i}")
            ids, labels = ids + theirs, labels + ours
        n_decoded.clear()
        shown.append(show("train", store.stack([(ids, labels)]), 0, tokenizer=tokenizer, color=False))
        counts.append(sum(n_decoded))
    assert counts[1] < 2.5 * counts[0]
    for n, lines in zip((100, 200), shown, strict=True):
        text = "\n".join(lines)
        (hidden,) = [line for line in lines if line.startswith("  ... (")]
        answers = [line.split()[2] for line in lines if line.startswith("  > answer")]
        assert hidden == f"  ... ({2 * n - 24} more parts)" and len(lines) < 100
        assert [a.partition("<")[0] for a in answers] == [*map(str, range(8)), *map(str, range(n - 4, n))]
        assert "question 7\n" in text and f"question {n - 4}\n" in text and f"question {n // 2}\n" not in text


@pytest.mark.parametrize("tokenizer", ["gpt-neox-20b", "mistral-v1", "smollm2"])
def test_real_tokenizers_show_real_rows(tokenizer, tmp_path, capsys):
    folder = SHARED / "tokenizers" / tokenizer
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    ours = Tokenizer(folder)
    answers = ["Bérénice said: two  spaces\n\n- and a list", "naïve 🦙 你好", "plain words"]
    rows = [sample(ours, sentence(i), answers[i % 3]) for i in range(30)]
    splits = {"train": store.stack(rows), "val": store.stack(rows[:3])}
    meta = {"checkpoint_dir": str(folder), "tokenizer": ours.fingerprint(), "samples": {"train": 30, "val": 3}}
    meta["prompt_style"] = "plain"
    store.save(tmp_path / "set", splits, meta)
    found = check(tmp_path / "set", CheckArgs(n_samples=30))
    out = capsys.readouterr().out.splitlines()
    end = ours.id_to_token(ours.eos_id)
    for answer in answers:
        lines = [f"  > {line}" for line in (answer + end).split("\n")]
        assert any(out[i : i + len(lines)] == lines for i in range(len(out))), (answer, out)
    assert not [t for t in warnings(found) if "twice in a row" in t or "lack" in t or "end of" in t]
    assert sys.stdout.isatty() or "\033" not in "".join(out)
