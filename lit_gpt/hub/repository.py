"""The files of a model's repository on the Hugging Face hub, and which of them a checkpoint needs."""

import hashlib
import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lit_gpt.errors import UserError

CONFIG = "config.json"
# File names in a repository; subfolders such as original/ and onnx/ hold other formats.
_TOKENIZER_AND_CONFIG = (
    CONFIG,
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
"""Patterns of the shards and the name of their index, in order of preference."""
_NAMED_TEMPLATE = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")
"""Names of the only files that are downloaded from a subfolder."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: what the hub says about it, and where it is saved."""

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
        """The partial file. The checksum in its name keeps versions of the file apart."""
        return self._beside("incomplete")

    @property
    def marker(self) -> Path:
        """An empty file, not older than `path`, which records that the checksum of `path` was verified."""
        return self._beside("whole")

    def _beside(self, ending: str) -> Path:
        return self.folder / ".download" / f"{self.name.replace('/', '.')}.{self.checksum[:12]}.{ending}"

    @property
    def n_arrived(self) -> int:
        """Number of bytes in `part`; 0 if it is too long to be a prefix of the file."""
        n = self.part.stat().st_size if self.part.exists() else 0
        return n if n <= self.size else 0


def list_files(
    repo_id: str, revision: str | None, token: str | None, folder: Path
) -> tuple[str | None, list[HubFile], list[str]]:
    """Returns the commit that `revision` stands for, its top-level files, and the base models that its page names.

    Raises:
        UserError: the name is impossible, or the server is not a hub. The client's own errors pass through.
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
        files.append(HubFile(s.rfilename, s.size, checksum, folder))
    made_from = getattr(info.card_data, "base_model", None) or []
    made_from = [made_from] if isinstance(made_from, str) else list(made_from)
    return info.sha, sorted(files, key=lambda f: f.name), made_from


def choose_files(repo_id: str, listed: list[HubFile], tokenizer_only: bool) -> list[HubFile]:
    """Returns the files to download: tokenizer and configuration, then the weights.

    Weights are the safetensors files if there are any, else the `.bin` files, else the only gguf file.

    Raises:
        UserError: there are no weights in a format that can be read, or several gguf files.
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


def hash_like(checksum: str, path: Path) -> str:
    """Returns the hash of a file's content, by the algorithm that made `checksum`."""
    if len(checksum) == 64:
        digest = hashlib.sha256()
    else:  # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
