"""Decorator that compiles small tensor functions on a GPU, so that one pass over memory replaces several."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

from lit_gpt.errors import UserError

_settings = {"compile": False}  # of the whole process, like torch's number of threads


def set_compile(on: bool) -> None:
    """Sets whether functions decorated with `compiled_on_gpu` are compiled on a GPU; on a CPU they never are."""
    _settings["compile"] = on


@contextmanager
def compiling(on: bool = True) -> Iterator[None]:
    """Applies `set_compile(on)` inside the context and restores the previous setting afterwards."""
    before = _settings["compile"]
    set_compile(on)
    try:
        yield
    finally:
        set_compile(before)


def compiled_on_gpu(fn: Callable[..., Any], dynamic: int | None = None) -> Callable[..., Any]:
    """Returns `fn`, compiled for calls whose first argument is on a GPU.

    Args:
        fn: a function of tensors; further arguments are constants of the model.
        dynamic: number of leading dimensions of each tensor, parameters excepted, that may change from call to call
            without a recompilation; None means all but the last one.

    Raises:
        UserError: torch.compile fails on this machine; raised when the function is called.
    """

    @cache
    def compiled() -> Callable[..., Any]:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)  # dtypes times widths
        return torch.compile(fn, dynamic=False)

    @wraps(fn)
    def call(*args: Any) -> Any:
        if not _settings["compile"] or not args[0].is_cuda or torch.compiler.is_compiling():
            return fn(*args)
        for x in args:
            if isinstance(x, Tensor) and x.dim() > 1 and not isinstance(x, torch.nn.Parameter):
                torch._dynamo.maybe_mark_dynamic(x, list(range(min(x.dim() - 1, dynamic or x.dim()))))
        try:
            return compiled()(*args)
        # torch imports its compiler when it is used
        except torch._dynamo.exc.TorchDynamoException as e:  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError(f"torch.compile fails here: {str(e).strip().splitlines()[0]}; pass --compile false") from e

    return call
