"""Finetune every weight of a model.

python finetune/full.py --data_dir data/alpaca --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Defaults are in the signature below; `--print_config > my.yaml` writes them out and `--config my.yaml` reads them back.
"""

from pathlib import Path

from lit_gpt.args import ClusterArgs, FullArgs, PlanArgs, Precision, RunArgs, TrainArgs, ValidationArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    data_dir: Path = Path("data/alpaca"),
    out_dir: Path | None = None,
    merge: bool = False,
    precision: Precision | None = None,
    train: TrainArgs = TrainArgs(
        learning_rate=3e-5, weight_decay=0.02, batch_size=64, micro_batch_size=1, save_interval=1000
    ),
    validation: ValidationArgs = ValidationArgs(eval_interval=600),
    run: RunArgs = RunArgs(),
    plan: PlanArgs = PlanArgs(),
    cluster: ClusterArgs = ClusterArgs(),
) -> None:
    """Finetunes every weight of a checkpoint.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        data_dir: folder of a prepared data set.
        out_dir: folder of the run; out/full/<name of the checkpoint> if not given.
        merge: also write the trained weights as a checkpoint to out_dir/merged at the end.
        precision: bf16-mixed on a GPU that has it and 32-true on a CPU if not given; 16-bit weights (bf16-true) take
            half the memory, but round the small updates of late training away.
    """
    from lit_gpt.args.finetuning import FinetuneArgs
    from lit_gpt.args.folders import default_out_dir
    from lit_gpt.fabric import make_fabric
    from lit_gpt.finetuning import finetune

    args = FinetuneArgs(
        method="full",
        method_args=FullArgs(),
        checkpoint_dir=checkpoint_dir,
        data_dir=data_dir,
        out_dir=out_dir or default_out_dir("full", checkpoint_dir),
        train=train,
        validation=validation,
        run=run,
        plan=plan,
        cluster=cluster,
        precision=precision,
        merge=merge,
    )
    finetune(make_fabric(precision, run.seed, mixed=True, cluster=plan.started(cluster)), args)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
