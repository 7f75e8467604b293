"""Local files of lm-eval's common tasks, made of the archives that their authors publish.

Rows get the fields of the hub's copies, which lm-eval's tasks read. Archives are read in place: nothing is unpacked.
"""

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lit_gpt.data.prepare.download import locate
from lit_gpt.errors import UserError
from lit_gpt.evaluation.local.archive_rows import (
    Rows,
    arc_rows,
    bbh_rows,
    boolq_rows,
    mmlu_rows,
    openbookqa_rows,
    piqa_rows,
    plain_rows,
    truthfulqa_rows,
    truthfulqa_texts,
)
from lit_gpt.files import write_text

_LARGEST = 2**29
"""Bytes of a file in an archive from which on it is not what was published."""


@dataclass(frozen=True)
class Task:
    """Where the rows of a task come from."""

    urls: tuple[str, ...]
    """Addresses of files and archives."""
    splits: Mapping[str, tuple[str, ...]]
    """Split -> ends of the paths of the files, in the archives, that its rows are made of; * stands for a name."""
    rows: Callable[[Sequence[bytes], str], Rows]
    """Function (contents of these files, name that * stands for) -> rows."""
    names: tuple[str, ...] = field(default=())
    """Tasks of lm-eval that read them, with {} for the name that * stands for; the key of TASKS if empty."""


_ARC = "https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip"
_PIQA = "https://yonatanbisk.com/piqa/data"
_HELLASWAG = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data"
_GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
_TRUTHFULQA = "https://raw.githubusercontent.com/sylinrl/TruthfulQA/main"
_IFEVAL = "https://raw.githubusercontent.com/google-research/google-research/master/instruction_following_eval/data"


def _arc(name: str) -> Task:
    splits = {"train": "Train", "validation": "Dev", "test": "Test"}
    return Task((_ARC,), {s: (f"{name}/{name}-{part}.jsonl",) for s, part in splits.items()}, arc_rows)


TASKS = {
    "arc_easy": _arc("ARC-Easy"),
    "arc_challenge": _arc("ARC-Challenge"),
    "bbh": Task(
        ("https://codeload.github.com/suzgunmirac/BIG-Bench-Hard/zip/refs/heads/main",),
        {"test": ("bbh/*.json",)},
        bbh_rows,
        tuple(f"bbh_{kind}_{{}}" for kind in ("fewshot", "zeroshot", "cot_fewshot", "cot_zeroshot")),
    ),
    "boolq": Task(
        ("https://dl.fbaipublicfiles.com/glue/superglue/data/v2/BoolQ.zip",),
        {"train": ("BoolQ/train.jsonl",), "validation": ("BoolQ/val.jsonl",)},
        boolq_rows,
    ),
    "gsm8k": Task(
        (f"{_GSM8K}/train.jsonl", f"{_GSM8K}/test.jsonl"),
        {"train": ("train.jsonl",), "test": ("test.jsonl",)},
        plain_rows,
    ),
    "hellaswag": Task(
        tuple(f"{_HELLASWAG}/hellaswag_{part}.jsonl" for part in ("train", "val")),
        {"train": ("hellaswag_train.jsonl",), "validation": ("hellaswag_val.jsonl",)},
        plain_rows,
    ),
    "ifeval": Task((f"{_IFEVAL}/input_data.jsonl",), {"train": ("input_data.jsonl",)}, plain_rows),
    "mmlu": Task(
        ("https://people.eecs.berkeley.edu/~hendrycks/data.tar",),
        {split: (f"{folder}/*_{split}.csv",) for split, folder in {"test": "test", "dev": "dev"}.items()},
        mmlu_rows,
        ("mmlu_{}",),
    ),
    "openbookqa": Task(
        ("https://ai2-public-datasets.s3.amazonaws.com/open-book-qa/OpenBookQA-V1-Sep2018.zip",),
        {s: (f"Data/Main/{f}.jsonl",) for s, f in {"train": "train", "validation": "dev", "test": "test"}.items()},
        openbookqa_rows,
    ),
    "piqa": Task(
        tuple(f"{_PIQA}/{name}" for part in ("train", "valid") for name in (f"{part}.jsonl", f"{part}-labels.lst")),
        {"train": ("train.jsonl", "train-labels.lst"), "validation": ("valid.jsonl", "valid-labels.lst")},
        piqa_rows,
    ),
    "truthfulqa": Task(
        (f"{_TRUTHFULQA}/data/mc_task.json",),
        {"validation": ("mc_task.json",)},
        truthfulqa_rows,
        ("truthfulqa_mc1", "truthfulqa_mc2"),
    ),
    "truthfulqa_gen": Task((f"{_TRUTHFULQA}/TruthfulQA.csv",), {"validation": ("TruthfulQA.csv",)}, truthfulqa_texts),
    "winogrande": Task(
        ("https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip",),
        {"train": ("train_xl.jsonl",), "validation": ("dev.jsonl",)},
        plain_rows,
    ),
}


