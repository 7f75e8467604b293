"""Imports of large packages while no garbage is collected."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Collects no garbage while torch is imported, and never looks at what is there afterwards: it is no garbage.

    Python would look through all that torch makes time and again, which takes a fifth of its import. Where torch has
    been imported already, nothing changes.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
