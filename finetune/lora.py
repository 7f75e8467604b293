"""Finetune with LoRA (https://arxiv.org/abs/2106.09685).

python finetune/lora.py --data_dir data/alpaca --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Defaults are in the signature below; `--print_config > my.yaml` writes them out and `--config my.yaml` reads them back.
"""

from pathlib import Path

from lit_gpt.args import ClusterArgs, LoRAArgs, PlanArgs, Precision, Quantization, RunArgs, TrainArgs, ValidationArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    data_dir: Path = Path("data/alpaca"),
    out_dir: Path | None = None,
    merge: bool = False,
    precision: Precision | None = None,
    quantize: Quantization | None = None,
    lora: LoRAArgs = LoRAArgs(lora_r=8, lora_alpha=16, lora_dropout=0.05, lora_query=True, lora_value=True),
    train: TrainArgs = TrainArgs(learning_rate=3e-4, batch_size=128, micro_batch_size=4, warmup_steps=100),
    validation: ValidationArgs = ValidationArgs(eval_interval=100),
    run: RunArgs = RunArgs(),
    plan: PlanArgs = PlanArgs(),
    cluster: ClusterArgs = ClusterArgs(),
) -> None:
    """Finetunes a checkpoint with LoRA.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        data_dir: folder of a prepared data set.
        out_dir: folder of the run; out/lora/<name of the checkpoint> if not given.
        merge: also write a checkpoint with the merged weights to out_dir/merged at the end.
        precision: bf16-true on a GPU (16-true if it has no bf16) and 32-true on a CPU if not given.
        quantize: quantize the frozen weights of the blocks to 4 or 8 bits (LoRA on bnb.nf4 is QLoRA); not quantized if
            not given.
    """
    from lit_gpt.args.finetuning import FinetuneArgs
    from lit_gpt.args.folders import default_out_dir
    from lit_gpt.fabric import make_fabric
    from lit_gpt.finetuning import finetune

    args = FinetuneArgs(
        method="lora",
        method_args=lora,
        checkpoint_dir=checkpoint_dir,
        data_dir=data_dir,
        out_dir=out_dir or default_out_dir("lora", checkpoint_dir),
        train=train,
        validation=validation,
        run=run,
        plan=plan,
        cluster=cluster,
        precision=precision,
        quantize=quantize,
        merge=merge,
    )
    finetune(make_fabric(precision, run.seed, cluster=plan.started(cluster)), args)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
