"""Interprets pickles without importing anything, within bounds of time and memory.

Python's own unpickler allocates what a file asks for (a table of 2^32 memorized objects, say), and torch's calls
constructors with sizes from the file. Here, the decoding of the operations is the standard library's
(`pickletools.genops`), what they do is this file's, and objects are made by functions that the caller lists.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

MAX_BYTES = 64 * 2**20
"""Largest size of a pickle; that of a checkpoint has about 100 bytes per tensor."""
_MAX_STEPS = 2_000_000
"""Largest number of operations of a pickle; that of a checkpoint has about 25 per tensor."""
_BYTES_PER_STEP = 64
"""Number of characters or bytes whose copy counts as one operation."""
_MAX_KEY = 16
"""Largest number of entries of a tuple that is a key."""


class RefusedError(Exception):
    """A file that names something that loading would import and call; the message says what."""


@dataclass(frozen=True)
class Made:
    """A function that stands for one that a pickle names, or for a class."""

    make: Callable[..., Any]


class Machine:
    """An interpreter of pickles.

    Args:
        find: returns what a module's name stands for: a `Made` or a plain value. Raises RefusedError if it must not
            be loaded.
        persistent: returns the object of a persistent id, which the caller must check.
    """

    def __init__(self, find: Callable[[str, str], Any], persistent: Callable[[Any], Any]) -> None:
        self.find, self.persistent = find, persistent
        self.steps_left = _MAX_STEPS
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: BytesIO) -> Any:
        """Returns the object of the pickle at the position of `file`, which is then behind it.

        Raises:
            RefusedError: the pickle names something that must not be loaded.
            Exception: of any kind, if the pickle is damaged.
        """
        self.stack, self.below, self.memo = [], [], {}
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            self.steps_left -= 1
            if self.steps_left < 0:
                self.charge(0)
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _OPERATIONS:
                _OPERATIONS[name](self, argument)
            elif name in _MADE_EMPTY:
                self.stack.append(_MADE_EMPTY[name]())
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"its pickle has the operation {name}, which no file of tensors needs")
        raise ValueError("its pickle has no end")

    def charge(self, steps: int) -> None:
        """Counts operations; raises ValueError if there are more than any checkpoint has."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise ValueError(f"its pickle has more than {_MAX_STEPS:,} operations")

    def call(self, function: Any, arguments: Any) -> Any:
        """Returns what a listed function makes of the arguments, whose copies are counted."""
        if not isinstance(function, Made) or not isinstance(arguments, tuple):
            raise ValueError(f"its pickle calls {type(function).__name__}")
        for x in arguments:
            if isinstance(x, (str, bytes)):
                self.charge(len(x) // _BYTES_PER_STEP)
            elif isinstance(x, (list, tuple, dict, set)):
                self.charge(len(x))
        return function.make(*arguments)

    def push_result(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, arguments))

    def push_result_of_names(self, _: Any) -> None:
        names, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, (*arguments, names)))

    def build(self, _: Any) -> None:
        self.stack.pop()  # the state of an object that is not needed, or attributes of a tensor

    def push_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.find(module, name))

    def push_global_of_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("its pickle names something by what is no name")
        self.stack.append(self.find(module, name))

    def push_persistent(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def drop_to_mark(self, _: Any) -> None:
        self.since_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def memorize(self, argument: int | None) -> None:
        self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]

    def recall(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    def push_tuple(self, n: int | None) -> None:
        if n is None:
            items = self.since_mark()  # which changes the stack
            self.stack.append(tuple(items))
            return
        if len(self.stack) < n:
            raise IndexError(f"a tuple of {n} is made of {len(self.stack)} objects")
        self.stack[-n:] = [tuple(self.stack[-n:])]

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"its pickle appends to {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Puts keys and values, one after the other, into the dict on top of the stack."""
        if not isinstance(self.stack[-1], dict):
            raise ValueError(f"its pickle sets an item of {type(self.stack[-1]).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][checked_key(key)] = value

    def append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def append_all(self, _: Any) -> None:
        self.extend(self.since_mark())

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def set_all(self, _: Any) -> None:
        self.update(self.since_mark())

    def push_frozen_set(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append(frozenset(map(checked_key, items)))

    def add_all(self, _: Any) -> None:
        items = self.since_mark()
        if not isinstance(self.stack[-1], set):
            raise ValueError(f"its pickle adds to {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(checked_key, items))


def checked_key(key: Any) -> Any:
    """Returns a key of a dict or member of a set, if its hash is quickly computed; raises ValueError if not.

    The hash of nested tuples takes as much stack as they are deep, and that of a long number or tuple is computed anew
    each time.
    """
    members = key if isinstance(key, tuple) and len(key) <= _MAX_KEY else (key,)
    for x in members:
        if isinstance(x, int) and abs(x) < 2**64:
            continue
        if x is not None and not isinstance(x, (str, bytes, float, torch.dtype)):
            raise ValueError(f"its pickle has {type(x).__name__} as a key")
    return key


_PUSHED = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "SHORT_BINSTRING", "BINSTRING",
}  # fmt: skip
"""Operations that push their argument."""
_MADE_EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    "GLOBAL": Machine.push_global,
    "STACK_GLOBAL": Machine.push_global_of_stack,
    "REDUCE": Machine.push_result,
    "NEWOBJ": Machine.push_result,
    "NEWOBJ_EX": Machine.push_result_of_names,
    "BUILD": Machine.build,
    "BINPERSID": Machine.push_persistent,
    "MARK": Machine.mark,
    "POP": Machine.pop,
    "POP_MARK": Machine.drop_to_mark,
    "DUP": Machine.duplicate,
    "BINPUT": Machine.memorize,
    "LONG_BINPUT": Machine.memorize,
    "MEMOIZE": Machine.memorize,
    "BINGET": Machine.recall,
    "LONG_BINGET": Machine.recall,
    "TUPLE": Machine.push_tuple,
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "APPEND": Machine.append,
    "APPENDS": Machine.append_all,
    "SETITEM": Machine.set_item,
    "SETITEMS": Machine.set_all,
    "ADDITEMS": Machine.add_all,
    "FROZENSET": Machine.push_frozen_set,
}