def write_task(name: str, folder: Path, source: Path | None) -> list[str]:
    """Writes `folder/<task>/<split>.jsonl` for each of lm-eval's tasks that a name of TASKS stands for.

    Args:
        source: folder with the files, or with the archives they are in, that somebody copied; where it has a folder
            `<name>`, only that is looked into. None downloads them into `folder/published/<name>`.

    Returns:
        The tasks of lm-eval.

    Raises:
        UserError: a file cannot be had, lacks something, or is not what its authors publish.
    """
    task = TASKS[name]
    if source is None:
        place = folder / "published" / name
        found = _Files([locate(None, url, url.rsplit("/", 1)[-1], place) for url in task.urls])
    else:
        place = source / name if (source / name).is_dir() else source
        found = _Files(sorted(p for p in place.rglob("*") if p.is_file()))
    written: dict[str, None] = {}
    for split, ends in task.splits.items():
        parts = [found.ending(end) for end in ends]
        for end, part in zip(ends, parts, strict=True):
            if not part or part.keys() != parts[0].keys():
                raise UserError(f"{name}: there is no {end} in {place}; it is published at {', '.join(task.urls)}")
        for star, (where, _) in parts[0].items():
            text = _text(task, [part[star][1] for part in parts], star, where)
            for lm_evals in task.names or (name,):
                owner = lm_evals.format(star)
                (folder / owner).mkdir(parents=True, exist_ok=True)
                write_text(folder / owner / f"{split}.jsonl", text)
                written[owner] = None
    return list(written)


def _text(task: Task, contents: Sequence[Callable[[], bytes]], star: str, where: str) -> str:
    """Returns the lines of a split."""
    try:
        rows = list(task.rows([read() for read in contents], star))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile, tarfile.TarError) as e:
        raise UserError(f"{where} is not what its authors publish ({type(e).__name__}: {e})") from e
    if not rows:
        raise UserError(f"{where} has no rows")
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class _Files:
    """Files, and those in archives among them, by their paths."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.entries = [entry for path in paths for entry in _entries(path)]

    def ending(self, end: str) -> dict[str, tuple[str, Callable[[], bytes]]]:
        """Returns (where it is, function that reads it) of the files whose paths end so, by what * stands for."""
        wanted = PurePosixPath(end).parts
        found: dict[str, tuple[str, Callable[[], bytes]]] = {}
        for where, read in self.entries:
            parts = PurePosixPath(where).parts[-len(wanted) :]
            if len(parts) < len(wanted) or parts[:-1] != wanted[:-1] or parts[-1].startswith("."):
                continue
            before, star, behind = wanted[-1].partition("*")
            name = parts[-1]
            key = name[len(before) : len(name) - len(behind)] if star else ""
            if before + key + behind != name or (star and not key):
                continue
            if key in found:
                both = f"both {found[key][0]} and {where} may be {end}"
                raise UserError(f"{both}; put the files of each task into a folder of its name")
            found[key] = where, read
        return found


def _entries(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields (path, function that reads it) of a file, or of those in it if it is a zip or tar archive."""
    if path.suffix not in (".json", ".jsonl", ".csv", ".lst") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
        yield from ((f"{path}/{m.filename}", lambda m=m: _from_zip(path, m)) for m in members)
    elif path.suffix not in (".json", ".jsonl", ".csv", ".lst") and tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if m.isfile()]
        yield from ((f"{path}/{m.name}", lambda m=m: _from_tar(path, m.name)) for m in members)
    else:
        yield path.as_posix(), path.read_bytes


def _from_zip(path: Path, member: zipfile.ZipInfo) -> bytes:
    _require_size(f"{path}/{member.filename}", member.file_size)
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)


def _from_tar(path: Path, name: str) -> bytes:
    with tarfile.open(path) as archive:
        member = archive.getmember(name)
        _require_size(f"{path}/{name}", member.size)
        file = archive.extractfile(member)
        assert file is not None
        return file.read()


def _require_size(where: str, n_bytes: int) -> None:
    """Checks that a file in an archive fits the memory; raises UserError if it would not."""
    if n_bytes > _LARGEST:
        raise UserError(f"{where} would have {n_bytes:,} bytes, more than any that is published")
