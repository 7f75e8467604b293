"""What a model reached, scenario by scenario: read from HELM's files or made by us, saved, shown, compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.evaluation.helm.conf import Entry, parsed
from lit_gpt.files import write_text
from lit_gpt.records import parse_json, read_object

COLUMNS = ("accuracy", "robustness", "fairness")
_MAIN = {
    "mmlu": ("exact_match", "test"),
    "truthful_qa": ("exact_match", "valid"),
    "gsm": ("exact_match_indicator", "test"),
    "bbq": ("quasi_exact_match", "test"),
    "summarization_cnndm": ("rouge_2", "test"),
    "big_bench": ("exact_match", "test"),
}
"""Scenario -> (metric, split) that its score is, as HELM's schema for the challenge's time has them."""
_OTHERS = ("exact_match", "quasi_exact_match", "f1_score", "rouge_2")
"""Metrics of a scenario that is not in the table, the first that it has counts."""
_SAME = ("method", "model", "model_deployment", "data_augmentation", "max_train_instances", "max_eval_instances")
"""Settings that a scenario's name in the table leaves out."""


class Row(NamedTuple):
    """The scores of a scenario."""

    metric: str
    split: str
    accuracy: float | None
    """Mean over the questions; None if HELM gave no such score."""
    robustness: float | None
    """Mean over the questions of the worst of each and its versions with slips of the pen."""
    fairness: float | None
    """Mean over the questions of the worst of each and its versions in another dialect and about other people."""
    n: int
    """Questions, without perturbed ones, in that split."""


def short_name(entry: Entry) -> str:
    """Returns the name of a scenario in the table."""
    kept = [f"{k}={v}" for k, v in entry.settings.items() if k not in _SAME and v]
    if entry.scenario == "summarization_cnndm":
        kept = []
    return entry.scenario + (f":{','.join(kept)}" if kept else "")


def read_rows(suite: Path, listed: Sequence[Entry] = ()) -> dict[str, Row]:
    """Returns the rows of a suite that `helm-run` wrote, by name.

    Args:
        suite: folder with a folder for each run.
        listed: the entries in the order of which the rows are returned; others come last.

    Raises:
        UserError: a run has no scores, or its files are not HELM's.
    """
    found: dict[str, Row] = {}
    for path in sorted(suite.glob("*/stats.json")):
        entry = parsed(path.parent.name if ":" in path.parent.name else f"{path.parent.name}:")
        try:
            stats = parse_json(path.read_bytes(), str(path), "run HELM again", finite=False)
            by_metric = {_key(stat): stat.get("mean") for stat in stats}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{path} is no file of HELM's scores ({type(e).__name__}: {e})") from e
        found[short_name(entry)] = _row(entry.scenario, by_metric)
    places = {short_name(entry): i for i, entry in enumerate(listed)}
    return dict(sorted(found.items(), key=lambda row: places.get(row[0], len(places))))


def _key(stat: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns (metric, split, robustness or fairness or "") of one of HELM's scores, or a longer name of others."""
    name = stat["name"]
    perturbation = name.get("perturbation") or {}
    kind = perturbation.get("name", "")
    is_whole = kind in COLUMNS and perturbation.get("computed_on") == "worst"
    return name["name"], name.get("split", ""), kind if is_whole or not kind else json.dumps(perturbation)


def _row(scenario: str, stats: Mapping[tuple[str, str, str], float | None]) -> Row:
    splits = [split for split in ("test", "valid") if any(key[1] == split for key in stats)]
    metric, split = _MAIN.get(scenario, ("", splits[0] if splits else "test"))
    metric = metric or next((m for m in _OTHERS if (m, split, "") in stats), _OTHERS[0])
    values = [stats.get((metric, split, kind)) for kind in ("", *COLUMNS[1:])]
    return Row(metric, split, *values, n=int(stats.get(("num_instances", split, "")) or 0))


def save_rows(path: Path, about: Mapping[str, Any], rows: Mapping[str, Row]) -> None:
    """Writes rows, with what they are of, to a JSON file."""
    scenarios = {name: row._asdict() for name, row in rows.items()}
    write_text(path, json.dumps({"about": dict(about), "scenarios": scenarios}, indent=1, default=str) + "\n")


def load_rows(path: Path) -> dict[str, Row]:
    """Returns the rows of a file that `save_rows` wrote; raises UserError if it is none."""
    try:
        scenarios = read_object(path)["scenarios"]
        return {name: Row(**fields) for name, fields in scenarios.items()}
    except (OSError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} holds no results of eval/helm.py or eval/mini_helm.py ({e})") from e


def table(rows: Mapping[str, Row]) -> str:
    """Returns the rows as a table, with the mean of each column under them."""
    width = max(len("scenario"), *map(len, rows)) if rows else 0
    heads = ("accuracy", "robustness", "fairness")
    lines = [f"{'scenario':{width}}  {'metric':21}  {'questions':>9}" + "".join(f"  {h:>10}" for h in heads)]
    for name, row in rows.items():
        scores = "".join(f"  {_shown(getattr(row, h))}" for h in heads)
        lines.append(f"{name:{width}}  {row.metric:21}  {row.n:>9}{scores}")
    means = "".join(f"  {_shown(mean_of([getattr(row, h) for row in rows.values()]))}" for h in heads)
    return "\n".join([*lines, f"{'mean':{width}}  {'':21}  {'':>9}{means}"])


def _shown(score: float | None) -> str:
    return f"{'-' if score is None else f'{score:.3f}':>10}"


def mean_of(scores: Sequence[float | None]) -> float | None:
    """Returns the mean of the scores that there are; None if there are none."""
    found = [score for score in scores if score is not None]
    return mean(found) if found else None


def _win_rates(rows: Mapping[str, Row], baselines: Mapping[str, Mapping[str, Row]]) -> dict[str, float | None]:
    """Returns for each column HELM's mean win rate: how often a baseline, drawn at random, is worse on a scenario.

    A tie is half a win. Scenarios that no baseline has do not count.

    Returns:
        None for a column without any scenario to compare.
    """
    found: dict[str, float | None] = {}
    for column in COLUMNS:
        rates = []
        for name, row in rows.items():
            own = getattr(row, column)
            others = [getattr(other[name], column) for other in baselines.values() if name in other]
            others = [other for other in others if other is not None]
            if own is not None and others:
                rates.append(mean((own > other) + (own == other) / 2 for other in others))
        found[column] = mean_of(rates)
    return found


def compared(rows: Mapping[str, Row], baselines: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Returns the lines that tell HELM's mean win rate against baselines; none without any."""
    if not baselines:
        return []
    rates = _win_rates(rows, baselines)
    shown = ", ".join(f"{column} {'-' if rate is None else f'{rate:.3f}'}" for column, rate in rates.items())
    return [f"mean win rate against {len(baselines)} stored results: {shown}"]
