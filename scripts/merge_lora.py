"""Merge a run of finetune/lora.py into a checkpoint that needs no LoRA, or write one of finetune/full.py as such.

python scripts/merge_lora.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Adds in fp32, one tensor at a time, and says by how much the logits of the merged model differ from the trained one's.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import Precision


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    finetuned_path: Path | None = None,
    out_dir: Path | None = None,
    base: Literal["16bit", "trained"] = "16bit",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    precision: Precision | None = None,
    overwrite: bool = False,
    devices: int | None = None,
) -> None:
    """Merges a LoRA run into its base model, or writes the weights of a full run in the base's place.

    Args:
        checkpoint_dir: folder of the checkpoint that was finetuned.
        finetuned_path: the run's folder, or the weights in it; out/lora/<name of the checkpoint> if not given.
        out_dir: the folder to write; out/merged/<name of the checkpoint> if not given.
        base: weights that the updates are added to: the checkpoint's own (16bit), or those that the training saw
            (trained), which were rounded to its precision and, with --quantize, to 4 or 8 bits. The latter reproduces
            the trained model's answers most closely.
        dtype: dtype of the weights; that of the checkpoint if not given, which may round a run in fp32.
        precision: precision in which both models are compared; the training's if not given.
        overwrite: replace out_dir if it is not empty.
        devices: GPUs, or processes on a CPU, that share the texts of the comparison; 1, or as many as torchrun
            started, if not given.
    """
    import torch

    from lit_gpt.args.cluster import ClusterArgs
    from lit_gpt.args.folders import default_out_dir, run_folder
    from lit_gpt.checkpoints.runs import read_run
    from lit_gpt.fabric import make_fabric
    from lit_gpt.merge.compare import compare, texts_to_compare
    from lit_gpt.merge.write import write_merged
    from lit_gpt.parallel.watch import together

    run_dir = finetuned_path or default_out_dir("lora", checkpoint_dir)
    run_dir = run_folder(run_dir)
    out_dir = out_dir or default_out_dir("merged", checkpoint_dir)
    run = read_run(run_dir)
    to = getattr(torch, dtype) if dtype else None
    fabric = make_fabric(precision or run.training.get("precision"), cluster=ClusterArgs(devices))
    with together(fabric) as team:
        how = {"base": base, "dtype": to, "overwrite": overwrite}
        notes = team.first(lambda: write_merged(checkpoint_dir, run_dir, run=run, out_dir=out_dir, **how))
        print(f"Saved the merged checkpoint to {out_dir}", *notes, sep="\n")
        texts, what = texts_to_compare(run, checkpoint_dir)
        difference = compare(fabric, checkpoint_dir, run_dir, out_dir=out_dir, texts=texts, team=team)
    print(f"Merged against trained, on {what} ({difference.n_tokens} tokens):")
    print(f"Largest difference of a logit: {difference.largest:.3g}")
    print(f"KL divergence: {difference.kl:.3g} nats a token")
    print(f"Same most likely token: {difference.agreement:.2%}")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main, method="lora")
