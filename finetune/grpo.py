"""Learn from graded answers of the model's own: GRPO, with LoRA, adapters or all weights (docs/preferences.md).

python finetune/grpo.py --data_dir data/my --checkpoint_dir checkpoints/Qwen/Qwen2.5-1.5B-Instruct --checker number

Defaults are in the signature below; `--print_config > my.yaml` writes them out and `--config my.yaml` reads them back.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import AdapterArgs, LoRAArgs, PlanArgs, Precision, Quantization, RunArgs, TrainArgs, ValidationArgs
from lit_gpt.args.cluster import ClusterArgs
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.rollouts import CheckerArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    data_dir: Path = Path("data/alpaca"),
    out_dir: Path | None = None,
    merge: bool = False,
    method: Literal["lora", "adapter", "adapter_v2", "full"] = "lora",
    precision: Precision | None = None,
    quantize: Quantization | None = None,
    sft_run: Path | None = None,
    grpo: GrpoArgs = GrpoArgs(),
    check: CheckerArgs = CheckerArgs(),
    lora: LoRAArgs = LoRAArgs(lora_r=16, lora_alpha=32, lora_dropout=0.0, lora_key=True, lora_projection=True),
    adapter: AdapterArgs = AdapterArgs(),
    train: TrainArgs = TrainArgs(learning_rate=5e-5, batch_size=16, micro_batch_size=4, warmup_steps=10, epochs=1),
    validation: ValidationArgs = ValidationArgs(eval_interval=10),
    run: RunArgs = RunArgs(),
    plan: PlanArgs = PlanArgs(),
    cluster: ClusterArgs = ClusterArgs(),
) -> None:
    """Finetunes a checkpoint, or a run on it, on answers that it draws to the prompts of a data set.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        data_dir: folder of a prepared data set; the answer of a row is what the checker expects.
        out_dir: folder of the run; out/grpo/<name of the checkpoint> if not given.
        merge: also write a checkpoint with the trained weights (LoRA or full) to out_dir/merged at the end.
        method: what is trained: LoRA's updates, an adapter, or every weight.
        precision: bf16-true on a GPU (bf16-mixed for full; fp16 if it has no bf16) and 32-true on a CPU if not given.
        quantize: quantize the frozen weights of the blocks to 4 or 8 bits; not quantized if not given.
        sft_run: run to go on from, with its method and weights.
    """
    from lit_gpt.args.finetuning import FinetuneArgs, args_of
    from lit_gpt.args.folders import default_out_dir
    from lit_gpt.fabric import make_fabric
    from lit_gpt.finetuning import finetune

    args = FinetuneArgs(
        method=method, method_args=args_of(method, lora, adapter), checkpoint_dir=checkpoint_dir, data_dir=data_dir,
        out_dir=out_dir or default_out_dir("grpo", checkpoint_dir), train=train, validation=validation, run=run,
        plan=plan, cluster=cluster, precision=precision, quantize=quantize, merge=merge, sft_run=sft_run, grpo=grpo,
        check=check,
    )  # fmt: skip
    finetune(make_fabric(precision, run.seed, mixed=method == "full", cluster=plan.started(cluster)), args)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
