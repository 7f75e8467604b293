"""Evaluate a pretrained model, or a run of any finetuning method, by HELM itself, over our server.

python eval/helm.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --finetuned_path out/lora/mine

`make helm` installs HELM. The table goes to stdout; all files are in out/helm/. docs/helm.md has the data.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import HelmArgs, Precision, Quantization


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    finetuned_path: Path | None = None,
    precision: Precision | None = None,
    quantize: Quantization | Literal["none"] | None = None,
    helm: HelmArgs = HelmArgs(),
) -> None:
    """Evaluates a model by HELM.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        finetuned_path: a run's folder, or the weights in it; the pretrained model if not given.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantize the weights of the blocks to 4 or 8 bits, or not (none); if not given, a run is quantized as
            in its training, and a pretrained model is not.
    """
    from lit_gpt.args.folders import require_checkpoint, require_run, run_folder
    from lit_gpt.errors import UserError
    from lit_gpt.evaluation.helm.client import run_helm
    from lit_gpt.evaluation.helm.results import save_rows, table

    require_checkpoint(checkpoint_dir, takes_runs=True)
    flags: list[str | Path] = ["--checkpoint_dir", checkpoint_dir.absolute()]
    if finetuned_path is not None:
        require_run(finetuned_path)
        flags += ["--finetuned_path", finetuned_path.absolute()]
    for name, value in (("precision", precision), ("quantize", quantize)):
        flags += [f"--{name}", value] if value else []
    of = checkpoint_dir if finetuned_path is None else run_folder(finetuned_path)
    out_dir = helm.out_dir or Path("out", "helm", of.absolute().name)
    rows, failed = run_helm(flags, helm, out_dir)
    save_rows(out_dir / "results.json", {"of": of, "by": "HELM", "max_eval_instances": helm.max_eval_instances}, rows)
    print(table(rows))
    if failed:
        raise UserError(
            f"{len(failed)} of HELM's runs failed: {', '.join(failed)}; {out_dir / 'helm-run.log'} says why"
        )


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
