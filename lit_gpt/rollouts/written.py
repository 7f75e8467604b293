"""Writes graded answers: all of them, rows to train on, pairs of a right and a wrong one; says how many are right."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.args.rollouts import KeepArgs
from lit_gpt.errors import UserError
from lit_gpt.files import write_text
from lit_gpt.rollouts.sampled import Graded, prompt_turns

_ANSWERS, ROWS, PAIRS = "answers.jsonl", "rows.jsonl", "pairs.jsonl"
"""Files in the folder: all answers with their scores, rows for prepare_json.py, pairs for prepare_preferences.py."""


def require_no_answers(folder: Path, overwrite: bool) -> None:
    """Checks that sampled answers may be written to `folder`.

    Raises:
        UserError: it holds answers, and `overwrite` is not set.
    """
    if (folder / _ANSWERS).exists() and not overwrite:
        raise UserError(
            f"{folder} holds sampled answers; pass another --destination_path, or --overwrite true to replace them"
        )


def write(folder: Path, found: Sequence[Graded], args: KeepArgs) -> None:
    """Writes the three files, and prints the account."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [g for g in found if g.solved > 0 and args.min_solved <= g.solved <= args.max_solved]
    rows = [row for g in kept for row in _rows_of(g, args.right_answers)]
    pairs = [pair for g in kept for pair in _pairs_of(g, args.pairs)]
    everything = [
        {**_prompt_of(g), "expected": g.row.response, "solved": g.solved, "answer": text, "score": score}
        for g in found
        for text, score in zip(g.texts, g.scores, strict=True)
    ]
    for name, entries in ((_ANSWERS, everything), (ROWS, rows), (PAIRS, pairs)):
        write_text(folder / name, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    for line in _account(found, kept, rows=len(rows), pairs=len(pairs)):
        print(line)
    print(f"Saved to {folder}: {_ANSWERS}, {ROWS} and {PAIRS}")


def _account(found: Sequence[Graded], kept: Sequence[Graded], rows: int, pairs: int) -> Iterable[str]:
    """Yields lines about how many answers are right, and how hard the prompts are."""
    n = sum(len(g.scores) for g in found)
    right = sum(score >= 1 for g in found for score in g.scores)
    yield f"{right:,} of {n:,} answers are right ({right / max(1, n):.1%}), to {len(found):,} prompts"
    never, always = (sum(g.solved == value for g in found) for value in (0, 1))
    yield f"never solved {never:,}, sometimes {len(found) - never - always:,}, always {always:,}"
    yield f"{len(kept):,} prompts are kept: {rows:,} rows to train on, {pairs:,} pairs"


def _rows_of(graded: Graded, most: int) -> list[dict[str, Any]]:
    """Returns the shortest different right answers as rows to train on."""
    right = sorted(
        {text.strip() for text, score in zip(graded.texts, graded.scores, strict=True) if score >= 1}, key=len
    )
    return [_with_answer(graded, text) for text in right[:most]]


def _pairs_of(graded: Graded, most: int) -> list[dict[str, Any]]:
    """Returns pairs of different right and wrong answers, the best with the worst, none of them empty."""
    by_text = {text.strip(): score for text, score in zip(graded.texts, graded.scores, strict=True) if text.strip()}
    right = sorted((t for t, score in by_text.items() if score >= 1), key=len)
    wrong = sorted((t for t, score in by_text.items() if score < 1), key=lambda t: (by_text[t], len(t)))
    pairs = [(a, b) for k in range(len(wrong)) for a, b in zip(right, wrong[k:] + wrong[:k], strict=False)]
    return [{**_prompt_of(graded), "chosen": a, "rejected": b} for a, b in pairs[:most]]


def _prompt_of(graded: Graded) -> dict[str, Any]:
    """Returns the keys of a row's prompt: an instruction with its input, or messages."""
    row = graded.row
    if row.is_chat or len(prompt_turns(row)) > 1:
        return {"prompt": [{"role": t.role, "content": t.text, **t.extra} for t in prompt_turns(row)]}
    return {"instruction": row.instruction, **({"input": row.context} if row.context else {})}


def _with_answer(graded: Graded, text: str) -> dict[str, Any]:
    """Returns a row with another answer than its own."""
    prompt = _prompt_of(graded)
    if "prompt" in prompt:
        return {"messages": [*prompt["prompt"], {"role": "assistant", "content": text}]}
    return {"input": "", **prompt, "output": text}
