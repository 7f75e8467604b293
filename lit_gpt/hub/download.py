"""Downloads a model's files from the Hugging Face hub; an interrupted download resumes where it stopped."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.families import MODELS
from lit_gpt.files import write_text
from lit_gpt.hub.failures import one_line_errors
from lit_gpt.hub.repository import CONFIG, HubFile, choose_files, hash_like, list_files
from lit_gpt.hub.supported import check_supported

REVISION = "revision"
"""File in a download's .download/ with the commit that its files are of."""
_MAX_HTTP_SIZE = 50 * 10**9
"""Number of bytes above which the hub serves a file through its xet storage only."""


def download(
    name: str,
    root: Path,
    revision: str | None = None,
    token: str | None = None,
    tokenizer_only: bool = False,
    *,
    any_model: bool = False,
) -> Path:
    """Downloads a model into `root/<org>/<name>` and returns that folder.

    Complete files are not downloaded again; partial ones are resumed.

    Args:
        name: `org/name` of any model on the hub, or the short name of a known one.
        revision: branch, tag or commit; None is the main branch.
        token: None is HF_TOKEN, or the one that `hf auth login` saved.
        tokenizer_only: leave the weights out.
        any_model: download the weights even if the model cannot be converted.

    Raises:
        UserError: anything that the user can fix, from a misspelt name to a full disk; the message says how.
    """
    name = name.removeprefix("https://").removeprefix("huggingface.co/").strip("/")  # users paste the page's address
    repo_id = MODELS[name]["hf_repo"] if name in MODELS else name
    folder = root / repo_id
    _check_token(token)
    _quiet_client()
    with one_line_errors(repo_id, revision, token, folder):
        commit, listed, base_models = list_files(repo_id, revision, token, folder)
        files = choose_files(repo_id, listed, tokenizer_only)
        with_check = not (tokenizer_only or any_model or any(f.name.endswith(".gguf") for f in files))
        with _exclusive(folder):
            missing = [f for f in files if not _is_whole(f)]
            missing.sort(key=lambda f: f.name != CONFIG)  # first: it tells whether the model can be converted
            _check_space(missing, folder)
            for i, file in enumerate(missing, 1):
                if with_check and file.name != CONFIG and (folder / CONFIG).is_file():
                    check_supported(folder / CONFIG, repo_id, base_models)
                    with_check = False
                _report(f"[{i}/{len(missing)}]", file)
                _fetch(file, repo_id, commit, token)
            if commit is not None:
                write_text(folder / ".download" / REVISION, f"{commit}\n")
            if not tokenizer_only:  # all files are complete: any other partial file is of an older revision
                for leftover in (folder / ".download").glob("*.incomplete"):
                    leftover.unlink()
    return folder


def _check_token(token: str | None) -> None:
    """Checks that the token can be sent in a header; raises UserError if not.

    The client would complain too, but its message quotes the token.
    """
    from huggingface_hub import get_token

    used = get_token() if token is None else token
    if used is not None and not (used.isascii() and used.isprintable() and used.split() == [used]):
        raise UserError("--token or HF_TOKEN is empty or has characters that no token has; copy it again")


def _is_whole(file: HubFile) -> bool:
    """Returns whether the file is complete and has the hub's content.

    Writes a marker if so, since hashing 100 GB takes minutes.
    """
    if not file.path.is_file() or file.path.stat().st_size != file.size:
        return False
    if file.marker.exists() and file.marker.stat().st_mtime >= file.path.stat().st_mtime:
        return True
    if hash_like(file.checksum, file.path) != file.checksum:
        return False
    file.marker.touch()
    return True


def _check_space(missing: list[HubFile], folder: Path) -> None:
    """Checks that the remaining bytes fit on the disk; raises UserError if not."""
    need = sum(f.size - f.n_arrived for f in missing)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder} needs {human(need)} more and its disk has {human(free)} free; "
            "free some, or take another disk with --checkpoint_dir"
        )


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Locks the folder so that no second download writes the same partial files; raises UserError if it is locked."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    (folder / ".download").mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(folder / ".download" / "lock", timeout=0.2):
            yield
    except Timeout as e:
        raise UserError(f"{folder} is being downloaded by another process; wait for it or end it") from e


def _fetch(file: HubFile, repo_id: str, commit: str | None, token: str | None) -> None:
    """Downloads one file: resumes its partial file, verifies the checksum, renames it into place.

    Since huggingface_hub 1.18 `hf_hub_download` starts from zero in each process (its temporary files have random
    names, huggingface_hub issue 4196), and so does its xet transfer. This uses the client's `http_get` instead, one
    level below, which can resume at any byte. With HF_XET_HIGH_PERFORMANCE set, speed wins over resuming.

    Raises:
        UserError: the received content does not match the checksum. Errors of the client and the disk pass through.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    n_arrived = file.n_arrived
    prefers_speed = os.environ.get("HF_XET_HIGH_PERFORMANCE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    if file.size > _MAX_HTTP_SIZE or (prefers_speed and not n_arrived):
        arrived = Path(hf_hub_download(repo_id, file.name, revision=commit, local_dir=file.folder, token=token))
    else:
        arrived = file.part
        # a compressed response cannot be resumed in the middle
        headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
        with arrived.open("ab" if n_arrived else "wb") as f:
            if n_arrived < file.size:
                http_get(
                    hf_hub_url(repo_id, file.name, revision=commit),
                    f,
                    resume_size=n_arrived,
                    headers=headers,
                    expected_size=file.size,
                    displayed_filename=file.name,
                )
    if hash_like(file.checksum, arrived) != file.checksum:
        arrived.unlink()
        raise UserError(f"{file.name} arrived damaged and was thrown away; run the same command again")
    file.path.parent.mkdir(exist_ok=True)
    os.replace(arrived, file.path)
    file.marker.touch()


def _report(count: str, file: HubFile) -> None:
    """Prints one line for a file where the client's progress bar is not drawn, such as in a log file."""
    if not sys.stderr.isatty():
        begun = f", {human(file.n_arrived)} of it here already" if file.n_arrived else ""
        print(f"{count} {file.name} ({human(file.size)}{begun})", file=sys.stderr, flush=True)


def _quiet_client() -> None:
    """Silences the client's warnings, so that each problem is reported once, by us.

    The client's own environment variables turn them on again.
    """
    from huggingface_hub.utils import logging

    if not os.environ.keys() & {"HF_HUB_VERBOSITY", "HF_DEBUG"}:
        logging.set_verbosity_error()


def human(n_bytes: int) -> str:
    """Returns a size as text, in the largest unit in which it is at least 1."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} B"
