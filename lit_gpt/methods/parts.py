"""The parts of a model that are loaded one after the other: its blocks, and what is left when they are there."""

from collections.abc import Iterator

from lit_gpt.model import GPT

_BLOCK = "transformer.h."


def parts_of(model: GPT) -> Iterator[str]:
    """Yields the paths of the blocks, and at last "", which stands for all that is in no block."""
    yield from (f"{_BLOCK}{i}" for i in range(len(model.transformer.h)))
    yield ""


def within(path: str, part: str | None) -> bool:
    """Returns whether a module or parameter lies in a part of `parts_of`; None is the whole model."""
    if part is None:
        return True
    return not path.startswith(_BLOCK) if part == "" else path == part or path.startswith(f"{part}.")
