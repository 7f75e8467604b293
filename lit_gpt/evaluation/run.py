"""An evaluation, from the model to the table of scores and the file of results."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_gpt.args import EvalArgs
from lit_gpt.errors import UserError
from lit_gpt.evaluation.dealing import Answerer
from lit_gpt.evaluation.harness import LitLM
from lit_gpt.files import write_text
from lit_gpt.generation.batching.runs import SharedRun
from lit_gpt.layers.compiled import compiling
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.parallel.watch import together
from lit_gpt.prompts import ChatTemplate, open_style
from lit_gpt.tokenizer import Tokenizer


def choose_style(args: EvalArgs, trained_with: str | None = None, checkpoint_dir: Path | None = None) -> str | None:
    """Returns the prompt style in which questions are asked, or None for the bare questions.

    Args:
        trained_with: style that the model was finetuned with; None for a base model.
        checkpoint_dir: folder with the chat template, in case the style is the model's own.

    Raises:
        UserError: a style is to be applied, and none is known.
    """
    style = args.prompt_style or trained_with
    if not args.apply_prompt_style:
        return None
    if style is None:
        raise UserError("--apply_prompt_style true needs --prompt_style for a base model: it was not trained with any")
    open_style(style, checkpoint_dir)
    return style


@contextmanager
def answering_together(fabric: Fabric) -> Iterator[Team]:
    """Yields the processes of an evaluation, which end together; what is worth compiling is compiled."""
    with together(fabric) as team, compiling():
        yield team


def evaluate(
    fabric: Fabric,
    model: GPT,
    tokenizer: Tokenizer,
    tasks: tuple[Any, list[Any]] | None,
    args: EvalArgs,
    style: str | None,
    about: dict[str, Any],
    team: Team = ALONE,
) -> dict[str, Any]:
    """Prints the scores of `model` as a table, writes them to args.save_filepath, and returns them.

    The scores are returned and written in lm-eval's schema. A process that does not lead answers its part of the
    questions, and returns none.

    Args:
        tasks: the result of `prepare`, which only the leader needs.
        style: the result of `choose_style`.
        about: origin of the model; written as `config.model_args`.
        team: the processes that answer together.
    """
    from lm_eval.utils import make_table

    if tasks is None:
        Answerer(model, tokenizer, args.batch_size, autocast=fabric.autocast, team=team).follow()
        return {}
    results = measured(fabric, model, tokenizer=tokenizer, tasks=tasks, args=args, style=style, about=about, team=team)
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if args.save_filepath is not None:
        write_json(args.save_filepath, results)
    return results


def measured(
    fabric: Fabric,
    model: GPT,
    *,
    tokenizer: Tokenizer,
    tasks: tuple[Any, list[Any]],
    args: EvalArgs,
    style: str | None,
    about: dict[str, Any],
    run: SharedRun | None = None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Returns the scores of a model in lm-eval's schema; arguments as those of `evaluate`.

    Args:
        run: a LoRA run that answers in place of `model`, which is its base.
    """
    from lm_eval.evaluator import simple_evaluate

    manager, chosen = tasks
    about_lm = {"name": model.config.name, "autocast": fabric.autocast, "run": run, "team": team}
    lm = LitLM(model, tokenizer, args.batch_size, style, **about_lm)
    as_turns = args.fewshot_as_multiturn
    as_turns = isinstance(lm.style, ChatTemplate) if as_turns is None else as_turns
    results: Any = simple_evaluate(
        model=lm,
        tasks=chosen,
        task_manager=manager,
        num_fewshot=args.num_fewshot,
        batch_size=args.batch_size,
        device=str(fabric.device),
        limit=args.limit,
        bootstrap_iters=args.bootstrap_iters,
        log_samples=args.log_samples,
        system_instruction=args.system,
        apply_chat_template=style is not None,
        fewshot_as_multiturn=as_turns,
        confirm_run_unsafe_code=args.confirm_run_unsafe_code,
        random_seed=args.seed,
        numpy_random_seed=args.seed,
        torch_random_seed=args.seed,
        fewshot_random_seed=args.seed,
    )
    lm.answerer.finish()
    about = {name: str(value) if isinstance(value, Path) else value for name, value in about.items()}
    results["config"] |= {
        "model": "lit_gpt",
        "model_args": about,
        "prompt_style": style,
        "system_instruction": args.system,
    }
    return results | {"model_name": model.config.name, "eot_token_id": lm.eot_token_id, "max_length": lm.max_length}


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Writes results to a file, as JSON that every reader takes."""
    from lm_eval.utils import handle_non_serializable

    write_text(path, json.dumps(_strict(results), indent=2, default=handle_non_serializable, ensure_ascii=False) + "\n")


def _strict(value: Any) -> Any:
    """Returns `value` with NaN and infinities, which are not JSON, as text, like lm-eval's `N/A`."""
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
