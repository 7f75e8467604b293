"""A weight that a file holds as several tensors: which they are, checked by dtype and shape before any is read.

Shapes: O out_features, I in_features of a weight (O, I).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_gpt.convert.quantized.settings import Settings
from lit_gpt.errors import UserError, shown
from lit_gpt.files import Spec
from lit_gpt.layers.quantize.four_bits import FourBits

_STEP = 2**21
"""Number of values that are dequantized at a time, since each takes several copies in fp32."""
_AGAIN = "the file is damaged or of a variant that is not read; get it again, or another file of this model"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Weight:
    """A quantized weight of a file."""

    shape: tuple[int, ...]
    read: Callable[[torch.dtype], Tensor]
    """Function that returns its values in a dtype; only then are they read."""
    parts: tuple[str, ...]
    """Names of the tensors that it is made of."""
    kept: "Kept | None" = None
    """How to have it in bitsandbytes' 4 bits, if it is in these and its blocks are parts of rows."""


@dataclass(frozen=True)
class Kept:
    """A weight in bitsandbytes' 4 bits that may stay in these."""

    values: str
    """Key of VALUES."""
    block: int
    """Number of weights of a row that share a scale."""
    read: Callable[[], FourBits]
    """Function that returns its codes and scales in the shape of the weight but for the last dimension."""


@dataclass
class Parts:
    """The tensors of a file of quantized weights, and those that a weight has been made of so far."""

    specs: Mapping[str, Spec]
    get: Callable[[str], Tensor]
    settings: Settings
    taken: list[str] = field(default_factory=list)

    def take(self, name: str, dtypes: Iterable[torch.dtype], n_dims: int) -> tuple[int, ...]:
        """Returns the shape of a tensor that belongs to a quantized weight.

        Raises:
            UserError: it is missing, or of another dtype or number of dimensions.
        """
        if name not in self.specs:
            raise self.misfit(f"it lacks {shown(name)}")
        spec = self.specs[name]
        if spec.dtype not in tuple(dtypes) or len(spec.shape) != n_dims or 0 in spec.shape:
            raise self.misfit(f"{shown(name)} is {str(spec.dtype).removeprefix('torch.')} {list(spec.shape)}")
        self.taken.append(name)
        return spec.shape

    def take_if_there(self, name: str, dtypes: Iterable[torch.dtype], n_dims: int) -> tuple[int, ...] | None:
        return self.take(name, dtypes, n_dims) if name in self.specs else None

    def require(self, fits: bool, *names: str) -> None:
        """Checks that the shapes of some tensors go together; raises UserError with them if not."""
        if not fits:
            stated = " and ".join(f"{shown(n)} {list(self.specs[n].shape)}" for n in names if n in self.specs)
            raise self.misfit(f"{stated} do not go together")

    def misfit(self, what: str) -> UserError:
        return UserError(f"{self.settings.where}: of weights quantized by {self.settings.name}, {what}; {_AGAIN}")

    def weight(self, shape: tuple[int, ...], read: Callable[[torch.dtype], Tensor]) -> Weight:
        """Returns the weight of the tensors that were taken since the one before."""
        parts, self.taken = tuple(self.taken), []
        return Weight(shape, read, parts)


def by_rows(
    shape: tuple[int, ...], load: Callable[[], Callable[[int, int], Tensor]], multiple: int = 1
) -> Callable[[torch.dtype], Tensor]:
    """Returns the reader of a matrix, which dequantizes some rows at a time.

    Args:
        shape: (O, I).
        load: returns the function of rows start .. stop in fp32, (stop - start, I), with the tensors that it needs.
        multiple: number of rows to whose multiples they are divided.
    """

    def read(dtype: torch.dtype) -> Tensor:
        out, rows = torch.empty(shape, dtype=dtype), load()
        step = max(1, _STEP // shape[1] // multiple) * multiple
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            out[start:stop] = rows(start, stop)
        return out

    return read
