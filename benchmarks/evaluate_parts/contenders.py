"""Who evaluates: a process that scores the model in its own way and writes what it found.

python contenders.py NAME FOLDER DATA JOB OPTIONS OUT, where NAME is `hf` or the folder of a checkout of ours.
"""

import json
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ASKED = ("loglikelihood", "generate_until")
MODEL = "SmolLM2-135M-Instruct"
_DTYPES = {"bf16-true": "bfloat16", "32-true": "float32"}


def _timed(owner: type, spent: list[float]) -> None:
    """Adds up the seconds that an LM of lm-eval takes to answer requests."""
    for name in _ASKED:
        setattr(owner, name, _clocked(getattr(owner, name), spent))


def _clocked(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def clocked(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - start

    return clocked


def hf(folder: Path, job: Any, options: dict[str, Any], spent: list[float]) -> dict[str, Any]:
    """Returns lm-eval's results with its own `hf` model."""
    from evaluate_parts.material import config_of
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    _timed(HFLM, spent)
    results: Any = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "hf" / MODEL), "dtype": _DTYPES[options["precision"]]},
        tasks=[config_of(task) for task in job.tasks],
        task_manager=TaskManager(include_defaults=False),
        num_fewshot=job.shots,
        batch_size=options["batch_size"],
        device="cpu",
        limit=job.limit,
        log_samples=True,
    )
    assert results is not None
    print(make_table(results))
    return results


def ours(root: Path, folder: Path, job: Any, options: dict[str, Any], spent: list[float], out: Path) -> dict[str, Any]:
    """Returns the results of a checkout's eval/lm_eval_harness.py."""
    sys.path.insert(0, str(root))
    from lit_gpt.evaluation.harness import LitLM

    _timed(LitLM, spent)
    files = {task.name: {split: str(path) for split, path in task.files.items()} for task in job.tasks}
    flags: dict[str, Any] = {
        "checkpoint_dir": folder / MODEL, "precision": options["precision"], "limit": job.limit, "log_samples": "true",
        "eval_tasks": json.dumps([t.name for t in job.tasks]), "task_data": json.dumps(files),
        "save_filepath": out.with_suffix(".results.json"),
    }  # fmt: skip
    if job.shots is not None:
        flags["num_fewshot"] = job.shots
    if root != Path(__file__).parent.parent.parent:  # an older one computes one text at a time if it is not told
        flags["batch_size"] = options["batch_size"]
    script = root / "eval" / "lm_eval_harness.py"
    sys.argv = [str(script), *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]
    runpy.run_path(str(script), run_name="__main__")
    return json.loads(flags["save_filepath"].read_text(encoding="utf-8"))


def _answers(results: dict[str, Any]) -> dict[str, list[Any]]:
    """Returns for each task what the model answered to each question: log-probabilities, or a text."""
    found = {}
    for name, samples in results["samples"].items():
        unique = {s["doc_id"]: s["resps"] for s in samples}  # one sample for each filter of a task
        found[name] = [_plain(unique[i]) for i in sorted(unique)]
    return found


def _plain(responses: Any) -> Any:
    if isinstance(responses, list | tuple):
        return [_plain(r) for r in responses]
    return responses


def main() -> None:
    name, folder, data, job_name, given, out = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from evaluate_parts.material import jobs

    options = json.loads(given)
    job = jobs(Path(data), Path(out).parent)[job_name]
    job = job._replace(limit=options["questions"] or job.limit)
    spent = [0.0]
    if name == "hf":
        results = hf(Path(folder), job, options, spent)
    else:
        results = ours(Path(name), Path(folder), job, options, spent=spent, out=Path(out))
    scores = {task: {k: v for k, v in r.items() if isinstance(v, float)} for task, r in results["results"].items()}
    found = {"requests": spent[0], "scores": scores, "answers": _answers(results)}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
