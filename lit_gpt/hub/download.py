"""Fetches a model's files from the Hugging Face hub; a run that was cut goes on where it stopped."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.families import MODELS
from lit_gpt.hub.failures import one_line_errors
from lit_gpt.hub.supported import check_supported

_CONFIG = "config.json"
# Names in a repository; original/, onnx/ and the like are other people's formats.
_TOKENIZER_AND_CONFIG = (
    _CONFIG,
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
_WEIGHTS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
"""Shards and their index, in order of preference."""
_NAMED_TEMPLATE = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")
"""The only files that are taken out of a folder."""
_MAX_HTTP_SIZE = 50 * 10**9
"""Bytes; the hub serves larger files through its xet storage only."""


@dataclass(frozen=True)
class _HubFile:
    """One file of a repository: what the hub says of it, and where it goes."""

    name: str
    size: int
    checksum: str
    """SHA-256 of the content of a large (LFS) file, git's SHA-1 of the blob for the others."""
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def part(self) -> Path:
        """What has arrived so far. The checksum in its name keeps versions of the file apart."""
        return self._beside("incomplete")

    @property
    def marker(self) -> Path:
        """An empty file, not older than `path`: the checksum of `path` was found to be right."""
        return self._beside("whole")

    def _beside(self, ending: str) -> Path:
        return self.folder / ".download" / f"{self.name.replace('/', '.')}.{self.checksum[:12]}.{ending}"

    @property
    def n_arrived(self) -> int:
        """Bytes in `part`; 0 if it is too long to be a beginning of the file."""
        n = self.part.stat().st_size if self.part.exists() else 0
        return n if n <= self.size else 0


def download(
    name: str,
    root: Path,
    revision: str | None = None,
    token: str | None = None,
    tokenizer_only: bool = False,
    *,
    any_model: bool = False,
) -> Path:
    """Fetch a model into `root/<org>/<name>` and return that folder.

    Files that are there and whole are not fetched again; those begun are continued.

    Args:
        name: `org/name` of any model on the hub, or the short name of one that we know.
        revision: branch, tag or commit; None is the main branch.
        token: None is HF_TOKEN, or the one that `hf auth login` saved.
        tokenizer_only: leave the weights out.
        any_model: fetch the weights of a model that cannot be converted, too.

    Raises:
        UserError: everything that the user can mend, from a misspelt name to a full disk; the message says how.
    """
    name = name.removeprefix("https://").removeprefix("huggingface.co/").strip("/")  # as it is copied from there
    repo_id = MODELS[name]["hf_repo"] if name in MODELS else name
    folder = root / repo_id
    _check_token(token)
    _quiet_client()
    with one_line_errors(repo_id, revision, token, folder):
        commit, listed, base_models = _list_files(repo_id, revision, token, folder)
        files = _choose(repo_id, listed, tokenizer_only)
        with_check = not (tokenizer_only or any_model or any(f.name.endswith(".gguf") for f in files))
        with _only_one(folder):
            missing = [f for f in files if not _is_whole(f)]
            missing.sort(key=lambda f: f.name != _CONFIG)  # which says whether the rest is of use
            _check_space(missing, folder)
            for i, file in enumerate(missing, 1):
                if with_check and file.name != _CONFIG and (folder / _CONFIG).is_file():
                    check_supported(folder / _CONFIG, repo_id, base_models)
                    with_check = False
                _report(f"[{i}/{len(missing)}]", file)
                _fetch(file, repo_id, commit, token)
            if not tokenizer_only:  # all is there: other parts are of versions that we no longer want
                for leftover in (folder / ".download").glob("*.incomplete"):
                    leftover.unlink()
    return folder


def _check_token(token: str | None) -> None:
    """Raises: UserError if the token cannot be sent. The client would complain too, and quote it."""
    from huggingface_hub import get_token

    used = get_token() if token is None else token
    if used is not None and not (used.isascii() and used.isprintable() and used.split() == [used]):
        raise UserError("--token or HF_TOKEN is empty or has characters that no token has; copy it again")


