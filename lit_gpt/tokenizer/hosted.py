"""A tokenizer's backend in the process for foreign code, where it is proven and does all encoding."""

from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.backends import load
from lit_gpt.tokenizer.settings import Settings

_NUMBERS = "I"
"""Type of the numbers in which ids are sent to the process that asked."""
_PROBES = ("", "a", "Hello, world 12\n\n  \u00e9\u4e2d\U0001f600")


class _Hosted:
    """A backend that has been loaded and has encoded and decoded a few short texts.

    Raises:
        UserError: the file is damaged, or the library fails on it.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        try:
            self.backend = load(path, settings)
            for ids in (*map(self.backend.encode, _PROBES), *self.backend.continue_batch(_PROBES)):
                self.backend.decode(ids)
        except (UserError, MemoryError):
            raise
        except BaseException as e:  # pyo3's panics are no Exceptions
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"{path} is damaged: the tokenizer library fails on it ({reason}); get it again") from e

    def facts(self) -> dict[str, Any]:
        """Returns what is asked of a tokenizer again and again."""
        return {
            "special": {role: self.backend.special_id(role) for role in ("bos", "eos")},
            "vocab_size": self.backend.vocab_size(),
            "n_pieces": self.backend.n_pieces(),
            "added_tokens": self.backend.added_tokens(),
            "beyond_the_file": self.backend.beyond_the_file(),
        }

    def run(self, method: str, *args: Any) -> Any:
        """Returns what a method of the backend returns."""
        return getattr(self.backend, method)(*args)

    def encode(self, method: str, texts: Sequence[str]) -> bytes:
        """Returns what a method makes of texts that returns the ids of each, as 32-bit integers: the number of texts,
        the number of ids of each, and the ids; JSON takes ten times as long.
        """
        found = getattr(self.backend, method)(texts)
        numbers = array(_NUMBERS, (len(found), *map(len, found)))
        for ids in found:
            numbers.fromlist(ids)
        return numbers.tobytes()


def ids_of(sent: bytes | memoryview) -> list[list[int]]:
    """Returns the ids of each text, of what `encode` sent; raises ValueError if it is cut."""
    numbers = memoryview(sent).cast("B").cast(_NUMBERS)
    n = numbers[0] + 1
    ends = list(accumulate(numbers[1:n]))
    if len(numbers) != n + (ends[-1] if ends else 0):
        raise ValueError(f"{len(numbers):,} numbers came of the ids of {n - 1:,} texts")
    ids = numbers[n:].tolist()
    return [ids[start:end] for start, end in pairwise([0, *ends])]
