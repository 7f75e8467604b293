"""The commands of a chat, as a table."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import get_type_hints

from lit_gpt.args import ChatArgs
from lit_gpt.chat.session import Session
from lit_gpt.cli.flags import Flag, find, nearest
from lit_gpt.cli.words import value_of
from lit_gpt.errors import UserError

_ROWS = Path("out/chat.jsonl")
"""The file that /save adds to if it is given none."""
_NO_SYSTEM = "-"
_FLAGS = {name: Flag(name, kind, None, "") for name, kind in get_type_hints(ChatArgs).items()}
"""What /set changes."""
_PATTERN = re.compile(r"/([a-z?]+)(?:\s+(.*))?\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class _Command:
    """A command of a chat."""

    act: Callable[[Session, str], None]
    """Does it, given what the user typed after its name; raises UserError if that is wrong, EOFError to leave."""
    takes: str
    """What may stand after its name, as the help shows it; empty if nothing may."""
    help: str


def obey(session: Session, message: str) -> bool:
    """Does what a message says if it is a command; returns whether it is one.

    Raises:
        UserError: there is no such command, or it cannot do that.
        EOFError: the command leaves the chat.
    """
    found = _PATTERN.match(message)
    if found is None:
        return False
    name, rest = found[1], (found[2] or "").strip()
    command = COMMANDS.get(_OTHER_NAMES.get(name, name))
    if command is None:
        close = get_close_matches(name, [*COMMANDS, *_OTHER_NAMES], n=1)
        hint = f"did you mean /{close[0]}?" if close else "/help lists them"
        raise UserError(f"there is no command /{name}; {hint} (to say it, begin with //)")
    if rest and not command.takes:
        raise UserError(f"/{name} takes nothing, found {rest!r}")
    command.act(session, rest)
    return True


def _new(session: Session, rest: str) -> None:
    for voice in session.voices:
        voice.conversation.clear()
    session.terminal.note("[a new conversation; the system text stays]" if _system(session) else "[a new conversation]")


def _system(session: Session) -> str:
    return session.voices[0].conversation.system


def _set_system(session: Session, rest: str) -> None:
    if rest:
        before = _system(session)
        try:
            _give_system(session, "" if rest == _NO_SYSTEM else rest)
        except UserError:
            _give_system(session, before)
            raise
    session.terminal.note(f"system text: {_system(session)}" if _system(session) else "[no system text]")


def _give_system(session: Session, text: str) -> None:
    """Gives the conversations a system text.

    Raises:
        UserError: the prompt style of a voice has no place for one.
    """
    for voice in session.voices:
        voice.conversation.system = text
        if text:
            voice.ask("a", since=len(voice.conversation.said))


def greet(session: Session, system: str, typed: bool) -> None:
    """Gives the conversations their system text; says who answers, if a user reads it.

    Raises:
        UserError: the prompt style of a voice has no place for a system text.
    """
    _give_system(session, system)
    if typed:
        for voice in session.voices:
            session.terminal.note(f"{voice.name} answers in the prompt style {voice.style_name}.")
        session.terminal.note("/help lists commands; ctrl-D leaves.")


def _set(session: Session, rest: str) -> None:
    words = rest.replace("=", " ", 1).split(maxsplit=1)
    if words:
        name = _setting(words[0].lstrip("-"))
        if len(words) > 1:
            session.args = replace(session.args, **{name: value_of(_FLAGS[name], words[1].strip(), name)})
            session.n_asked = 0 if name == "seed" else session.n_asked
        words = [name]
    for name, value in asdict(session.args).items():
        if name in words or not words:
            session.terminal.note(f"{name} {'null' if value is None else value}")


def _setting(word: str) -> str:
    """Returns the setting that a word names, or is the beginning of the name of; raises UserError if there is none."""
    found = find(word, _FLAGS)
    begun = [name for name in _FLAGS if name.startswith(word)]
    if found in _FLAGS or len(begun) == 1:
        return found if found in _FLAGS else begun[0]
    close = [name for name in nearest(word, _FLAGS) if name in _FLAGS] or list(_FLAGS)
    raise UserError(
        f"there is no setting {word!r}; {'did you mean' if len(close) < 3 else 'there are'} {', '.join(close)}"
    )


def _retry(session: Session, rest: str) -> None:
    session.retry()


def _continue(session: Session, rest: str) -> None:
    session.go_on()


def _undo(session: Session, rest: str) -> None:
    taken = [voice.conversation.take_back() for voice in session.voices][-1]
    if taken is None:
        raise UserError("there is nothing to take back")
    session.terminal.note(f"[taken back: {_beginning(taken.question)}]")


def _beginning(text: str, longest: int = 60) -> str:
    """Returns a text as one line of at most `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def _save(session: Session, rest: str) -> None:
    said = session.voices[-1].conversation
    if not said.said:
        raise UserError("nothing was said yet")
    path = Path(rest).expanduser() if rest else _ROWS
    if said.said == session.saved:
        raise UserError("the conversation is saved already")
    row = json.dumps(said.row(), ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            file.seek(max(0, file.seek(0, 2) - 1))
            before = b"\n" if file.read(1) not in (b"", b"\n") else b""
            file.write(before + row.encode("utf-8", "replace"))
    except OSError as e:
        raise UserError(f"{path} cannot be written ({e.strerror})") from e
    session.saved = list(said.said)
    n_cut = sum(not s.is_whole for s in said.said)
    cut = f", {n_cut} of them cut and not taught" if n_cut else ""
    session.terminal.note(
        f"[added to {path}: a row with {len(said.said)} answer{'s' * (len(said.said) > 1)}{cut}; "
        f"scripts/prepare_json.py --json_path {path} makes training data of it]"
    )


def _stats(session: Session, rest: str) -> None:
    if not session.replies:
        raise UserError("there is no answer yet")
    for voice, reply in zip(session.voices, session.replies, strict=True):
        whose = f"{voice.name}: " if len(session.voices) > 1 else ""
        session.terminal.note(f"[{whose}{reply.figures()}]")


def _help(session: Session, rest: str) -> None:
    for name, command in COMMANDS.items():
        session.terminal.note(f"{f'/{name} {command.takes}':<22}{command.help}")
    session.terminal.note(
        'A line that ends with \\ goes on in the next one; so does a text between """ and """.\n'
        "ctrl-C stops an answer and keeps what is there; ctrl-D leaves."
    )


def _quit(session: Session, rest: str) -> None:
    raise EOFError


COMMANDS = {
    "new": _Command(_new, "", "forget what was said; the system text stays"),
    "system": _Command(_set_system, "[TEXT]", f"show the system text, or set it; {_NO_SYSTEM} removes it"),
    "set": _Command(_set, "[NAME [VALUE]]", "show the sampling settings, or change one"),
    "retry": _Command(_retry, "", "ask the last question again"),
    "continue": _Command(_continue, "", "let an answer that was cut or stopped go on"),
    "undo": _Command(_undo, "", "take the last question and its answer back"),
    "save": _Command(_save, "[FILE]", f"add the conversation to FILE ({_ROWS}) as a training row"),
    "stats": _Command(_stats, "", "what the last answer took: tokens computed and from the cache, time, speed"),
    "help": _Command(_help, "", "this list"),
    "quit": _Command(_quit, "", "leave, as ctrl-D does"),
}
"""Command by name."""
_OTHER_NAMES = {"exit": "quit", "bye": "quit", "clear": "new", "reset": "new", "?": "help", "regenerate": "retry"}
"""What other chats call a command -> our name."""
