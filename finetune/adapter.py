"""Finetune with LLaMA-Adapter (https://arxiv.org/abs/2303.16199).

python finetune/adapter.py --data_dir data/alpaca --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Defaults are in the signature below; `--print_config > my.yaml` writes them out and `--config my.yaml` reads them back.
"""

from pathlib import Path

from lit_gpt.args import AdapterArgs, PlanArgs, Precision, Quantization, TrainArgs, ValidationArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    data_dir: Path = Path("data/alpaca"),
    out_dir: Path | None = None,
    overwrite: bool = False,
    resume: bool | Path = False,
    allow_changes: bool = False,
    prompt_style: str | None = None,
    precision: Precision | None = None,
    quantize: Quantization | None = None,
    seed: int = 1337,
    adapter: AdapterArgs = AdapterArgs(adapter_prompt_length=10, adapter_start_layer=2),
    train: TrainArgs = TrainArgs(learning_rate=3e-3, weight_decay=0.02, batch_size=64, save_interval=1000),
    validation: ValidationArgs = ValidationArgs(eval_interval=600),
    plan: PlanArgs = PlanArgs(),
) -> None:
    """Finetune with LLaMA-Adapter.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        data_dir: folder of a prepared data set.
        out_dir: where the run is saved; out/adapter/<name of the checkpoint> if not given.
        overwrite: replace the run that out_dir holds.
        resume: go on with it from its newest checkpoint, or from the folder of one.
        allow_changes: resume even with arguments that make it another run.
        prompt_style: refuse data that was prepared in another style.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: keep the weights of the blocks in 4 or 8 bits; in the precision if not given.
        seed: decides the order of the samples and the first weights.
    """
    from lit_gpt.checkpoint import default_out_dir, make_fabric
    from lit_gpt.training.run import finetune

    finetune(
        make_fabric(precision, seed),
        "adapter",
        adapter,
        checkpoint_dir,
        data_dir,
        out_dir or default_out_dir("adapter", checkpoint_dir),
        train,
        validation,
        plan,
        precision=precision,
        prompt_style=prompt_style,
        quantize=quantize,
        overwrite=overwrite,
        seed=seed,
        resume=resume,
        allow_changes=allow_changes,
    )


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
