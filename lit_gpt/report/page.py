"""Writes report.html: a run's settings, its curves, and its plan beside the outcome, in one self-contained file."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lit_gpt.files import write_text
from lit_gpt.records import fits, read_object, require_types
from lit_gpt.report.curves import Line, chart
from lit_gpt.report.metrics import Metrics, read_metrics

REPORT = "report.html"
_RUN_KINDS: dict[str, Any] = dict.fromkeys(("method_args", "training", "data", "versions"), dict[str, Any])
_RUN_KINDS |= {"method": str, "base": str}
"""Types of what is read of finetuned.json."""
_PLAN_KINDS = {"outcome": list[dict[str, float | str]], "memory": dict[str, float], "work": dict[str, Any]}
"""Types of what is read of plan.json."""
_OUTCOME_KINDS = {"what": str, "planned": float, "actual": float, "error": float, "source": str}
"""Types of a line of the outcome in plan.json, which has all of them."""


def write_report(run_dir: Path, path: Path | None = None) -> Path:
    """Writes the report of the run in `run_dir` from the files there, and returns its path.

    Args:
        path: the file to write; None is report.html in `run_dir`.

    Raises:
        UserError: finetuned.json or plan.json is damaged.
    """
    path = path or run_dir / REPORT
    write_text(path, _page(run_dir))
    return path


def _page(run_dir: Path) -> str:
    """Returns the page's HTML, from finetuned.json, metrics.csv and, if it exists, plan.json."""
    run, plan = _read_run(run_dir / "finetuned.json"), _read_plan(run_dir / "plan.json")
    metrics = read_metrics(run_dir / "metrics.csv")
    title = f"{run.get('method', '')} on {Path(run.get('base', '')).name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(str(run_dir))}</p>',
        _tiles(_summary(metrics, run)),
        _curves(metrics),
        _plan_section(plan),
        _settings(run),
    ]
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """Returns a whole page of HTML, with everything that it needs, of the parts of its body."""
    style, script = (files("lit_gpt.report").joinpath(name).read_text(encoding="utf-8") for name in _PARTS)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/><link rel="icon" href="data:,"/>'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>"
        + "\n".join(part for part in parts if part)
        + f"</main><script>{script}</script></body></html>\n"
    )


_COUNTS = {
    "n_rows": "samples in the training set",
    "n_samples": "samples of the run",
    "n_steps": "optimizer steps",
    "n_tokens": "tokens",
    "n_targets": "of these, targets",
    "n_passes": "forward passes",
    "room": "tokens that one has room for",
    "largest": "tokens of the largest",
    "n_padded": "tokens if samples were padded",
    "n_validations": "validations",
    "n_val_tokens": "tokens of one",
    "n_saves": "saves",
}
"""Label of each count, by its name in plan.json."""
_PARTS = ("page.css", "page.js")


def _read_run(path: Path) -> dict[str, Any]:
    """Returns the record of a run, empty if there is none; raises UserError if it is damaged."""
    remedy = "take the copy in one of the run's checkpoints"
    run = read_object(path, remedy) if path.is_file() else {}
    require_types(str(path), run, _RUN_KINDS, remedy)
    return run


def _read_plan(path: Path) -> dict[str, Any]:
    """Returns the plan of a run and its outcome, empty if there is none; raises UserError if it is damaged."""
    remedy = "delete it: the report does without a plan"
    plan = read_object(path, remedy) if path.is_file() else {}
    require_types(str(path), plan, _PLAN_KINDS, remedy)
    require_types(f"{path} (work)", plan.get("work", {}), dict.fromkeys(_COUNTS, float), remedy)
    for row in plan.get("outcome", []):
        require_types(f"{path} (outcome)", dict.fromkeys(_OUTCOME_KINDS) | row, _OUTCOME_KINDS, remedy)
    return plan


