"""Arguments of evaluation."""

from dataclasses import dataclass
from pathlib import Path

from lit_gpt.args.require import require
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class EvalArgs:
    """Arguments of evaluation: what is measured, and where the results go."""

    eval_tasks: tuple[str, ...] = ("arc_challenge", "piqa", "hellaswag", "hendrycksTest-*")
    """Names of tasks, groups or tags of lm-eval, also with * and ?; the names of 2023 work too."""
    task_data: dict[str, dict[str, Path] | Path] | None = None
    """Local data: task -> JSON or JSONL file with rows as the hub's; or a file for each split, {test: FILE, dev: FILE};
    or a folder with <task>.jsonl, or <task>/<split>.jsonl, for each task."""
    task_path: Path | None = None
    """Your own tasks: a YAML file of lm-eval, or a folder with such files."""
    batch_size: int | None = None
    """Most questions computed at once, as many as fit if not given; changes memory and speed, not the result."""
    num_fewshot: int | None = None
    """Few-shot: solved examples before each question; as the task says if not given."""
    limit: int | float | None = None
    """Questions per task, or their share if below 1; all if not given."""
    bootstrap_iters: int = 100_000
    """Resamplings behind the standard errors."""
    save_filepath: Path | None = None
    """JSON file for the results, in lm-eval's schema."""
    log_samples: bool = False
    """Also save each question with the model's answer."""
    apply_prompt_style: bool = False
    """Wrap each question in a prompt style: that of --prompt_style, else the one the model was finetuned with."""
    prompt_style: str | None = None
    """Name of the prompt style: alpaca, chatml, plain, or chat_template for the model's own."""
    fewshot_as_multiturn: bool | None = None
    """Show solved examples as turns of a conversation instead of within the question; if not given, only with the
    prompt style chat_template, as lm-eval does."""
    system: str | None = None
    """Text before everything else; a system prompt where the questions are in a prompt style."""
    confirm_run_unsafe_code: bool = False
    """Run what the model writes, for tasks that execute it (humaneval, mbpp): on this machine, unguarded."""
    seed: int = 1234
    """Seed of the choice of solved examples, and of sampling."""

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            require("batch_size", self.batch_size, at_least=1)
        require("bootstrap_iters", self.bootstrap_iters, at_least=0)
        if self.num_fewshot is not None:
            require("num_fewshot", self.num_fewshot, at_least=0)
        if self.limit is not None and self.limit <= 0:
            raise UserError(f"--limit {self.limit} evaluates nothing; it must be more than 0")
        for name in ("prompt_style", "fewshot_as_multiturn"):
            if getattr(self, name) not in (None, False) and not self.apply_prompt_style:
                raise UserError(f"--{name} does nothing without --apply_prompt_style true")


@dataclass(frozen=True)
class HelmArgs:
    """What is asked of HELM's scenarios, and from where."""

    conf: Path | None = None
    """HELM's list of what to run, such as run_specs.conf; that of the challenge's sample if not given."""
    scenario_data: Path = Path("out/helm/data")
    """Folder with HELM's folders scenarios and perturbations; what HELM fetches from the network is put there."""
    max_eval_instances: int = 20
    """Most questions of each scenario, before perturbed versions of them; an entry of the list may say its own."""
    batch_size: int = 16
    """Questions that are asked at once."""
    out_dir: Path | None = None
    """Folder of results; out/helm/ or out/mini_helm/ and the name of the checkpoint or run if not given."""

    def __post_init__(self) -> None:
        require("max_eval_instances", self.max_eval_instances, at_least=1)
        require("batch_size", self.batch_size, at_least=1)
