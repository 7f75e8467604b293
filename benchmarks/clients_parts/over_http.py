"""lm-eval's clients of a server against our model in this process: the same tasks, question by question."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_gpt.args import EvalArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.evaluation.harness import LitLM
from lit_gpt.evaluation.tasks import prepare
from lit_gpt.fabric import make_fabric
from lit_gpt.prompts import CHAT_TEMPLATE
from lit_gpt.tokenizer import Tokenizer

_TOLERANCE = 1e-4
_SEED = 1234
_NUMBERS = """
task: gsm8k_numbers
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: {train}, test: {test}}}}}
training_split: train
fewshot_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{% set n = answer.split('#### ')[1].replace(',', '') | int %}}\
{{{{[n | string, (n + 1) | string, (2 * n + 3) | string, (n + 10) | string]}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
"""A task with solved examples whose answers are scored: which of four numbers answers a question of GSM8K."""


def rows(
    url: str, checkpoint_dir: Path, data: Path, folder: Path, limits: dict[str, int]
) -> Iterator[tuple[str, bool]]:
    """Yields a line about each task, and whether the answers over HTTP are those of this process.

    Args:
        data: folder with truthfulqa_mc.jsonl, gsm8k_train.jsonl and gsm8k_test.jsonl.
        folder: where the configuration of a task is written.
        limits: most questions of each task, all if it is not named; a task with 0 is left out.
    """
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    os.environ.setdefault("OPENAI_API_KEY", "none")
    fabric = make_fabric("32-true", _SEED)
    model, _ = load_base(fabric, checkpoint_dir, None)
    tokenizer = Tokenizer(checkpoint_dir)
    own = folder / "gsm8k_numbers.yaml"
    train, test = data / "gsm8k_train.jsonl", data / "gsm8k_test.jsonl"
    own.write_text(_NUMBERS.format(train=train, test=test), encoding="utf-8")
    chosen: list[tuple[str, dict[str, Any]]] = [
        (task, {"task_data": {task: data / "truthfulqa_mc.jsonl"}}) for task in ("truthfulqa_mc1", "truthfulqa_mc2")
    ]
    chosen += [("gsm8k_numbers", {"task_path": own, "num_fewshot": 5})]
    chosen += [("gsm8k", {"task_data": {"gsm8k": {"train": train, "test": test}}, "num_fewshot": 5})]
    for task, options in chosen:
        if limits.get(task) == 0:
            continue
        args = EvalArgs(eval_tasks=(task,), limit=limits.get(task), batch_size=8, **options)
        ours = LitLM(model, tokenizer, args.batch_size, name="ours", autocast=fabric.autocast)
        wish = {"base_url": f"{url}/v1/completions", "model": "any", "tokenizer_backend": "remote"}
        wish |= {"max_length": model.config.block_size, "num_concurrent": 8}
        yield _compared(task, args, ours, LocalCompletionsAPI(**wish))
    if limits.get("gsm8k") != 0:
        args = EvalArgs(eval_tasks=("gsm8k",), limit=limits.get("gsm8k"), apply_prompt_style=True, **chosen[-1][1])
        ours = LitLM(model, tokenizer, 8, prompt_style=CHAT_TEMPLATE, name="ours", autocast=fabric.autocast)
        wish = {"base_url": f"{url}/v1/chat/completions", "model": "any", "num_concurrent": 8}
        yield _compared("gsm8k, local-chat-completions", args, ours, LocalChatCompletion(**wish))


def _compared(name: str, args: EvalArgs, ours: Any, theirs: Any) -> tuple[str, bool]:
    """Returns a line about a task, and whether both models give the same answers to it."""
    (want, seconds), (got, seconds_over_http) = _answers(ours, args), _answers(theirs, args)
    time_taken = f"{seconds:.0f} s in this process, {seconds_over_http:.0f} s over HTTP"
    pairs = [pair for mine, other in zip(want, got, strict=True) for pair in zip(mine, other, strict=True)]
    if isinstance(pairs[0][0], str):
        n = sum(mine == other for mine, other in pairs)
        return f"{name}: {len(want)} questions, {n} texts alike; {time_taken}", n == len(pairs)
    off = [abs(mine[0] - other[0]) for mine, other in pairs]
    n = sum(mine[1] == other[1] for mine, other in pairs)
    line = f"{name}: {len(want)} questions, {len(pairs)} answers, log-likelihoods at most {max(off):.1e} apart"
    line += f" ({sum(off) / len(off):.1e} in the mean), {n} greedy flags alike; {time_taken}"
    return line, max(off) <= _TOLERANCE and n == len(pairs)


def _answers(lm: Any, args: EvalArgs) -> tuple[list[list[Any]], float]:
    """Returns what a model answers to each question, in order, and the seconds that it took.

    An answer is (log-likelihood, greedy flag), or a text.
    """
    from lm_eval.evaluator import simple_evaluate

    manager, tasks = prepare(args)
    chosen: Any = tasks
    started = time.perf_counter()
    found: Any = simple_evaluate(
        model=lm,
        tasks=chosen,
        task_manager=manager,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=args.apply_prompt_style,
        fewshot_as_multiturn=args.apply_prompt_style,
        random_seed=_SEED,
        numpy_random_seed=_SEED,
        torch_random_seed=_SEED,
        fewshot_random_seed=_SEED,
    )
    seconds = time.perf_counter() - started
    (samples,) = found["samples"].values()
    questions: dict[int, list[Any]] = {}
    for sample in sorted(samples, key=lambda s: s["doc_id"]):
        questions.setdefault(sample["doc_id"], [_read(response[0]) for response in sample["resps"]])
    return list(questions.values()), seconds


def _read(response: Any) -> Any:
    """Returns an answer as it was before lm-eval wrote it down."""
    if isinstance(response, str):
        return response
    logprob, is_greedy = response
    return float(logprob), str(is_greedy) == "True"
