"""A prompt style: the texts that surround those of a conversation, and the token that ends an answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Exchange, Turn
from lit_gpt.tokenizer import Tokenizer

_HARMLESS = ("name",)
"""Further keys of a message that a style may ignore without changing its meaning."""


@dataclass(frozen=True)
class Style:
    r"""The texts that surround those of a conversation, with the token that ends an answer.

    `{system}`, `{prompt}`, `{input}` and `{eos}` in them are replaced. A conversation of two questions and two answers
    is rendered as these fields, in this order:

        system opening question ask | lead ANSWER tail end | after question ask | lead ANSWER tail end

    The parts from `lead` to `end` are supervised; all others are prompt. `begins` says where the begin-of-sequence
    token is added. In the style `chatml`, a conversation of the system text "Be brief.", the question "2+2?", the
    answer "4", the question "3+3?" and the answer "6" becomes:

        <|im_start|>system\nBe brief.<|im_end|>\n      system
        <|im_start|>user\n2+2?<|im_end|>\n             question
        <|im_start|>assistant\n                        ask
        4<|im_end|>                                    ANSWER end
        \n                                             after
        <|im_start|>user\n3+3?<|im_end|>\n             question
        <|im_start|>assistant\n                        ask
        6<|im_end|>                                    ANSWER end

    Its `opening`, `lead` and `tail` are empty. In `llama2`, `lead` and `tail` are a space each and `begins` is
    "question": without a system text, each exchange is `<s>[INST] 2+2? [/INST]` (prompt) and ` 4 </s>` (supervised).
    """

    name: str
    question: str
    """Text of a user's turn, with `{prompt}` for what the user says. If it has `{system}`, the first question takes the
    system text there; otherwise the system text stands before the opening."""
    ask: str = ""
    """Text at the end of a prompt that asks for the answer, such as the assistant's heading."""
    lead: str = ""
    """Supervised text at the start of an answer, such as the space after a colon: the tokenizer joins it with the first
    word, so the model has to write it."""
    tail: str = ""
    """Supervised text between an answer and the token that ends it."""
    end: str | None = None
    """The token that ends an answer; None stands for the tokenizer's end-of-sequence token."""
    after: str = ""
    """Text between the end of an answer and the next question; belongs to the next prompt."""
    system: str = "{system}\n\n"
    """Text of the system turn, with `{system}` for what it says."""
    default_system: str = ""
    """System text of a conversation that has none of its own."""
    opening: str = ""
    """Text before the first question, after the system text."""
    opening_with_input: str = ""
    """Text in place of `opening` if the first question has a context."""
    question_with_input: str = ""
    """Text in place of `question` if the turn has a context, with `{input}` for that; if empty, the context is appended
    to the question after a blank line."""
    trims: Literal["no", "texts", "questions"] = "no"
    """Whether white space is stripped from texts; `questions` strips a question together with the system text before
    it, as one text."""
    begins: Literal["no", "conversation", "question"] = "no"
    """The place of the begin-of-sequence token in the text: nowhere (`no`), once before the system text or the first
    question (`conversation`), or before every question (`question`)."""
    bos: str = "<s>"
    """The tokenizer's begin-of-sequence token; empty if it has none."""
    eos: str = "</s>"
    """The tokenizer's end-of-sequence token, which replaces `{eos}`."""
    first_bos: str = ""
    """The begin-of-sequence token that the rendered text starts with, empty if `begins` is `no`. It is written out, so
    that what follows is tokenized as it is after that token."""
    own_bos: str = ""
    """The begin-of-sequence token that the tokenizer adds to a text that lacks it; empty if it adds none."""

    def of(self, tokenizer: Tokenizer) -> "Style":
        """Returns the style with a tokenizer's special tokens; if the tokenizer lacks `end`, its own ends answers."""
        bos = "" if tokenizer.bos_id is None else tokenizer.id_to_token(tokenizer.bos_id) or ""
        eos = tokenizer.id_to_token(tokenizer.eos_id) or ""
        end = self.end if self.end and tokenizer.backend.token_to_id(self.end) is not None else None
        first_bos = bos if self.begins != "no" else ""
        own_bos = bos if tokenizer.use_bos else ""
        return replace(self, bos=bos, eos=eos, end=end, first_bos=first_bos, own_bos=own_bos)

    def exchanges(self, turns: Sequence[Turn], tools: Sequence[Any] = ()) -> list[Exchange]:
        """Returns the conversation as prompts with their answers; the last answer may be missing.

        Raises:
            UserError: the style has no text for a part of the conversation: tools, thoughts, a turn out of order.
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
        """Returns the supervised text of an answer, before the token that ends it."""
        return self.lead + (text.strip() if self.trims != "no" else text) + self.tail

    def _prompt(self, turn: Turn, system: str | None) -> str:
        """Returns the prompt of a question: everything since the end of the previous answer.

        Args:
            system: the system text, empty if there is none; None if the question is not the first one.
        """
        text, context = turn.text, turn.context
        if not text.strip():  # an empty question would leave a bare heading: the context becomes the question
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
        """Checks that the style can render the conversation.

        Raises:
            UserError: tools, a key of a message or a turn that the style has no text for.
        """
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
    """Returns `shape` with its placeholders replaced in one pass; placeholders within the inserted texts stay."""
    return re.sub(r"\{(system|prompt|input|eos)\}", lambda name: texts.get(name[1], name[0]), shape)


def around(shape: str, name: str) -> tuple[str, str]:
    """Returns the parts of `shape` before and after `name`."""
    before, _, behind = shape.partition(name)
    return before, behind
