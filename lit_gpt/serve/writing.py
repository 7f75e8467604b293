"""The text of an answer as its tokens come, where special tokens are to be shown."""

import codecs
from collections.abc import Sequence

from lit_gpt.generation.request import Finish, Scored
from lit_gpt.serve.pieces import Pieces


class SpecialText:
    """A text with its special tokens written out, which the engine's own text leaves out.

    What may become a stop string is held back, as the engine does with its text.
    """

    def __init__(self, pieces: Pieces, stops: Sequence[str], keeps_stop: bool) -> None:
        self.pieces, self.keeps_stop = pieces, keeps_stop
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.n_held = max((len(s) - 1 for s in stops), default=0)
        self.held = ""

    def push(self, tokens: Sequence[Scored], finish: Finish | None, reason: str | int | None) -> str:
        """Returns what new tokens add to the text, as far as it can be shown.

        Args:
            finish, reason: why the text ends with them, if it does.
        """
        ids = [t.id for t in tokens]
        if finish == "stop" and isinstance(reason, int) and not self.keeps_stop:
            ids = ids[:-1]
        self.held += self.decoder.decode(b"".join(map(self.pieces.of, ids)), final=finish is not None)
        if finish is None:
            shown = max(0, len(self.held) - self.n_held)
            text, self.held = self.held[:shown], self.held[shown:]
            return text
        if isinstance(reason, str) and (at := self.held.find(reason)) >= 0:
            return self.held[: at + len(reason) * self.keeps_stop]
        return self.held
