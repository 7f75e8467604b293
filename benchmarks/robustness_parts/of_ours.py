"""Damages what this toolkit writes, and what PEFT does: configurations, records of runs, checkpoints, data sets."""

import json
from pathlib import Path
from random import Random

from damage import flipped, mutated, with_content
from robustness_parts.campaign import Case, Section
from robustness_parts.material import TRAIN, Material, calling, copied

_CELLS = ("", "nan", "inf", "-inf", "1e999", "-1", "x", "9" * 50, "\0", '"', "1_000", "é", "x" * 9_999)
_ONE_STEP = (*TRAIN, "--max_steps", 1)


def sections(material: Material) -> list[Section]:
    """Returns the sections of files of this toolkit, and of PEFT's."""
    return [
        Section("lit_config", lambda random, place: _lit_config(material, random, place), material.lit),
        Section("finetuned", lambda random, place: _finetuned(material, random, place), material.run),
        Section("data", lambda random, place: _data(material, random, place), material.data),
        Section("state", lambda random, place: _state(material, random, place), material.run),
        Section("peft", lambda random, place: _peft(material, random, place), material.peft),
    ]


def _changed(path: Path, random: Random) -> str | bytes:
    """Returns the content of a JSON file with values changed, or now and then with bits flipped."""
    if random.random() < 0.1:
        return flipped(path.read_bytes(), random)
    return mutated(json.loads(path.read_text(encoding="utf-8")), random)


def _asking(folder: Path) -> tuple[object, ...]:
    """Returns the flags that generate two tokens from a checkpoint."""
    return ("--checkpoint_dir", folder, "--prompt", "the king", "--max_new_tokens", 2)


def _lit_config(material: Material, random: Random, place: Path) -> Case:
    """Changes lit_config.json, and generates, exports or plans."""
    folder = copied(material.lit(), place / "tiny")
    path = with_content(folder / "lit_config.json", _changed(folder / "lit_config.json", random))
    script, flags = random.choice(
        (
            ("generate/base.py", _asking(folder)),
            ("scripts/convert_lit_checkpoint.py", ("--checkpoint_dir", folder, "--output_dir", place / "out")),
            ("finetune/lora.py", ("--checkpoint_dir", folder, "--data_dir", material.data(), "--dry_run", "true")),
        )
    )
    return Case(calling(script, *flags, cwd=place), path.stat().st_size)


def _finetuned(material: Material, random: Random, place: Path) -> Case:
    """Changes the record of a run or bits of its weights, and generates, merges, reports or exports."""
    run = copied(material.run(), place / "run")
    if random.random() < 0.8:
        path = with_content(run / "finetuned.json", _changed(run / "finetuned.json", random))
    else:
        path = run / "lit_model_lora_finetuned.pth"
        with_content(path, flipped(path.read_bytes(), random))
    base = ("--checkpoint_dir", material.lit(), "--finetuned_path", run)
    script, flags = random.choice(
        (
            ("generate/lora.py", (*base, "--prompt", "the king", "--max_new_tokens", 2)),
            ("scripts/merge_lora.py", (*base, "--out_dir", place / "merged")),
            ("scripts/write_report.py", ("--finetuned_path", run)),
            ("scripts/convert_peft_adapter.py", ("--to", "peft", *base, "--peft_dir", place / "adapter")),
        )
    )
    return Case(calling(script, *flags, cwd=place), path.stat().st_size)


def _data(material: Material, random: Random, place: Path) -> Case:
    """Changes meta.json or the arrays of a data set, and trains a step, plans or checks the data."""
    data = copied(material.data(), place / "data")
    if random.random() < 0.4:
        path = with_content(data / "meta.json", _changed(data / "meta.json", random))
    else:
        path = random.choice(sorted(data.glob("*.npy")))
        content = path.read_bytes()
        with_content(path, flipped(content, random, None if random.random() < 0.7 else 128))
    base = ("--checkpoint_dir", material.lit(), "--data_dir", data)
    script, flags = random.choice(
        (
            ("finetune/lora.py", (*base, "--out_dir", place / "out", *_ONE_STEP)),
            ("finetune/lora.py", (*base, "--out_dir", place / "out", *_ONE_STEP)),
            ("finetune/lora.py", (*base, "--dry_run", "true")),
            ("scripts/check_data.py", ("--data_dir", data)),
        )
    )
    return Case(calling(script, *flags, cwd=place), path.stat().st_size)


def _state(material: Material, random: Random, place: Path) -> Case:
    """Changes files of checkpoints or metrics.csv, and resumes or reports."""
    from lit_gpt.training.run.progress import record_digest

    run = copied(material.run(), place / "run")
    newest = sorted((run / "checkpoints").iterdir())[-1]
    kind = random.random()
    if kind < 0.4:  # valid as far as its digest says
        path = newest / "state.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        record.pop("digest")
        text = mutated(record, random)
        if "[" * 500 not in text:
            record = json.loads(text)
            text = json.dumps({**record, "digest": record_digest(record)} if isinstance(record, dict) else record)
        with_content(path, text)
    elif kind < 0.6:
        path = random.choice([p for p in newest.iterdir() if p.is_file()])
        with_content(path, flipped(path.read_bytes(), random))
    else:
        path = random.choice([p for p in run.iterdir() if p.suffix in (".csv", ".txt", ".json")])
        with_content(path, _cells(path, random) if path.suffix == ".csv" else flipped(path.read_bytes(), random))
    if random.random() < 0.4:
        return Case(calling("scripts/write_report.py", "--finetuned_path", run, cwd=place), path.stat().st_size)
    words = ("--checkpoint_dir", material.lit(), "--data_dir", material.data(), "--out_dir", run, *TRAIN)
    words += ("--epochs", 2 if random.random() < 0.5 else 3, "--resume", "true", "--allow_changes", "true")
    return Case(calling("finetune/lora.py", *words, cwd=place), path.stat().st_size)


def _cells(path: Path, random: Random) -> str:
    """Returns a CSV file with one to three cells, lines or the header changed."""
    lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    for _ in range(random.choice((1, 1, 3))):
        cells = random.choice(lines)
        odd = random.choice(
            ("", "nan", "inf", "-inf", "1e999", "-1", "x", "9" * 50, "\0", '"', "1_000", "é", "x" * 9_999)
        )
        how = random.random()
        if how < 0.8 and cells:
            cells[random.randrange(len(cells))] = odd
        elif how < 0.9:
            lines.append([odd] * random.choice((1, len(lines[0]), 99)))
        elif len(lines) > 1:
            lines.remove(cells)
    return "\n".join(",".join(cells) for cells in lines) + random.choice(("\n", ""))


def _peft(material: Material, random: Random, place: Path) -> Case:
    """Changes settings or weights of an adapter of PEFT, and makes a run of it."""
    adapter = copied(material.peft(), place / "adapter", *(("finetuned.json",) if random.random() < 0.7 else ()))
    if random.random() < 0.7:
        path = adapter / "adapter_config.json"
        with_content(path, _changed(path, random))
    else:
        path = adapter / "adapter_model.safetensors"
        data = path.read_bytes()
        with_content(path, flipped(data, random, 8 + int.from_bytes(data[:8], "little")))
    words = (
        "--to",
        "lit",
        "--checkpoint_dir",
        material.lit(),
        "--peft_dir",
        adapter,
        "--finetuned_path",
        place / "run",
    )
    return Case(calling("scripts/convert_peft_adapter.py", *words, cwd=place), path.stat().st_size)
