"""Finetune open decoder-only language models on one GPU in one day.

A script of another clone than the installed one runs the library of its own clone: what somebody edits there is what
runs. Only this file decides so, and nothing is put on the path.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

__version__ = "0.2.0"
"""Version of the toolkit, which checkpoints and runs record; CHANGELOG.md says what changed."""


def _library_of_script() -> Path | None:
    """The library beside the folder of the script that was started, if it is another one than this; else None."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None:
        return None
    theirs, ours = Path(script).resolve().parent.parent / "lit_gpt" / "__init__.py", Path(__file__).resolve()
    return theirs if theirs.is_file() and theirs != ours else None


if _other := _library_of_script():
    print(
        f"note: this script runs its own library, {_other.parent}, and not the installed one, "
        f"{Path(__file__).resolve().parent}; pip install -e {_other.parent.parent} changes that",
        file=sys.stderr,
    )
    _spec = spec_from_file_location(__name__, _other, submodule_search_locations=[str(_other.parent)])
    assert _spec and _spec.loader
    sys.modules[__name__] = module_from_spec(_spec)  # what an import of this package returns
    _spec.loader.exec_module(sys.modules[__name__])
