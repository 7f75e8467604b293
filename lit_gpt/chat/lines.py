"""What the user types: messages of one line or several, from a keyboard with a history, or from a pipe."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

_QUOTES = '"""'
_MOST_KEPT = 1000
"""Lines of the history that are kept."""


def listen() -> tuple[Callable[[], str], bool]:
    """Returns a function that returns the next message, and whether a user types it."""
    typed = sys.stdin.isatty()
    read = _Keyboard() if typed and sys.stdout.isatty() else _Pipe(prompts=typed)
    return (lambda: message(read)), typed


def message(read: Callable[[str], str]) -> str:
    """Returns the next message: a line, lines of which all but the last end with a backslash, or a text in quotes.

    Args:
        read: returns the next line, given what stands before it on the screen.

    Raises:
        EOFError: there are no more lines.
        KeyboardInterrupt: ctrl-C.
    """
    line = read("> ")
    if line.lstrip().startswith(_QUOTES):
        return _quoted(line.lstrip().removeprefix(_QUOTES), read)
    lines = [line]
    with suppress(EOFError):
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read(". "))
    return "\n".join(lines)


def _quoted(line: str, read: Callable[[str], str]) -> str:
    """Returns the lines up to one that ends with quotes."""
    lines = [line]
    with suppress(EOFError):
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(read(". "))
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(lines).strip("\n")


class _Pipe:
    """Lines of standard input that is no terminal, or of one whose answers go elsewhere."""

    def __init__(self, prompts: bool) -> None:
        _forgive()
        self.prompts = prompts

    def __call__(self, prompt: str) -> str:
        if self.prompts:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")


class _Keyboard:
    """Lines that are typed, which readline lets the user edit and find again in later chats, where there is one."""

    def __init__(self) -> None:
        _forgive()
        self.path: Path | None = _history_path()
        try:
            import readline
        except ImportError:  # not on Windows
            self.path = None
            return
        readline.set_auto_history(False)
        readline.parse_and_bind("set enable-bracketed-paste on")  # so that pasted lines are one message
        for line in self._recalled():
            readline.add_history(line)
        self._readline = readline

    def __call__(self, prompt: str) -> str:
        line = input(prompt)
        if self.path is not None and line.strip():
            self._readline.add_history(line)
            self._keep(line)
        return line

    def _recalled(self) -> Iterator[str]:
        """Yields the lines of earlier chats; shortens the file where it has become long."""
        if self.path is None:
            return
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            if len(lines) > 2 * _MOST_KEPT:
                self.path.unlink()
                self._keep(*lines[-_MOST_KEPT:])
        except OSError:  # there is none yet
            return
        yield from lines[-_MOST_KEPT:]

    def _keep(self, *lines: str) -> None:
        """Adds lines to the file, which only the user can read; without such a place, they are forgotten at the end."""
        if self.path is None:
            return
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with open(descriptor, "a", encoding="utf-8", errors="replace") as file:
                file.writelines(" ".join(line.splitlines()) + "\n" for line in lines)


def _forgive() -> None:
    """Lets standard input have bytes that are no text, which become U+FFFD."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def _history_path() -> Path | None:
    """Returns the file of the history in the user's folder for state; None if the user has no home."""
    with suppress(RuntimeError):
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(state) / "lit-gpt" / "chat_history"
    return None
