"""Evaluate a pretrained model, or a run of any method, on HELM's scenarios of the challenge, without HELM.

python eval/mini_helm.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --finetuned_path out/lora/mine \
    --baselines out/mini_helm/open_llama_7b/results.json

Prompts and scores are HELM's own. The table goes to stdout; all files are in out/mini_helm/.
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
    baselines: tuple[Path, ...] = (),
) -> None:
    """Evaluates a model.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        finetuned_path: a run's folder, or the weights in it; the pretrained model if not given.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantize the weights of the blocks to 4 or 8 bits, or not (none); if not given, a run is quantized as
            in its training, and a pretrained model is not.
        baselines: results.json of other models, by this script or eval/helm.py, for HELM's mean win rate.
    """
    from lit_gpt.args.folders import require_checkpoint, run_folder
    from lit_gpt.checkpoints.base import load_pretrained
    from lit_gpt.checkpoints.runs import load_finetuned
    from lit_gpt.evaluation.helm.results import compared, load_rows, save_rows, table
    from lit_gpt.evaluation.helm.run import ask, load_tasks, save_asked
    from lit_gpt.fabric import make_fabric
    from lit_gpt.tokenizer import Tokenizer

    require_checkpoint(checkpoint_dir, takes_runs=True)
    others = {str(path): load_rows(path) for path in baselines}
    tasks = load_tasks(helm)
    fabric = make_fabric(precision)
    of = checkpoint_dir if finetuned_path is None else run_folder(finetuned_path)
    if finetuned_path is None:
        model = load_pretrained(fabric, checkpoint_dir, None if quantize == "none" else quantize)
    else:
        model, _ = load_finetuned(fabric, checkpoint_dir, of, quantize)
    rows, asked = ask(fabric, model, Tokenizer(checkpoint_dir), tasks, batch_size=helm.batch_size)
    out_dir = helm.out_dir or Path("out", "mini_helm", of.absolute().name)
    out_dir.mkdir(parents=True, exist_ok=True)
    save_asked(out_dir / "asked.jsonl", asked)
    about = {"of": of, "by": "mini_helm", "max_eval_instances": helm.max_eval_instances}
    save_rows(out_dir / "results.json", about, rows)
    print("\n".join([table(rows), *compared(rows, others)]))


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
