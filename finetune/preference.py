"""Learn from preferences: DPO, IPO, SimPO, ORPO, KTO, with LoRA, adapters or all weights (docs/preferences.md).

python finetune/preference.py --data_dir data/preferences --checkpoint_dir checkpoints/Qwen/Qwen2.5-7B-Instruct

Defaults are in the signature below; `--print_config > my.yaml` writes them out and `--config my.yaml` reads them back.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import AdapterArgs, LoRAArgs, PlanArgs, Precision, Quantization, RunArgs, TrainArgs, ValidationArgs
from lit_gpt.args.cluster import ClusterArgs
from lit_gpt.args.preferences import PreferenceArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    data_dir: Path = Path("data/preferences"),
    out_dir: Path | None = None,
    method: Literal["lora", "adapter", "adapter_v2", "full"] = "lora",
    merge: bool = False,
    precision: Precision | None = None,
    quantize: Quantization | None = None,
    sft_run: Path | None = None,
    preference: PreferenceArgs = PreferenceArgs(loss="dpo"),
    lora: LoRAArgs = LoRAArgs(lora_r=16, lora_alpha=32, lora_dropout=0.0, lora_key=True, lora_projection=True),
    adapter: AdapterArgs = AdapterArgs(),
    train: TrainArgs = TrainArgs(learning_rate=2e-5, batch_size=32, micro_batch_size=4, warmup_steps=20, epochs=1),
    validation: ValidationArgs = ValidationArgs(eval_interval=50),
    run: RunArgs = RunArgs(),
    plan: PlanArgs = PlanArgs(),
    cluster: ClusterArgs = ClusterArgs(),
) -> None:
    """Finetunes a checkpoint, or a run on it, to prefer some answers to others.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        data_dir: folder that scripts/prepare_preferences.py made.
        out_dir: folder of the run; out/preference/<name of the checkpoint> if not given.
        method: what is trained: LoRA's updates, an adapter, or every weight (with a lower --learning_rate, as 1e-6).
        merge: also write a checkpoint with the trained weights (LoRA or full) to out_dir/merged at the end.
        precision: bf16-true on a GPU (bf16-mixed for full; fp16 if it has no bf16) and 32-true on a CPU if not given.
        quantize: quantize the frozen weights of the blocks to 4 or 8 bits; not quantized if not given.
        sft_run: run to go on from: its method and weights, with which the training begins and which are the reference.
            If not given, both are the checkpoint.
    """
    from lit_gpt.args.finetuning import FinetuneArgs, args_of
    from lit_gpt.args.folders import default_out_dir
    from lit_gpt.fabric import make_fabric
    from lit_gpt.finetuning import finetune

    args = FinetuneArgs(
        method=method,
        method_args=args_of(method, lora, adapter),
        checkpoint_dir=checkpoint_dir,
        data_dir=data_dir,
        out_dir=out_dir or default_out_dir("preference", checkpoint_dir),
        train=train,
        validation=validation,
        run=run,
        plan=plan,
        cluster=cluster,
        precision=precision,
        quantize=quantize,
        sft_run=sft_run,
        preference=preference,
        merge=merge,
    )
    finetune(make_fabric(precision, run.seed, mixed=method == "full", cluster=plan.started(cluster)), args)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
