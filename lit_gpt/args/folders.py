"""The files by which this toolkit knows its folders, and what is said of a folder that is not what was asked for.

Imports nothing that takes long, so that a wrong path is reported at once.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.records import read_object

WEIGHTS, CONFIG, LITGPT_CONFIG = "lit_model.pth", "lit_config.json", "model_config.yaml"
"""Files of a checkpoint; checkpoints of litgpt have LITGPT_CONFIG instead of CONFIG."""
RUN = "finetuned.json"
"""File of a run that says all it takes to use it."""
_RESULTS = ("lit_model*_finetuned.pth", "checkpoints/step-*", "merged", "averaged")
"""Results in the folder of a run, which somebody may want to keep."""
_META = "meta.json"
"""File of a prepared data set that says how it was made."""
_HF_CONFIG = "config.json"
"""Configuration file of a downloaded checkpoint."""
_CHECKPOINTS, _RUNS, _DATA = "checkpoints/*/*", "out/*/*", "data/*"
"""Patterns of the folders where checkpoints, runs and data sets usually are."""
ROWS = (".json", ".jsonl", ".csv", ".tsv", ".gz", ".zst", ".bz2", ".xz", ".zip", ".parquet", ".arrow", ".txt")
"""Suffixes of files with rows."""


def default_out_dir(method: str, checkpoint_dir: Path) -> Path:
    """Returns the folder that a finetune script saves to by default, and later scripts look in: out/<method>/<name>."""
    return Path("out", method, checkpoint_dir.absolute().name)  # a link goes by its own name


def require_checkpoint(checkpoint_dir: Path, takes_runs: bool = False) -> None:
    """Checks that a folder is a converted checkpoint.

    Args:
        takes_runs: the caller also has a --finetuned_path.

    Raises:
        UserError: it is not; the message says what it is, or what is missing, and what to run.
    """
    if not checkpoint_dir.is_dir():
        if checkpoint_dir.is_file():
            raise UserError(f"--checkpoint_dir {checkpoint_dir} is a file; pass the folder {checkpoint_dir.parent}")
        hint = suggestion(checkpoint_dir, _CHECKPOINTS)
        get_one = "; get one with python scripts/download.py --repo_id ORG/NAME"
        raise UserError(f"there is no folder {checkpoint_dir} (--checkpoint_dir){hint or get_one}")
    missing = [name for name in (WEIGHTS, CONFIG) if not (checkpoint_dir / name).is_file()]
    if not missing or (missing == [CONFIG] and (checkpoint_dir / LITGPT_CONFIG).is_file()):
        return
    if (checkpoint_dir / RUN).is_file():
        raise UserError(_use_of_run(checkpoint_dir, takes_runs))
    inside = [str(p.parent) for p in sorted(checkpoint_dir.glob(f"*/{WEIGHTS}"))[:3]]
    inside = inside or [str(p.parent) for p in sorted(checkpoint_dir.glob(f"*/*/{WEIGHTS}"))[:3]]
    if inside:
        raise UserError(f"{checkpoint_dir} is no checkpoint, but holds some: --checkpoint_dir {' or '.join(inside)}")
    if (checkpoint_dir / _META).is_file():
        raise UserError(f"--checkpoint_dir {checkpoint_dir} is a prepared data set; pass it as --data_dir")
    raise UserError(
        f"{checkpoint_dir} has no {' and no '.join(missing)}; make them with "
        f"python scripts/convert_hf_checkpoint.py --checkpoint_dir {checkpoint_dir}"
    )


def require_downloaded(checkpoint_dir: Path) -> None:
    """Checks that a folder to be converted is there; raises UserError if it is not."""
    if not checkpoint_dir.is_dir():
        if checkpoint_dir.is_file():
            raise UserError(f"--checkpoint_dir {checkpoint_dir} is a file; pass the folder {checkpoint_dir.parent}")
        hint = suggestion(checkpoint_dir, _CHECKPOINTS, _HF_CONFIG)
        get_one = "; download one with python scripts/download.py --repo_id ORG/NAME"
        raise UserError(f"there is no folder {checkpoint_dir} (--checkpoint_dir){hint or get_one}")


def run_folder(path: Path) -> Path:
    """Returns the folder of a run that is named by its folder or by the file of its weights."""
    return path.parent if path.suffix == ".pth" else path


def require_run(run_dir: Path, given: bool = True) -> None:
    """Checks that a folder, or the folder of a weights file, holds a run.

    Args:
        given: whether the user named it; otherwise it is the default folder.

    Raises:
        UserError: it does not.
    """
    folder = run_folder(run_dir)
    if (folder / RUN).is_file():
        return
    if not given:
        hint = suggestion(folder, _RUNS, RUN)
        raise UserError(f"{folder} holds no finetuned model (no {RUN}); pass --finetuned_path{hint or _train()}")
    if not run_dir.exists():
        hint = suggestion(run_dir, _RUNS, RUN)
        raise UserError(f"there is no {run_dir} (--finetuned_path){hint or _train()}")
    if (folder / WEIGHTS).is_file():
        raise UserError(f"--finetuned_path {run_dir} is a checkpoint and no run; pass it as --checkpoint_dir")
    inside = sorted(folder.glob(f"*/{RUN}")) or sorted(folder.glob(f"*/*/{RUN}"))
    runs = " or ".join(str(p.parent) for p in inside[:3])
    hint = f", but runs are in it: --finetuned_path {runs}" if runs else "; pass the folder of a run"
    raise UserError(f"{folder} holds no finetuned model (no {RUN}){hint}")


def require_data(data_dir: Path) -> None:
    """Checks that a folder is a prepared data set; raises UserError, with the likely one or what to run, if not."""
    if (data_dir / _META).is_file():
        return
    make_one = (
        f"python scripts/prepare_alpaca.py --destination_path {data_dir} --checkpoint_dir FOLDER, "
        "or of your own rows with scripts/prepare_json.py"
    )
    if data_dir.is_file():
        if data_dir.name == _META or data_dir.suffix == ".npy":
            raise UserError(f"--data_dir {data_dir} is a file; pass the folder {data_dir.parent}")
        raise UserError(
            f"--data_dir {data_dir} is a file, not a prepared data set; make one of it with "
            f"python scripts/prepare_json.py --json_path {data_dir} --checkpoint_dir FOLDER"
        )
    if not data_dir.is_dir():
        hint = suggestion(data_dir, _DATA, _META)
        note = f"there is no folder {data_dir} (--data_dir), and so it is not a prepared data set"
        raise UserError(note + (hint or f"; make one with {make_one}"))
    if (data_dir / WEIGHTS).is_file():
        raise UserError(f"--data_dir {data_dir} is a checkpoint; pass it as --checkpoint_dir")
    inside = " or ".join(str(p.parent) for p in sorted(data_dir.glob(f"*/{_META}"))[:3])
    hint = f", but holds some: --data_dir {inside}" if inside else f"; make one with {make_one}"
    raise UserError(f"{data_dir} is not a prepared data set (no {_META}){hint}")


def require_there(flag: str, path: Path) -> None:
    """Checks that a file or folder is there; raises UserError if it is not."""
    if not path.exists():
        raise UserError(f"there is no {path} (--{flag}){suggestion(path) or '; check the path'}")


def require_file(flag: str, path: Path) -> None:
    """Checks that a file is there; raises UserError if it is not."""
    require_there(flag, path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in ROWS)[:3]
        inside = f"; it holds {', '.join(map(str, files))}" if files else ""
        raise UserError(f"--{flag} {path} is a folder, and a file is wanted{inside}")


def require_free_for(flag: str, path: Path, folder: bool) -> None:
    """Checks that a new folder would not replace a file, or a new file a folder; raises UserError if it would."""
    if folder and path.is_file():
        raise UserError(f"--{flag} {path} is a file, and a folder is to be made there; pass another one")
    if not folder and path.is_dir():
        raise UserError(f"--{flag} {path} is a folder, and a file is to be written; pass a name in it")


def results_of(out_dir: Path) -> list[Path]:
    """Returns the results in a run's folder, which somebody may want to keep."""
    return [path for pattern in _RESULTS for path in out_dir.glob(pattern)]


