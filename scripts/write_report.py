"""Draw the loss curve and write the report of a run again, from the figures in its folder.

python scripts/write_report.py --finetuned_path out/lora/open_llama_7b

Also works on a run that is in progress or was killed. Needs no checkpoint, no data and no GPU.
"""

from pathlib import Path


def main(finetuned_path: Path) -> None:
    """Writes loss.png and report.html.

    Args:
        finetuned_path: the run's folder.
    """
    from lit_gpt.checkpoints.runs import read_run
    from lit_gpt.errors import UserError
    from lit_gpt.report.page import write_report
    from lit_gpt.training.run.metrics import METRICS
    from lit_gpt.training.run.monitor import CURVE, plot_losses

    read_run(finetuned_path)
    metrics = finetuned_path / METRICS
    if not metrics.is_file():
        raise UserError(f"{finetuned_path} has no {METRICS}, which a finetune script writes; pass the folder of a run")
    print(f"Saved the loss curve to {plot_losses(metrics, finetuned_path / CURVE)}")
    print(f"Saved a report to {write_report(finetuned_path)}")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
