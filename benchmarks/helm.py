"""Compares what eval/helm.py and eval/mini_helm.py left, question by question: prompts, texts and scores.

python benchmarks/helm.py --helm out/helm/demo --mini_helm out/mini_helm/demo

Both scripts have to be called before, on the same model and with the same --conf, --scenario_data and
--max_eval_instances. Exits with 1 if they asked other prompts, or if a score differs although all texts are the same.
"""

import json
import sys
from pathlib import Path

from lit_gpt.cli import run
from lit_gpt.evaluation.helm.conf import parsed
from lit_gpt.evaluation.helm.results import COLUMNS, load_rows, short_name

_Asked = dict[tuple[str, str | None], tuple[str, str]]
"""Id of a question and its perturbation -> prompt and text."""


def main(helm: Path, mini_helm: Path) -> None:
    """Prints what is equal.

    Args:
        helm: folder that eval/helm.py wrote.
        mini_helm: folder that eval/mini_helm.py wrote.
    """
    theirs, ours = _by_helm(helm), _by_us(mini_helm)
    their_rows, our_rows = (load_rows(folder / "results.json") for folder in (helm, mini_helm))
    width = max(len("scenario"), *map(len, our_rows))
    print(f"{'scenario':{width}}  equal prompts  equal texts" + "".join(f"{name:>16}" for name in COLUMNS))
    is_right = their_rows.keys() == our_rows.keys()
    for name, row in our_rows.items():
        other, one = theirs.get(name, {}), ours.get(name, {})
        same = [key for key in one if other.get(key, ("",))[0] == one[key][0]]
        n_texts = sum(other[key] == one[key] for key in same)
        pairs = [(getattr(their_rows.get(name), column, None), getattr(row, column)) for column in COLUMNS]
        shown = "".join(f"{' / '.join('-' if x is None else f'{x:.3f}' for x in pair):>16}" for pair in pairs)
        print(f"{name:{width}}  {len(same):>6} of {len(one):<3}  {n_texts:>4} of {len(one):<3}{shown}")
        is_right &= len(same) == len(one) == len(other)
        is_right &= n_texts < len(one) or all(_equal(*pair) for pair in pairs)
    sys.exit(int(not is_right))


def _equal(a: float | None, b: float | None) -> bool:
    """Returns whether two scores are equal but for rounding."""
    return a is b or (a is not None and b is not None and abs(a - b) < 1e-9)


def _by_helm(folder: Path) -> dict[str, _Asked]:
    """Returns what HELM asked and got, by scenario."""
    found: dict[str, _Asked] = {}
    for path in sorted(folder.glob("benchmark_output/runs/*/*/scenario_state.json")):
        name = path.parent.name
        asked = found.setdefault(short_name(parsed(name if ":" in name else f"{name}:")), {})
        for state in json.loads(path.read_text(encoding="utf-8"))["request_states"]:
            instance = state["instance"]
            key = instance["id"], (instance.get("perturbation") or {}).get("name")
            asked[key] = state["request"]["prompt"], state["result"]["completions"][0]["text"]
    return found


def _by_us(folder: Path) -> dict[str, _Asked]:
    """Returns what mini_helm asked and got, by scenario."""
    found: dict[str, _Asked] = {}
    for line in (folder / "asked.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["scenario"], {})[row["id"], row["perturbation"]] = row["prompt"], row["text"]
    return found


if __name__ == "__main__":
    run(main)
