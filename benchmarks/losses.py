"""Loss curves of LoRA on frozen weights in 16 or 32, 8 and 4 bits: same model, same rows, same seed, our own script.

python benchmarks/losses.py --folder /tmp/train [--kinds none,int8,fp8,bnb.nf4] [--steps 25] [--picture losses.png]

SmolLM2-135M-Instruct and the rows of `make demo`, all linear layers, 8 samples a step. On a CPU fp8 is computed by
rounding to it, and the rest of the step in fp32.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from train_parts.material import ROOT, Material, script

SETTINGS = {
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "lora_r": 8,
    **{f"lora_{target}": "true" for target in ("key", "projection", "mlp")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the model is kept, 1 GB; used again")
    parser.add_argument("--kinds", default="none,int8,fp8,bnb.nf4", help="values of --quantize; none is without")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    args = parser.parse_args()
    data = ROOT / "demo/train.json"
    material = Material(args.folder)
    material.make(data, 1, 512)
    prepared = args.folder / "losses_data"
    script("prepare_alpaca", checkpoint_dir=material.ours, data_file=data, destination_path=prepared, overwrite=True)
    curves = {kind: curve(kind, material.ours, prepared, args) for kind in args.kinds.split(",")}
    tell(curves)
    if args.picture:
        draw(curves, args.picture)


def curve(kind: str, checkpoint: Path, data: Path, args: argparse.Namespace) -> list[float]:
    """The mean loss of each step, and last that of the validation set afterwards."""
    out = args.folder / "losses" / kind
    flags = SETTINGS | {"checkpoint_dir": checkpoint, "data_dir": data, "out_dir": out, "max_steps": args.steps}
    flags |= {"overwrite": "true"} | ({} if kind == "none" else {"quantize": kind})
    words = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    subprocess.run([sys.executable, ROOT / "finetune/lora.py", *words], check=True, stdout=subprocess.DEVNULL)
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps: dict[int, list[tuple[float, int]]] = {}
    for row in rows:
        if row["loss"]:
            steps.setdefault(int(row["step"]), []).append((float(row["loss"]), int(row["n_targets"])))
    means = [sum(loss * n for loss, n in parts) / sum(n for _, n in parts) for _, parts in sorted(steps.items())]
    return [*means, [float(row["val_loss"]) for row in rows if row["val_loss"]][-1]]


def tell(curves: dict[str, list[float]]) -> None:
    """Print every fifth step, and the validation."""
    print("step        " + "".join(f"{kind:>10}" for kind in curves))
    n = len(next(iter(curves.values()))) - 1
    for step in sorted({1, *range(5, n + 1, 5), n}):
        print(f"{step:<12}" + "".join(f"{curve[step - 1]:10.4f}" for curve in curves.values()))
    print("validation  " + "".join(f"{curve[-1]:10.4f}" for curve in curves.values()))


def draw(curves: dict[str, list[float]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for kind, curve in curves.items():
        axes.plot(range(1, len(curve)), curve[:-1], label=kind, linewidth=1.2)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per target token (nats)")
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
