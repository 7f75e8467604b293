"""What every section of the GPU benchmark is given: the device, the shapes, the clock and the figures found so far."""

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from lit_gpt.config import Config
from lit_gpt.families import config_for

T = TypeVar("T")


@dataclass
class Context:
    """Handed from section to section; `figures` is what the table at the end is made of."""

    device: torch.device
    tiny: bool
    """A toy shape and few repeats, to see that everything runs."""
    ends: float
    """`time.monotonic()` at which the section has to be done."""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds left to the section."""
        return self.ends - time.monotonic()

    @property
    def repeats(self) -> int:
        """How often a step is timed; the median counts."""
        return 2 if self.tiny else 3

    @property
    def config(self) -> Config:
        """Llama-2-7B's shape, or a toy of the same kind."""
        return toy() if self.tiny else config_for("Llama-2-7b-hf")

    @property
    def rows(self) -> int:
        """Tokens of a micro-batch."""
        return 128 if self.tiny else 4096

    def attempt(self, name: str, work: Callable[..., T], *args: object, needs_s: float = 10.0) -> T | None:
        """work(*args), whose failure is printed and takes nothing else along: then None is returned.

        Args:
            needs_s: seconds that must be left for it to start.
        """
        start = time.monotonic()
        if not self.tiny and self.left < needs_s:
            print(f"  {name}: skipped, {max(0.0, self.left):.0f} s are left and it takes {needs_s:.0f}", flush=True)
            return None
        result = None
        try:
            result = work(*args)
        except Skip as e:
            print(f"  {name}: skipped, {e}", flush=True)
        except Exception as e:
            lines = traceback.format_exc().strip().splitlines()
            print(f"  {name}: FAILED, {type(e).__name__}", *lines[-8:], sep="\n    ", flush=True)
        free(self.device)
        if time.monotonic() - start > 3:
            print(f"  [{name}: {time.monotonic() - start:.0f} s]", flush=True)
        return result


class Skip(Exception):
    """A case cannot run here; the message says why."""


def toy() -> Config:
    """A decoder of Llama's kind with 0.4 M parameters."""
    return Config(
        name="toy",
        architecture="llama",
        n_layer=2,
        n_head=4,
        n_embd=128,
        intermediate_size=352,
        block_size=512,
        vocab_size=512,
        norm="rms",
        mlp="gated",
        activation="silu",
        parallel_residual=False,
        rotary_percentage=1.0,
    )


def free(device: torch.device) -> None:
    """Give the memory of what is no longer used back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
