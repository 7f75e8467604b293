"""What a model is asked."""

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
    """Text that says how to answer, for a model that was trained with such texts."""
    conversation: Path | None = None
    """JSON file with the turns before the prompt: a list of messages (role, content), or an object with messages and
    perhaps tools. If its last turn is not the assistant's, that is what is asked, and there is no prompt."""
