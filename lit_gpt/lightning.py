"""Lightning Fabric, imported without the packages that Lightning imports and that none of our scripts needs.

`import lightning.fabric` first imports all of Lightning, its Trainer included; then torchmetrics, for its version, and
with it transformers, scipy and matplotlib where they are installed; then the compiler of torch, for one class. Together
that takes longer than a short script runs. All of it is imported as ever when somebody asks for it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package whose modules can be imported, and whose own file runs once something else is asked of it."""

    def __getattr__(self, name: str) -> Any:
        with _LOCK:
            if type(self) is _Package and f"{self.__name__}.{name}" not in sys.modules:
                object.__setattr__(self, "__class__", ModuleType)  # a plain one from now on
                assert self.__spec__ and self.__spec__.loader
                self.__spec__.loader.exec_module(self)
        if (module := sys.modules.get(f"{self.__name__}.{name}")) is not None and name not in vars(self):
            return module  # it is being imported, and no attribute yet
        return self.__getattribute__(name)


class _AsDynamo(type):
    """The type of a class whose instances are those of torch's OptimizedModule: none before that is imported."""

    def __instancecheck__(cls, x: object) -> bool:
        theirs = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", None)
        return theirs is not None and isinstance(x, theirs)


class _OptimizedModule(metaclass=_AsDynamo):
    """What Fabric compares modules with to tell the compiled ones."""


_LOCK = RLock()
_STANDS_FOR = {"torchmetrics": {}, "torch._dynamo": {"OptimizedModule": _OptimizedModule}}
"""Modules that Fabric imports -> what it takes from them, besides their version."""


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Has stand-ins for modules of `_STANDS_FOR` that nobody has imported, and takes them away afterwards."""
    ours = {}
    for name, values in _STANDS_FOR.items():
        if name not in sys.modules:
            with suppress(PackageNotFoundError):
                ours[name] = ModuleType(name)
                vars(ours[name]).update(values, __version__=version(name.partition(".")[0]))
                sys.modules[name] = ours[name]
    try:
        yield
    finally:
        for name, module in ours.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _import_without_the_rest() -> None:
    """Imports Fabric without the rest; where it takes more than we know of, nothing of Lightning is imported."""
    import torch  # noqa: F401 torch imports parts of its compiler itself

    if "lightning" in sys.modules or (spec := find_spec("lightning")) is None:
        return
    try:
        package = module_from_spec(spec)
        vars(package)["__version__"] = version("lightning")
        package.__class__ = _Package
        sys.modules["lightning"] = package
        with _stand_ins():
            import lightning.fabric  # noqa: F401
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "lightning"]:
            del sys.modules[name]


_import_without_the_rest()

from lightning.fabric import Fabric  # noqa: E402
from lightning.fabric.strategies import DDPStrategy  # noqa: E402
from lightning.fabric.wrappers import _FabricOptimizer as FabricOptimizer  # noqa: E402

__all__ = ["DDPStrategy", "Fabric", "FabricOptimizer"]
