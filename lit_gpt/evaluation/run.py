"""Score a model on tasks of lm-eval, and report in the harness's own schema."""

import json
import logging
from pathlib import Path

from lightning.fabric import Fabric

from lit_gpt.args import EvalArgs
from lit_gpt.checkpoint import write_text
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer


def evaluate(fabric: Fabric, model: GPT, tokenizer: Tokenizer, name: str, args: EvalArgs) -> None:
    """Print the table of results, and save them to `args.save_filepath` if that is given.

    Args:
        name: what the results call the model.

    Raises:
        UserError: lm-eval is not installed, an unknown task, or data that cannot be had.
    """
    try:
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable, make_table
    except ModuleNotFoundError as e:
        raise UserError('evaluation needs lm-eval; run: pip install "lm-eval>=0.4.13,<0.5"') from e
    from lit_gpt.evaluation.harness import LitLM
    from lit_gpt.evaluation.tasks import resolve

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    if args.save_filepath is not None and args.save_filepath.is_dir():
        raise UserError(f"--save_filepath {args.save_filepath} is a folder; name a file")
    manager = TaskManager(include_path=str(args.task_path) if args.task_path else None)
    tasks = resolve(args.eval_tasks, args.task_data or {}, manager)
    try:
        results = evaluator.simple_evaluate(
            model=LitLM(fabric, model, tokenizer, args.batch_size, name),
            tasks=tasks,
            task_manager=manager,
            num_fewshot=args.num_fewshot,
            batch_size=args.batch_size,
            device=str(fabric.device),
            limit=args.limit,
            bootstrap_iters=args.bootstrap_iters,
            log_samples=args.log_samples,
            random_seed=args.seed,
            numpy_random_seed=args.seed,
            torch_random_seed=args.seed,
            fewshot_random_seed=args.seed,
        )
    except (ConnectionError, OSError) as e:
        raise UserError(
            f"the data of a task could not be fetched ({str(e).splitlines()[0][:200]}); "
            'name local files with --task_data "{task: file.jsonl}"'
        ) from e
    results["config"]["model"] = name
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    if args.save_filepath is not None:
        args.save_filepath.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
        write_text(args.save_filepath, text + "\n")
        print(f"Results saved at {args.save_filepath}")
