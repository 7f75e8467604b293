"""Write local files of lm-eval's common tasks, from what their authors publish, for an evaluation without a hub.

python scripts/prepare_eval.py --eval_tasks hellaswag,mmlu --destination_path data/eval

The last line is the flag that makes an evaluation read them.
"""

from pathlib import Path


def main(
    eval_tasks: tuple[str, ...] = (),
    destination_path: Path = Path("data/eval"),
    source_dir: Path | None = None,
) -> None:
    """Writes the local files of tasks.

    Args:
        eval_tasks: arc_challenge, arc_easy, bbh, boolq, gsm8k, hellaswag, ifeval, mmlu, openbookqa, piqa, truthfulqa,
            truthfulqa_gen, winogrande; all if not given.
        destination_path: folder for <task>/<split>.jsonl.
        source_dir: folder with the published files or archives that somebody copied, in a folder for each task where
            names occur twice; downloaded if not given.
    """
    from lit_gpt.errors import UserError
    from lit_gpt.evaluation.local.archives import TASKS, write_task

    if unknown := [name for name in eval_tasks if name not in TASKS]:
        raise UserError(f"--eval_tasks: {unknown[0]} is none of {', '.join(TASKS)}")
    if source_dir is not None and not source_dir.is_dir():
        raise UserError(f"there is no folder {source_dir} (--source_dir)")
    if destination_path.is_file():
        raise UserError(f"--destination_path {destination_path} is a file; pass a folder")
    names = eval_tasks or tuple(TASKS)
    written: list[str] = []
    for name in names:
        made = write_task(name, destination_path, source_dir)
        print(f"{name}: {len(made)} task{'s' * (len(made) != 1)} of lm-eval, {made[0]} first")
        written += ["mmlu"] if name == "mmlu" else made
    flags = ", ".join(f"{task}: {destination_path}" for task in written)
    print(f'--task_data "{{{flags}}}"')


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
