"""Finetune with LLaMA-Adapter (https://arxiv.org/abs/2303.16199).

python finetune/adapter.py --data_dir data/alpaca --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Defaults are in the signature below; `--print_config > my.yaml` writes them out and `--config my.yaml` reads them back.
"""

from pathlib import Path

from lit_gpt.args import AdapterArgs, ClusterArgs, PlanArgs, Precision, Quantization, RunArgs, TrainArgs, ValidationArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    data_dir: Path = Path("data/alpaca"),
    out_dir: Path | None = None,
    precision: Precision | None = None,
    quantize: Quantization | None = None,
    adapter: AdapterArgs = AdapterArgs(adapter_prompt_length=10, adapter_start_layer=2),
    train: TrainArgs = TrainArgs(learning_rate=3e-3, weight_decay=0.02, batch_size=64, save_interval=1000),
    validation: ValidationArgs = ValidationArgs(eval_interval=600),
    run: RunArgs = RunArgs(),
    plan: PlanArgs = PlanArgs(),
    cluster: ClusterArgs = ClusterArgs(),
) -> None:
    """Finetunes a checkpoint with LLaMA-Adapter.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        data_dir: folder of a prepared data set.
        out_dir: folder of the run; out/adapter/<name of the checkpoint> if not given.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantize the frozen weights of the blocks to 4 or 8 bits; not quantized if not given.
    """
    from lit_gpt.args.finetuning import FinetuneArgs
    from lit_gpt.args.folders import default_out_dir
    from lit_gpt.fabric import make_fabric
    from lit_gpt.finetuning import finetune

    args = FinetuneArgs(
        method="adapter",
        method_args=adapter,
        checkpoint_dir=checkpoint_dir,
        data_dir=data_dir,
        out_dir=out_dir or default_out_dir("adapter", checkpoint_dir),
        train=train,
        validation=validation,
        run=run,
        plan=plan,
        cluster=cluster,
        precision=precision,
        quantize=quantize,
    )
    finetune(make_fabric(precision, run.seed, cluster=plan.started(cluster)), args)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
