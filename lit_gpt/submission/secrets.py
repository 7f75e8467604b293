"""Looks for keys, tokens and passwords in what is about to be handed to others."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.errors import UserError

_OF_CHANCE = ("Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector")
"""Detectors that take every hash and address for a secret; a manifest consists of hashes."""
_KEYWORDS = "KeywordDetector"
_OF_ASSIGNMENTS = (_KEYWORDS, "IbmCloudIamDetector", "CloudantDetector", "IbmCosHmacDetector", "SoftlayerDetector")
"""Detectors of what is assigned to a name such as `password`; in prose and in code they see what is none."""
_MORE = {
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "Token in an assignment": re.compile(
        r"(?i)\b(?:hf_token|hugging_?face_(?:hub_)?token|wandb_api_key|github_token)['\"]?\s*[:=]\s*['\"]?[\w-]{20,}"
    ),
}
"""What detect-secrets has no detector for."""
_BINARY = (".pth", ".safetensors", ".bin", ".npy", ".model", ".png", ".zip", ".woff2")


class _Secret(NamedTuple):
    """A line that looks as if it held a secret; what it is, is not told."""

    path: str
    line: int
    kind: str


def find_secrets(folder: Path, paths: Iterable[str], skipped: Iterable[str], prose: Iterable[str]) -> Iterator[_Secret]:
    """Yields the lines of text files that look as if they held a secret.

    Args:
        paths: files in the folder.
        skipped: those that are not looked at.
        prose: beginnings of paths of texts and of code, in which a word such as `password` means nothing.

    Raises:
        UserError: detect-secrets is not installed.
    """
    detectors = _detectors()
    left_out, texts = set(skipped), tuple(prose)
    for path in paths:
        if path in left_out or path.endswith(_BINARY):
            continue
        used = [d for d in detectors if not path.startswith(texts) or type(d).__name__ not in _OF_ASSIGNMENTS]
        text = (folder / path).read_text(encoding="utf-8", errors="replace")
        for detector in used:
            yield from (_Secret(path, n, detector.secret_type) for n in _lines(path, text, detector))
        for kind, pattern in _MORE.items():
            yield from (_Secret(path, 1 + text.count("\n", 0, found.start()), kind) for found in pattern.finditer(text))


def _lines(path: str, text: str, detector: Any) -> Iterator[int]:
    """Yields the numbers of the lines in which a detector sees something; asks no server whether it is valid.

    A file in which it sees nothing, as in nearly all, is looked through at once.
    """
    by_line = type(detector).__name__ == _KEYWORDS  # whose patterns go by the kind of the file
    if by_line or any(detector.analyze_string(text)):
        for number, line in enumerate(text.split("\n"), 1):
            if detector.analyze_line(path, line) if by_line else any(detector.analyze_string(line)):
                yield number


@cache
def _detectors() -> list[Any]:
    """Returns the detectors of detect-secrets that know what a secret looks like."""
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ModuleNotFoundError as e:
        raise UserError(
            'a submission is searched for secrets by detect-secrets; run: pip install -e ".[serve,submit]"'
        ) from e
    classes = get_mapping_from_secret_type_to_class().values()
    return [kind() for kind in classes if kind.__name__ not in _OF_CHANCE]
