"""Compiles small modules by TorchScript: each structure once, however many modules have it."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import nn

from lit_gpt.methods.lora.layer import LoRALinear

_LOCK = Lock()


@contextmanager
def one_by_one() -> Iterator[None]:
    """Lets one thread in at a time, as TorchScript compiles in one, without warnings of removals in later releases."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_KEPT: WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]] = WeakKeyDictionary()
"""Module -> its parameters' identity and what was compiled of it, which takes seconds for a whole model."""
_PARTS: WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]] = WeakKeyDictionary()
"""Linear layer -> the same of its product with frozen weights, which serves while the updates beside it are trained."""

_ALIKE: WeakValueDictionary[Any, nn.Module] = WeakValueDictionary()
"""Structure -> a compiled module that has it, as long as that is used."""


def identity_of(module: nn.Module) -> list[Any]:
    """Returns what changes if a parameter is replaced or written to, or LoRA's updates are scaled otherwise."""
    parameters = [(p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in module.parameters()]
    return [*parameters, *(m.scaling for m in module.modules() if isinstance(m, LoRALinear))]


def compiled(module: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """Returns what `make` makes of a module, compiled by TorchScript.

    That of an earlier call is returned if the module's parameters have not changed since.
    """

    def made_and_compiled() -> nn.Module:
        made = make()
        with one_by_one():
            return _scripted(made)

    return _kept(_KEPT, [module], made_and_compiled)


def made_once(modules: Sequence[nn.Module], make: Callable[[], nn.Module]) -> nn.Module:
    """Returns what `make` makes of modules, to be a part of what is compiled; kept as `compiled` keeps the whole."""
    return _kept(_PARTS, modules, make)


def _kept(
    kept: WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]],
    modules: Sequence[nn.Module],
    make: Callable[[], nn.Module],
) -> nn.Module:
    """Returns what is kept of modules, under the first one; makes it if there is none or a parameter has changed."""
    identity = [identity_of(module) for module in modules]
    found = kept.get(modules[0])
    if found is None or found[0] != identity:
        found = kept[modules[0]] = identity, make()
    return found[1]


def _scripted(module: nn.Module) -> nn.Module:
    """Returns a module compiled by TorchScript: a copy of one of the same structure, with the values of this one.

    TorchScript reads the source of each module anew, which takes 20 ms a block.
    """
    structure = _structure(module)
    if (alike := _ALIKE.get(structure)) is not None:
        return _filled(copy.copy(alike), module)
    found = _ALIKE[structure] = torch.jit.script(module)
    return found


def _values(module: nn.Module) -> dict[str, Any]:
    """Returns the attributes of a module that are values of its own: no children, nothing of torch's."""
    return {name: x for name, x in vars(module).items() if name != "training" and not name.startswith("_")}


def _structure(module: nn.Module) -> Any:
    """Returns what decides on the types of a compiled module: the same for modules that differ in values only."""
    values = tuple((name, _kind(x)) for name, x in sorted(_values(module).items()))
    return type(module), values, tuple((name, _structure(child)) for name, child in module.named_children())


def _kind(x: Any) -> Any:
    """Returns the type of a value, and the types within a list or a tuple, as TorchScript tells them apart."""
    return (type(x), tuple(map(_kind, x))) if isinstance(x, list | tuple) else type(x)


def _filled(copied: Any, module: nn.Module) -> nn.Module:
    """Returns a copy of a compiled module, after giving it the values of another module and copies of its children."""
    for name, x in _values(module).items():
        setattr(copied, name, x)
    for name, child in module.named_children():
        setattr(copied, name, _filled(copy.copy(getattr(copied, name)), child))
    return copied


def release() -> None:
    """Frees what `compiled` made and keeps, with the packed weights in it; it is made again when it is asked for."""
    _KEPT.clear()
    _PARTS.clear()
