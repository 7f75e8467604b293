"""Checks that the paths among a script's flags exist and are of the right kind, before anything heavy is imported."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.args import folders
from lit_gpt.cli.flags import flags_of
from lit_gpt.errors import UserError

_READ = ("data_file", "validation_file", "csv_path", "best_task_path", "task_path")
"""Flags that name a file to be read."""
_FOLDERS = ("task_path", "best_task_path")
"""Flags of _READ that may also name a folder."""
_READ_MANY = ("task_data", "best_task_data", "sources")
"""Flags that name a file or folder, or several by name."""
_RUNS = ("runs", "sft_run")
"""Flags that name a run, or several, beside --finetuned_path."""
_MADE = ("out_dir", "destination_path", "output_dir")
"""Flags that name a folder to be made."""
_WRITTEN = ("save_filepath",)
"""Flags that name a file to be written."""


def check_paths(
    main: Callable[..., None], values: Mapping[str, Any], unchecked: Collection[str] = (), method: str | None = None
) -> None:
    """Checks that the files and folders which a script will read exist, and that it can write where it will.

    Args:
        values: values of all flags.
        unchecked: flags whose values are not checked.
        method: the method whose default run is required if --finetuned_path is not given.

    Raises:
        UserError: a path that does not exist or is of another kind; the message suggests a similar one.
    """
    given = {name: value for name, value in values.items() if value is not None and name not in unchecked}
    flags = flags_of(main)
    for name, check in _checks(given, "finetuned_path" in flags).items():
        if name not in given:
            continue
        try:
            check(given[name])
        except UserError as e:
            by_default = f"(--{name}, by default)" if given[name] == flags[name].default else f"(--{name})"
            raise UserError(str(e).replace(f"(--{name})", by_default)) from None
    if method is not None and values["finetuned_path"] is None:
        folders.require_run(folders.default_out_dir(method, values["checkpoint_dir"]), given=False)


def _checks(given: Mapping[str, Any], takes_runs: bool) -> dict[str, Callable[[Any], None]]:
    """Returns the check of each flag's value, by flag."""
    checks: dict[str, Callable[[Any], None]] = {}
    if not given.get("dry_run"):  # a plan needs no weights
        checks["checkpoint_dir"] = lambda path: folders.require_checkpoint(path, takes_runs)
    checks |= {"data_dir": folders.require_data, "finetuned_path": _check_finetuned, "json_path": _check_rows}
    for name in _RUNS:
        checks[name] = lambda value, name=name: _check_runs(name, value)
    for name in _READ:
        require = folders.require_there if name in _FOLDERS else folders.require_file
        checks[name] = lambda path, name=name, require=require: require(name, path)
    for name in _READ_MANY:
        checks[name] = lambda value, name=name: _check_many(name, value)
    for name in (*_MADE, *_WRITTEN):
        checks[name] = lambda path, name=name: folders.require_free_for(name, path, folder=name in _MADE)
    if "resume" in given and not (given["resume"] or given["overwrite"] or given["dry_run"]):  # a new run
        checks["out_dir"] = _check_new_run
    return checks


def _check_new_run(out_dir: Path) -> None:
    folders.require_free_for("out_dir", out_dir, folder=True)
    folders.require_no_results(out_dir)


def _check_many(name: str, value: Any) -> None:
    """Checks a path, or a mapping of names to paths, which may be nested."""
    for part in value.values() if isinstance(value, Mapping) else ():
        _check_many(name, part)
    if not isinstance(value, Mapping):
        folders.require_there(name, Path(value))


def _check_finetuned(value: Path | Sequence[Path]) -> None:
    """Checks that --finetuned_path names a run, or several."""
    for run_dir in [value] if isinstance(value, Path) else value:
        folders.require_run(run_dir)


def _check_runs(name: str, value: Path | Sequence[Path]) -> None:
    """Checks that a flag of another name than --finetuned_path names a run, or several."""
    try:
        _check_finetuned(value)
    except UserError as e:
        raise UserError(str(e).replace("--finetuned_path", f"--{name}")) from None


def _check_rows(name: str) -> None:
    """Checks --json_path if it looks like a file; it may also be a URL or the name of a data set."""
    path = Path(name)
    if "://" not in name and path.suffix in folders.ROWS and not path.exists():
        folders.require_there("json_path", path)