def require_no_results(out_dir: Path) -> None:
    """Checks that the folder of a new run has no results of another one; raises UserError if it has."""
    if results_of(out_dir):
        raise UserError(
            f"{out_dir} holds another run; pass --resume true to go on with it, another --out_dir, or --overwrite true "
            "to replace it"
        )


def suggestion(path: Path, usual: str | None = None, mark: str = WEIGHTS) -> str:
    """Returns `; did you mean X?`, by what is close where the path ends to exist, or in the usual folders.

    Args:
        usual: pattern of the usual folders.
        mark: file that these have.

    Returns:
        An empty text if nothing is close.
    """
    there = next((p for p in path.parents if p.is_dir()), Path())
    rest = path.parts[len(there.parts) if there != Path() else 0 :]
    names = {name.lower(): name for name in _names(there)}
    found = [names[low] for low in get_close_matches(rest[0].lower(), names, n=3)] if rest else []
    near = [place for place in (there.joinpath(name, *rest[1:]) for name in found) if place.exists()]
    if not near and usual:
        places = {str(p): p for p in sorted(Path().glob(usual)) if (p / mark).is_file()}
        by_name = {p.name.lower(): p for p in places.values()}
        near = [by_name[name] for name in get_close_matches(path.name.lower(), by_name, n=3, cutoff=0.6)]
        if not near and places:
            return f"; here {'is' if len(places) == 1 else 'are'} {', '.join(list(places)[:3])}"
    return f"; did you mean {' or '.join(map(str, near))}?" if near else ""


def _names(folder: Path) -> Iterable[str]:
    """Returns the names in a folder that may be read, without hidden ones."""
    try:
        return [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    except OSError:
        return []


def _train() -> str:
    return "; run a finetune script first, such as python finetune/lora.py"


def _use_of_run(run_dir: Path, takes_runs: bool) -> str:
    """Returns what to do with a run that was passed as a checkpoint."""
    record = _record(run_dir)
    method, base = record.get("method", "lora"), record.get("base", "BASE")
    flags = f"--checkpoint_dir {base} --finetuned_path {run_dir}"
    note = f"--checkpoint_dir {run_dir} is a run of finetune/{method}.py on {base}, not a checkpoint"
    if (run_dir / "merged" / WEIGHTS).is_file():
        note += f"; its merged weights are one: --checkpoint_dir {run_dir / 'merged'}"
    if takes_runs:
        return f"{note}; pass {flags}"
    merge = f", and python scripts/merge_lora.py {flags} makes a checkpoint of it" if method in ("lora", "full") else ""
    return f"{note}; python generate/{method}.py {flags} asks it{merge}"


def _record(run_dir: Path) -> dict[str, str]:
    """Returns the texts in the record of a run; none if it is damaged."""
    try:
        return {key: value for key, value in read_object(run_dir / RUN).items() if isinstance(value, str)}
    except (OSError, UserError):
        return {}
