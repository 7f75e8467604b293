"""The checkers, each a function of an answer and what was expected; `checker_of` gives the one that the flags name."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lit_gpt.args.rollouts import CheckerArgs
from lit_gpt.errors import UserError
from lit_gpt.grading.program import Program
from lit_gpt.records import parse_json

Checker = Callable[[str, str, str], float]
"""Function (prompt, answer, expected) that returns a score from 0, wrong, to 1, right."""
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?%?")
_LETTER = re.compile(r"\b([A-J])\b")
_LONGEST = 100_000
"""Characters of an answer beyond which a regular expression is not tried."""


def checker_of(args: CheckerArgs) -> Checker:
    """Returns the checker that the flags name.

    Raises:
        UserError: a pattern that is no regular expression, or no such file.
    """
    if args.checker == "python":
        assert args.checker_file is not None
        return Program(args.checker_file, args.checker_seconds)
    if args.checker == "regex":
        return _matching(args.pattern)
    checker = {"number": _number, "choice": _choice, "exact": _exact, "json": _same_json}[args.checker]
    return lambda prompt, answer, expected: float(checker(answer, expected))


def _number(answer: str, expected: str) -> bool:
    """Returns whether both texts end with the same number, whatever is after it; 1,000 is 1000.0."""
    found, wanted = _last_number(answer), _last_number(expected)
    return found is not None and wanted is not None and abs(found - wanted) <= 1e-6 * max(1.0, abs(wanted))


def _last_number(text: str) -> float | None:
    """Returns the last number in a text; None if there is none."""
    found = [part for part in _NUMBER.findall(text) if any(c.isdigit() for c in part)]
    if not found:
        return None
    last = found[-1].replace(",", "")
    return float(last[:-1]) / 100 if last.endswith("%") else float(last)


def _choice(answer: str, expected: str) -> bool:
    """Returns whether both texts name the same letter: the answer its last one that stands alone, or its first."""
    wanted = _LETTER.findall(expected.upper() if len(expected.strip()) == 1 else expected)
    text = answer.strip()
    found = _LETTER.findall(text.upper() if len(text.rstrip(".)")) == 1 else text)
    return bool(wanted and found) and found[-1] == wanted[-1]


def _exact(answer: str, expected: str) -> bool:
    """Returns whether both texts are the same but for spaces around them."""
    return answer.strip() == expected.strip()


def _same_json(answer: str, expected: str) -> bool:
    """Returns whether both texts are the same JSON value, whatever the order of keys and the spaces.

    Raises:
        UserError: what is expected is not JSON.
    """
    try:
        wanted = parse_json(expected, "the row's own answer")
    except UserError as e:
        raise UserError(f"--checker json: the row's own answer is not JSON: {expected[:60]!r}") from e
    with suppress(UserError):
        return _strict(parse_json(answer, "the answer")) == _strict(wanted)
    return False


def _strict(value: Any) -> Any:
    """Returns a value in which true is not 1."""
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_strict(inner) for inner in value]
    return (type(value).__name__, value) if isinstance(value, bool) else value


def _matching(pattern: str | None) -> Checker:
    """Returns a checker that looks for a regular expression; raises UserError if it is none."""

    def compiled(text: str) -> re.Pattern[str]:
        try:
            return re.compile(text, re.DOTALL)
        except re.error as e:
            raise UserError(f"--checker regex: {text[:60]!r} is no regular expression ({e})") from e

    fixed = None if pattern is None else compiled(pattern)

    def check(prompt: str, answer: str, expected: str) -> float:
        return float((fixed or compiled(expected)).search(answer[:_LONGEST]) is not None)

    return check
