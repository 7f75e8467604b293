"""What a prompt style is: the texts around those of a conversation, and the token that ends an answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Exchange, Turn
from lit_gpt.tokenizer import Tokenizer

_HARMLESS = ("name",)
"""Further keys of a message without which it means the same."""


@dataclass(frozen=True)
class Style:
    """Texts around those of a conversation; `{system}`, `{prompt}`, `{input}` and `{eos}` in them are replaced.

    A conversation is: system text, opening, question, ask, answer, end, after, question, ask, answer, end ...
    """

    name: str
    question: str
    """What a user says. `{system}` in it is where the first one has the system text; that comes first of all if not."""
    ask: str = ""
    """What asks for the answer."""
    lead: str = ""
    """What an answer begins with: a space after a colon is the model's to write, with the word after it."""
    tail: str = ""
    """What stands between an answer and the token that ends it, and is taught with both."""
    end: str | None = None
    """The token that ends an answer; None is the tokenizer's end of sequence."""
    after: str = ""
    """From there to the next question."""
    system: str = "{system}\n\n"
    """How a system text is shown."""
    default_system: str = ""
    """The system text of a conversation that has none of its own."""
    opening: str = ""
    """Before the first question."""
    opening_with_input: str = ""
    """In the place of `opening` where the first question has a context."""
    question_with_input: str = ""
    """In the place of `question` where it has a context; empty puts that after the question."""
    trims: Literal["no", "texts", "questions"] = "no"
    """Leaves out white space around texts; `questions` takes a question with the system text before it as one."""
    begins: Literal["no", "conversation", "question"] = "no"
    """What the begin-of-sequence token stands before."""
    bos: str = "<s>"
    eos: str = "</s>"
    first_bos: str = ""
    """The begin-of-sequence token if the style begins with it: written out, so that what comes next is tokenized as it
    is after that token."""
    own_bos: str = ""
    """The begin-of-sequence token if the tokenizer writes it before a text by itself, unless it is there already."""

    def of(self, tokenizer: Tokenizer) -> "Style":
        """The style with the special tokens of a tokenizer; one that lacks `end` ends answers with its own."""
        bos = "" if tokenizer.bos_id is None else tokenizer.id_to_token(tokenizer.bos_id) or ""
        eos = tokenizer.id_to_token(tokenizer.eos_id) or ""
        end = self.end if self.end and tokenizer.backend.token_to_id(self.end) is not None else None
        first_bos = bos if self.begins != "no" else ""
        own_bos = bos if tokenizer.use_bos else ""
        return replace(self, bos=bos, eos=eos, end=end, first_bos=first_bos, own_bos=own_bos)

    def exchanges(self, turns: Sequence[Turn], tools: Sequence[Any] = ()) -> list[Exchange]:
        """Prompt and answer in turns; the last answer may be missing.

        Raises:
            UserError: turns that the style has no place for: tools, what was thought, a turn out of order.
        """
        self._check(turns, tools)
        has_system = turns[0].role == "system"
        system = turns[0].text if has_system else self.default_system
        found: list[Exchange] = []
        for turn in turns[has_system:]:
            if turn.role == "assistant":
                found[-1] = Exchange(found[-1].prompt, self.answer(turn.text), self.end, turn.taught)
            else:
                found.append(Exchange(self._prompt(turn, None if found else system), end=self.end))
        return found

    def answer(self, text: str) -> str:
        """What is taught of an answer, before the token that ends it."""
        return self.lead + (text.strip() if self.trims != "no" else text) + self.tail

    def _prompt(self, turn: Turn, system: str | None) -> str:
        """All that comes before an answer, since the one before it.

        Args:
            system: None if the question is not the first one.
        """
        text, context = turn.text, turn.context
        if not text.strip():  # a heading of the question would be empty; what it refers to is the question
            text, context = context or text, ""
        question = self.question_with_input if context else ""
        if context and not question:
            text, context = f"{text}\n\n{context}", ""
        question = question or self.question
        shown = filled(self.system, system=system, eos=self.eos) if system else ""
        inside = shown if "{system}" in question else ""
        if self.trims != "no":
            text = text.rstrip() if inside and self.trims == "questions" else text.strip()
        asked = filled(question, system=inside, prompt=text, input=context, eos=self.eos) + self.ask
        if system is None:
            return self.after + (self.bos if self.begins == "question" else "") + asked
        opening = self.opening_with_input if context else self.opening
        return self.first_bos + ("" if inside else shown) + opening + asked

    def _check(self, turns: Sequence[Turn], tools: Sequence[Any]) -> None:
        """Raises: UserError if the style has no place for something."""
        lost = ["tools"] if tools else []
        lost += [key for t in turns for key, value in t.extra.items() if value and key not in _HARMLESS]
        lost += [f"a turn of role {t.role}" for t in turns if t.role not in ("system", "user", "assistant")]
        if lost:
            raise UserError(
                f"the prompt style {self.name} has no place for {lost[0]}; take --prompt_style chat_template, if the "
                "model's own template shows it"
            )
        n_system = int(bool(turns) and turns[0].role == "system")
        for i, turn in enumerate(turns[n_system:]):
            if turn.role != ("user", "assistant")[i % 2]:
                raise UserError(
                    f"the prompt style {self.name} shows user and assistant in turns, after a system text at most; "
                    f"turn {i + n_system + 1} is {turn.role}'s"
                )
        if len(turns) == n_system:
            raise UserError(f"the prompt style {self.name} needs a user's turn, and the conversation has none")


def filled(shape: str, **texts: str) -> str:
    """`shape` with the texts in it, in one pass: what looks like a name within a text stays."""
    return re.sub(r"\{(system|prompt|input|eos)\}", lambda name: texts.get(name[1], name[0]), shape)


def around(shape: str, name: str) -> tuple[str, str]:
    """What stands before and behind a name in `shape`."""
    before, _, behind = shape.partition(name)
    return before, behind
