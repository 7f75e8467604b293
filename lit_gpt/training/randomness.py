"""The states of all random generators, taken and put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_states(device: torch.device) -> dict[str, Any]:
    """Returns the states of the random generators of Python, numpy, torch and `device`, as tensors and numbers."""
    numpy_state = np.random.get_state(legacy=False)
    mt19937 = numpy_state["state"]
    states = {
        "python": list(random.getstate()[1]),
        "numpy": [
            numpy_state["bit_generator"],
            torch.from_numpy(mt19937["key"].astype(np.int64)),
            mt19937["pos"],
            numpy_state["has_gauss"],
            numpy_state["gauss"],
        ],
        "torch": torch.get_rng_state(),
    }
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Sets the random generators to the states that `random_states` returned."""
    version, _, gauss = random.getstate()
    random.setstate((version, tuple(states["python"]), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Restores all random generators after the block, whatever it drew or seeded."""
    before = random_states(device)
    try:
        yield
    finally:
        set_random_states(before, device)
