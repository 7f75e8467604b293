"""Arguments of the generate scripts: what the model is asked."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AskArgs:
    """What a model is asked, in the prompt style that it was trained with."""

    prompt: str | None = None
    """The instruction, or the text to continue, from the begin-of-sequence token on if it is empty; - reads it from
    standard input. If neither it nor a conversation is given, it asks what food llamas eat."""
    input: str = ""
    """Context that the instruction refers to."""
    system: str = ""
    """System prompt, for a model that was trained with one."""
    conversation: Path | None = None
    """JSON file with the turns before the prompt: a list of messages (role, content), or an object with messages and
    optional tools. If its last turn is not the assistant's, that turn is the prompt."""