def _list_files(
    repo_id: str, revision: str | None, token: str | None, folder: Path
) -> tuple[str | None, list[_HubFile], list[str]]:
    """The commit that `revision` stands for, the files at its top level, and the models that its page says it was
    made from.

    Raises:
        UserError: not a possible name, or the server is not a hub. Errors of the client pass through.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    try:
        info = HfApi().model_info(repo_id, revision=revision, token=token, files_metadata=True, timeout=30)
    except HFValidationError as e:
        raise UserError(f"--repo_id {repo_id!r} cannot be a model: names look like org/name") from e
    except json.JSONDecodeError as e:
        raise UserError(f"{constants.ENDPOINT} does not answer like the hub; check the network and HF_ENDPOINT") from e
    files = []
    for s in info.siblings or []:
        checksum = s.lfs.sha256 if s.lfs else s.blob_id
        if ("/" in s.rfilename or "\\" in s.rfilename) and not _NAMED_TEMPLATE.fullmatch(s.rfilename):
            continue
        if s.size is None or not checksum:
            raise UserError(f"{constants.ENDPOINT} does not tell the size of {s.rfilename}; unset HF_ENDPOINT")
        files.append(_HubFile(s.rfilename, s.size, checksum, folder))
    made_from = getattr(info.card_data, "base_model", None) or []
    made_from = [made_from] if isinstance(made_from, str) else list(made_from)
    return info.sha, sorted(files, key=lambda f: f.name), made_from


def _choose(repo_id: str, listed: list[_HubFile], tokenizer_only: bool) -> list[_HubFile]:
    """Tokenizer and configuration, then weights: safetensors if there are any, else `.bin`, else the only gguf.

    Raises:
        UserError: no weights that we read, or several ggufs.
    """
    small = [f for f in listed if any(fnmatch(f.name, p) for p in _TOKENIZER_AND_CONFIG)]
    if tokenizer_only:
        return small
    for pattern, index in _WEIGHTS:
        # a second dot is a variant of the same weights (model.fp16.safetensors)
        shards = [f for f in listed if fnmatch(f.name, pattern) and f.name.count(".") == 1]
        indices = [f for f in listed if f.name == index]
        if indices and len(shards) > 1:  # some repositories have the same in one file too
            shards = [f for f in shards if f.name != index.removesuffix(".index.json")]
        if shards:
            return small + indices + shards
    ggufs = [f for f in listed if f.name.endswith(".gguf")]
    if len(ggufs) == 1:
        return small + ggufs
    if ggufs:
        names = ", ".join(f.name for f in ggufs)
        raise UserError(f"{repo_id} has {len(ggufs)} gguf files; put the one you want into a folder by hand: {names}")
    patterns = ", ".join(pattern for pattern, _ in _WEIGHTS)
    raise UserError(f"{repo_id} has no weights ({patterns} or *.gguf); --tokenizer_only true fetches the rest")


def _is_whole(file: _HubFile) -> bool:
    """Whether the file is there with the hub's content. Marks it if so, for hashing 100 GB takes minutes."""
    if not file.path.is_file() or file.path.stat().st_size != file.size:
        return False
    if file.marker.exists() and file.marker.stat().st_mtime >= file.path.stat().st_mtime:
        return True
    if _hash_like(file.checksum, file.path) != file.checksum:
        return False
    file.marker.touch()
    return True


def _hash_like(checksum: str, path: Path) -> str:
    """The hash of a file's content, of the kind that `checksum` is."""
    if len(checksum) == 64:
        digest = hashlib.sha256()
    else:  # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_space(missing: list[_HubFile], folder: Path) -> None:
    """Raises: UserError if what is still to come does not fit on the disk."""
    need = sum(f.size - f.n_arrived for f in missing)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder} needs {human(need)} more and its disk has {human(free)} free; "
            "free some, or take another disk with --checkpoint_dir"
        )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep a second download away from the same parts. Raises: UserError if this is the second."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    (folder / ".download").mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(folder / ".download" / "lock", timeout=0.2):
            yield
    except Timeout as e:
        raise UserError(f"{folder} is being downloaded by another process; wait for it or end it") from e


def _fetch(file: _HubFile, repo_id: str, commit: str | None, token: str | None) -> None:
    """Put one file into its folder: continue its part, check it, rename it.

    Since huggingface_hub 1.18 `hf_hub_download` starts from zero in each process (its temporary files have random
    names, huggingface_hub issue 4196), and so does its xet transfer: hence the client's `http_get`, one level below,
    which goes on at any byte. Whoever sets HF_XET_HIGH_PERFORMANCE asks for speed instead, and gets it.

    Raises:
        UserError: what arrived is not what the hub has. Errors of the client and of the disk pass through.
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
        # compressed content can't be continued in the middle
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
    if _hash_like(file.checksum, arrived) != file.checksum:
        arrived.unlink()
        raise UserError(f"{file.name} arrived damaged and was thrown away; run the same command again")
    file.path.parent.mkdir(exist_ok=True)
    os.replace(arrived, file.path)
    file.marker.touch()


def _report(count: str, file: _HubFile) -> None:
    """One line a file where the client's progress bar is not drawn, as in a log file."""
    if not sys.stderr.isatty():
        begun = f", {human(file.n_arrived)} of it here already" if file.n_arrived else ""
        print(f"{count} {file.name} ({human(file.size)}{begun})", file=sys.stderr, flush=True)


def _quiet_client() -> None:
    """Turn the client's warnings off, so that what goes wrong is said once, by us; its own variables turn them on."""
    from huggingface_hub.utils import logging

    if not os.environ.keys() & {"HF_HUB_VERBOSITY", "HF_DEBUG"}:
        logging.set_verbosity_error()


def human(n_bytes: int) -> str:
    """A size in the largest unit that leaves a digit before the point."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} B"
