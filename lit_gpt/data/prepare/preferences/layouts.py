"""Recognizes the layouts of preference data sets, and parses their entries into rows with two answers, or a verdict.

TRL's (https://huggingface.co/docs/trl/dataset_formats), with an explicit or implicit prompt, texts or messages, paired
or with a label; UltraFeedback, raw and binarized; HH-RLHF; Argilla's and Intel's Orca pairs; LLaMA-Factory's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_gpt.data.prepare.conversations import Conversation
from lit_gpt.data.prepare.preferences.rows import Preference, paired, preference, untaught
from lit_gpt.data.prepare.rows import Row, RowError
from lit_gpt.data.prepare.schemas import Parse
from lit_gpt.data.prepare.values import found_keys, kind, listed, optional, require_object, text, unused_keys
from lit_gpt.errors import UserError

_MARKS = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
"""What stands before each turn in HH-RLHF (https://huggingface.co/datasets/Anthropic/hh-rlhf)."""
_PROMPTS = ("prompt", "question", "instruction", "input", "conversations", "messages")
_CHOSEN, _REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
_COMPLETIONS, _LABELS = ("completion", "response", "output"), ("label", "kto_tag")
_SYSTEMS = ("system", "system_prompt")
_GOOD, _BAD = ("true", "1", "yes"), ("false", "0", "no")
_NAMES = ("prompt", "context", "system", "chosen", "rejected", "completion", "label")
"""What `--columns` can name."""


@dataclass(frozen=True)
class _Layout:
    """The keys of an entry; a `Parse` when called, whose rows are preferences."""

    chosen: str | None = None
    """Key of the preferred answer; None where an answer is judged by itself."""
    rejected: str | None = None
    completion: str | None = None
    """Key of an answer that is judged by itself, with `label`."""
    label: str | None = None
    prompt: str | None = None
    """Key of the prompt; None where it is what both answers begin with."""
    context: str | None = None
    system: str | None = None

    def __call__(self, entry: Any, file: str, location: str) -> list[Row]:
        where = f"{file}, {location}"
        needed = (self.prompt, self.chosen, self.rejected, self.completion, self.label)
        require_object(entry, where, tuple(key for key in needed if key))
        if str(entry.get("status", "")).strip().lower() == "tie":  # Argilla's
            raise RowError(f"{where}: the answers are a tie, of which none is preferred", "with a tie", harmless=True)
        used = (*needed, self.context, self.system, *(("tools",) if "tools" in entry else ()))
        unused = unused_keys(entry, used)
        if self.chosen is None:
            assert self.completion and self.label
            row = self._row(entry, entry[self.completion], where, file=file, location=location)
            n = len(row.turns) - 1
            desirable = _verdict(entry[self.label], where, self.label)
            return [preference(replace(row, turns=untaught(row.turns, n)), unused, desirable=desirable)]
        assert self.rejected
        answers = [entry[self.chosen], entry[self.rejected]]
        if self.prompt is None and all(isinstance(answer, str) for answer in answers):
            return [self._implicit(entry, answers, where, file=file, location=location, unused=unused)]
        rows = [self._row(entry, answer, where, file=file, location=location) for answer in answers]
        return [paired(rows[0], rows[1], unused)]

    def _row(self, entry: Mapping[str, Any], answer: Any, where: str, *, file: str, location: str) -> Row:
        """Returns the conversation of the prompt and an answer, each a text, a message, or a list of messages."""
        prompt = entry[self.prompt] if self.prompt else []
        is_chat = not (isinstance(prompt, str) and isinstance(answer, str))
        context = optional(entry, where, self.context)
        if isinstance(answer, dict):
            answer = [answer]
        elif isinstance(answer, str):
            answer = [{"role": "assistant", "content": answer}]
        answer = listed(answer, where, self.chosen or self.completion or "")
        if isinstance(prompt, str):
            whole = _has_prompt(answer)  # UltraFeedback's answers have the prompt in them
            prompt = [] if whole else [{"role": "user", "content": text(prompt, where, str(self.prompt))}]
        messages = [*listed(prompt, where, str(self.prompt)), *answer]
        more = {key: entry[key] for key in ("tools",) if entry.get(key)}
        if self.system and entry.get(self.system):
            more["system"] = entry[self.system]
        (row,) = Conversation("messages")({"messages": messages, **more}, file, location)
        if row.turns[-1].role != "assistant":
            raise RowError(f"{where}: the last message is none of the assistant", "without an answer")
        turns = row.turns
        if context:  # which the prompt style puts where it does in training on answers
            turns = tuple(replace(t, context=context) if t == row.first("user") else t for t in turns)
        return replace(row, turns=turns, is_chat=is_chat)

    def _implicit(
        self, entry: Mapping[str, Any], answers: Sequence[str], where: str, *, file: str, location: str, unused: Any
    ) -> Preference:
        """Returns the preference of two texts, whose prompt is what they begin with: HH-RLHF's turns, or words."""
        for answer in answers:
            text(answer, where, str(self.chosen))
        if all(_MARKS.match(answer) for answer in answers):
            parts = [_marked(answer, where) for answer in answers]
            rows = [replace(self, prompt=None)._row(entry, part, where, file=file, location=location) for part in parts]
            return paired(rows[0], rows[1], unused)
        n = _common(*answers)
        given = {**entry, "prompt": answers[0][:n]}
        layout = replace(self, prompt="prompt")
        if not given["prompt"].strip():
            message = f"{where}: the answers do not begin with the same words, and there is no prompt"
            raise RowError(f"{message}; name its key with --columns", "without common prompt")
        rows = [layout._row(given, answer[n:], where, file=file, location=location) for answer in answers]
        return paired(rows[0], rows[1], unused)


@dataclass(frozen=True)
class _Scored:
    """The layout of the raw UltraFeedback, whose answers have scores: the best is preferred to the worst.

    https://huggingface.co/datasets/openbmb/UltraFeedback
    """

    def __call__(self, entry: Any, file: str, location: str) -> list[Row]:
        where = f"{file}, {location}"
        require_object(entry, where, ("instruction", "completions"))
        scored = []
        for i, completion in enumerate(listed(entry["completions"], where, "completions")):
            at = f"{where}, completions[{i}]"
            require_object(completion, at, ("response",))
            score = completion.get("overall_score", completion.get("fine-grained_score"))
            if not isinstance(score, int | float) or isinstance(score, bool):
                raise UserError(f"{at}: no score; expected the key 'overall_score' with a number, found {kind(score)}")
            scored.append((float(score), completion["response"]))
        if len(scored) < 2 or max(scored)[0] == min(scored)[0]:
            raise RowError(f"{where}: no two answers with different scores", "with a tie", harmless=True)
        best, worst = max(scored, key=lambda x: x[0]), min(scored, key=lambda x: x[0])
        pair = {"prompt": entry["instruction"], "chosen": best[1], "rejected": worst[1]}
        rows = _Layout(prompt="prompt", chosen="chosen", rejected="rejected")(pair, file, location)
        return [replace(row, unused=unused_keys(entry, ("instruction", "completions"))) for row in rows]


def parse_preference(entry: Any, file: str, location: str) -> list[Row]:
    """Parses an entry of any known layout; a `Parse`."""
    return _recognize(entry, f"{file}, {location}")(entry, file, location)


def _recognize(entry: Any, where: str) -> Parse:
    """Returns the layout of an entry by its keys.

    Raises:
        UserError: it is of no known layout.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object with chosen and rejected, found {kind(entry)}")
    if "completions" in entry and "instruction" in entry:
        return _Scored()

    def first(keys: Sequence[str]) -> str | None:
        return next((key for key in keys if key in entry), None)

    prompt, system = first(_PROMPTS), first(_SYSTEMS)
    chosen, rejected = first(_CHOSEN), first(_REJECTED)
    if chosen and rejected:
        if prompt == "messages":  # the binarized UltraFeedback's, which are those of the preferred answer
            prompt = None
        context = "input" if prompt == "instruction" and "input" in entry else None
        return _Layout(chosen, rejected, prompt=prompt, context=context, system=system)
    completion, label = first(_COMPLETIONS), first(_LABELS)
    if label and (completion or prompt in ("messages", "conversations")):
        context = "input" if prompt == "instruction" and "input" in entry else None
        if completion is None:
            return _Layout(completion=prompt, label=label, system=system)
        return _Layout(completion=completion, label=label, prompt=prompt, context=context, system=system)
    known = "chosen+rejected; prompt+completion+label; instruction+completions"
    raise UserError(f"{where}: expected the keys {known}, found {found_keys(entry)}; name yours with --columns")


def preference_columns(columns: Mapping[str, str]) -> _Layout:
    """Returns the layout that the names of the user's keys stand for.

    Args:
        columns: our name -> theirs: chosen and rejected, or completion and label; and prompt, context, system.

    Raises:
        UserError: the names make no layout.
    """
    for name in columns:
        if name not in _NAMES:
            raise UserError(f"--columns: {name!r} is none of {', '.join(_NAMES)}")
    pairs = {"chosen", "rejected"} <= columns.keys()
    if pairs == ({"completion", "label"} <= columns.keys()):
        example = '--columns "{prompt: question, chosen: good, rejected: bad}"'
        raise UserError(f"--columns needs chosen and rejected, or completion and label, as in {example}")
    return _Layout(**columns)


def _verdict(value: Any, where: str, key: str) -> bool:
    """Returns whether a label calls its answer a desired one; raises UserError if it says neither."""
    said = str(value).strip().lower()
    if said in _GOOD or said in _BAD:
        return said in _GOOD
    raise UserError(f"{where}: {key!r} must be true or false, found {kind(value)}")


def _has_prompt(messages: Sequence[Any]) -> bool:
    """Returns whether messages of an answer begin with the prompt, which then need not be put before them."""
    first = messages[0] if messages else {}
    role = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return len(messages) > 1 and str(role).lower() in ("user", "human", "system")


def _marked(dialog: str, where: str) -> list[dict[str, str]]:
    """Returns the messages of a text in which `Human:` and `Assistant:` begin the turns."""
    parts = _MARKS.split(dialog)[1:]
    roles, texts = parts[::2], [part.strip() for part in parts[1::2]]
    names = {"Human": "user", "Assistant": "assistant"}
    messages: list[dict[str, str]] = []
    for role, said in zip(roles, texts, strict=True):
        if messages and messages[-1]["role"] == names[role]:  # some say something twice in a row
            messages[-1]["content"] = "\n\n".join(filter(None, (messages[-1]["content"], said)))
        else:
            messages.append({"role": names[role], "content": said})
    return messages


def _common(a: str, b: str) -> int:
    """Returns the length of what two texts begin with, up to the end of a word."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    while n and not a[n - 1].isspace():
        n -= 1
    return n
