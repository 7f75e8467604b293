"""Writes comparisons with a base as tables, as JSON and as a page that opens in a browser without a network."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lit_gpt.evaluation.comparing.statistics import LEVEL
from lit_gpt.evaluation.comparing.verdicts import SHOWN, Comparison, Flip
from lit_gpt.files import write_text
from lit_gpt.report.page import document, table

_LONGEST = 600
"""Most characters of a question that are shown: its end, which is what was asked."""
_HEAD = ("task", "metric", "base", "run", "difference", f"{LEVEL:.0%} interval", "won", "lost", "verdict")


def text_table(comparisons: Sequence[Comparison]) -> str:
    """Returns the comparisons of a run as a table for a terminal, with the reason of each verdict below it."""
    rows = [_HEAD, *(_cells(c) for c in comparisons)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"- {c.task} {c.metric}: {c.verdict}, since {c.reason}" for c in comparisons]
    return "\n".join(lines)


def _cells(c: Comparison) -> tuple[str, ...]:
    low, high = c.interval
    interval = f"{_signed(low)} to {_signed(high)}" if math.isfinite(low) else "unknown"
    scores = (f"{x:.4f}" for x in c.scores)
    return (c.task, c.metric, *scores, _signed(c.difference), interval, str(c.won), str(c.lost), c.verdict)


def _signed(x: float) -> str:
    """Returns a difference with its sign, which one that is 0 when it is rounded has not."""
    text = f"{x:+.4f}"
    return text if float(text) else text[1:]


def as_json(comparisons: Mapping[str, Sequence[Comparison]], notes: Sequence[str], about: dict[str, Any]) -> dict:
    """Returns what was found as data: all questions whose value changed, too.

    Args:
        comparisons: those of each run.
    """
    runs = {
        run: [c._asdict() | {"flips": [f._asdict() for f in c.flips]} for c in found]
        for run, found in comparisons.items()
    }
    return {"about": about, "level": LEVEL, "notes": list(notes), "runs": runs}


def write_page(
    path: Path, comparisons: Mapping[str, Sequence[Comparison]], notes: Sequence[str], about: Mapping[str, Any]
) -> None:
    """Writes the page."""
    base = Path(str(about["checkpoint_dir"])).absolute().name
    settings = ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)
    parts = [f"<h1>Did {escape(base)} get better?</h1>", f'<p class="sub">{escape(settings)}</p>']
    for run, found in comparisons.items():
        verdicts = "".join(
            f"<li>{escape(c.task)}, {escape(c.metric)}: <b>{escape(c.verdict)}</b>, since {escape(c.reason)}.</li>"
            for c in found
        )
        parts += [f"<section><h2>{escape(run)}</h2><ul>{verdicts}</ul>", table(_HEAD, [_cells(c) for c in found])]
        parts += [*map(_flips, found), "</section>"]
    if notes:
        parts.append(_section("Not compared", notes))
    parts.append(_section("How to read it", explained(comparisons)))
    write_text(path, document(f"{base}, compared", parts))


def _section(title: str, texts: Sequence[str]) -> str:
    """Returns paragraphs under a title, as HTML."""
    return f"<section><h2>{escape(title)}</h2>{''.join(f'<p>{escape(text)}</p>' for text in texts)}</section>"


def explained(comparisons: Mapping[str, Sequence[Comparison]]) -> list[str]:
    """Returns sentences on what the verdicts rest on."""
    n = len(_all(comparisons))
    texts = [
        f"Both models answered the same questions. The interval holds the difference in the long run with {LEVEL:.0%} "
        "confidence, by resampling questions. For metrics that are 0 or 1, McNemar's exact test decides: of the "
        "questions that changed, chance would give each model half.",
        "Questions stand for the task; another seed of the training may differ by more than they show.",
    ]
    if any(c.p is not None and c.p >= 1 - LEVEL and not c.interval[0] <= 0 <= c.interval[1] for c in _all(comparisons)):
        texts.append(
            "Where few questions changed, an interval may leave 0 out although the test, which is exact, sees no "
            "difference: the test counts."
        )
    if n > 1:
        texts.append(
            f"Of {n} comparisons without any difference, chance would call {n * (1 - LEVEL):.1f} better or worse."
        )
    return texts


def _all(comparisons: Mapping[str, Sequence[Comparison]]) -> list[Comparison]:
    """Returns the comparisons of all runs."""
    return [c for found in comparisons.values() for c in found]


def _flips(c: Comparison) -> str:
    """Returns the questions of a comparison that changed, folded in, as HTML."""
    if not c.flips:
        return ""
    shown = c.flips[:SHOWN]
    title = f"{c.task}, {c.metric}: {len(shown)} of {len(c.flips)} questions that changed"
    rows = [(*_flip_cells(f),) for f in shown]
    head = ("question", "asked", "right", "base", "run", "base", "run")
    return f"<details><summary>{escape(title)}</summary>{table(head, rows)}</details>"


def _flip_cells(f: Flip) -> list[str]:
    values = [f"{v:g}" if float(v).is_integer() else f"{v:.3f}" for v in f.values]
    return [f"{f.task} {f.number}", _end(f.question), _end(f.target), *map(_end, f.answers), *values]


def _end(text: str) -> str:
    """Returns the end of a text that may be long."""
    text = text.strip()
    return text if len(text) <= _LONGEST else "..." + text[-_LONGEST:]