def _summary(metrics: Metrics, run: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (value, name, remark) of the most important figures."""
    train, val = metrics.by_step("loss", metrics.terms), metrics.column("val_loss")
    tokens = int(sum(n for (n,) in metrics.rows("n_tokens")))
    busy = sum(n / rate for n, rate in metrics.rows("n_tokens", "tokens_per_sec") if rate > 0)
    memory = max((y for _, y in metrics.column("memory_gb")), default=None)
    weighed = metrics.rows("n_tokens", "tokens_per_sec", "of_peak")
    share = sum(n / rate * part for n, rate, part in weighed if rate > 0) / max(busy, 1e-9)
    found = []
    if val:
        best = min(val, key=lambda point: point[1])
        found.append((f"{val[-1][1]:.4f}", "validation loss", f"{val[0][1]:.4f} before; lowest at step {best[0]:,.0f}"))
    if accuracy := metrics.column("val_accuracy"):
        margin = metrics.column("val_margin")
        remark = f"margin {margin[-1][1]:.3f}; {accuracy[0][1]:.1%} before" if margin else ""
        found.append((f"{accuracy[-1][1]:.1%}", "preferred answers rated higher", remark))
    if train:
        found.append((f"{train[-1][1]:.4f}", "training loss", f"last of {len(train):,} steps"))
    if len(metrics):
        seconds = metrics.columns["seconds"][-1]
        found.append((_clock(seconds), "time", f"{busy / max(seconds, 1e-9):.0%} of it in training steps"))
    if busy:
        remark = f"{share:.0%} of a matrix product's rate" if share else "no padding"
        found.append((f"{tokens / busy:,.0f}", "real tokens a second", remark))
    if len(metrics):
        n_samples = int(max(metrics.columns["samples"]))
        stated = run.get("data", {}).get("samples")
        rows_there = stated.get("train") if isinstance(stated, dict) else None
        rows_there = rows_there if fits(float, rows_there) else None
        remark = f"{tokens:,} tokens" + (f", {n_samples / rows_there:.2f} epochs" if rows_there else "")
        found.append((f"{n_samples:,}", "samples", remark))
    if memory:
        weights = run.get("quantize") or run.get("training", {}).get("precision")
        found.append((f"{memory:.2f} GB", "peak memory", f"weights in {weights}"))
    return [(value, name, str(remark or "")) for value, name, remark in found]


def _tiles(entries: Sequence[tuple[str, str, str]]) -> str:
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><small>{escape(remark)}</small></div>"
        for value, name, remark in entries
    )
    return f"<dl class='tiles'>{inner}</dl>"


def _curves(metrics: Metrics) -> str:
    loss = [
        Line("training", metrics.by_step("loss", metrics.terms)),
        Line("validation", metrics.column("val_loss"), dots=True),
    ]
    speed = [Line("real tokens a second", metrics.by_step("tokens_per_sec", "n_tokens"))]
    charts = [
        chart("Loss", loss, "nats per target token" if metrics.terms == "n_targets" else "per row", digits=4),
        *(
            chart(title, _both(metrics, name), unit, from_zero=False, digits=3)
            for name, title, unit in _OBJECTIVE_CHARTS
        ),
        chart("Learning rate", [Line("learning rate", metrics.by_step("learning_rate", "n_tokens"))], "", digits=8),
        chart("Speed", speed, "tokens a second, padding not counted", digits=0),
        chart("Memory", [Line("most so far", metrics.by_step("memory_gb", "n_tokens"))], "GB", digits=2),
    ]
    return f"<section class='charts'>{''.join(charts)}</section>"


_OBJECTIVE_CHARTS = (
    ("margin", "Margin", "reward of preferred answers, less that of others"),
    ("accuracy", "Accuracy", "share of the rows in which the preferred answer has the higher reward"),
    ("chosen_logp", "Preferred answers", "log-probability, nats a token"),
    ("reward", "Reward", "mean over the answers; in validation, of the most probable ones"),
    ("answer_tokens", "Length", "tokens of an answer"),
)
"""Figure of an objective, and the title and unit of its chart."""


def _both(metrics: Metrics, name: str) -> list[Line]:
    """Returns the curves of a figure of the objective, in training and in validation."""
    return [
        Line("training", metrics.by_step(name, "n_terms")),
        Line("validation", metrics.column(f"val_{name}"), dots=True),
    ]


def _plan_section(plan: dict[str, Any]) -> str:
    """Returns the section that compares the plan with the outcome, and lists what the plan was made of."""
    if not plan:
        return ""
    rows = [
        [
            r["what"],
            _figure(r["what"], r["planned"]),
            _figure(r["what"], r["actual"]),
            f"{r['error']:+.1%}",
            r["source"],
        ]
        for r in plan.get("outcome", [])
    ]
    items = [[name, f"{n / 1e9:.3f}"] for name, n in plan.get("memory", {}).items() if n]
    work = plan.get("work", {})
    counts = [[words, f"{work[name]:,}"] for name, words in _COUNTS.items() if name in work]
    return (
        "<section><h2>Plan and fact</h2><div class='plan'>"
        + table(["", "planned", "fact", "error", "how"], rows)
        + "</div>"
        + '<div class="two"><div><h3>Planned memory, GB</h3>'
        + table(["", ""], items)
        + "</div><div><h3>Work, counted on the data</h3>"
        + table(["", ""], counts)
        + "</div></div></section>"
    )


def _figure(what: str, value: float) -> str:
    return _clock(value) if "time" in what else f"{value:,.3f}"


def _settings(run: dict[str, Any]) -> str:
    """Returns the section with all settings of the run, from finetuned.json."""
    groups = {
        "Method": {"method": run.get("method"), "quantize": run.get("quantize"), **run.get("method_args", {})},
        "Training": run.get("training", {}),
        "Data": {k: v for k, v in run.get("data", {}).items() if not isinstance(v, dict | list)},
        "Origin": {"base": run.get("base"), "base_digest": run.get("base_digest"), **run.get("versions", {})},
    }
    parts = [
        f"<div><h3>{escape(name)}</h3>{table(['', ''], [[k, _flag_value(v)] for k, v in values.items()])}</div>"
        for name, values in groups.items()
    ]
    return f"<section><h2>Settings</h2><div class='two small'>{''.join(parts)}</div></section>"


def _flag_value(value: Any) -> str:
    """Returns a value as the command line takes it."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an HTML table; a head of empty cells is left out."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(x)}</td>" for x in rest)}</tr>'
        for first, *rest in rows
    )
    head_row = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f"<div class='scroll'><table>{head_row}<tbody>{body}</tbody></table></div>"


def _clock(seconds: float) -> str:
    """Returns seconds as H:MM:SS."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
