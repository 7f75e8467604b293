"""Rows a second and peak memory of preparing data, beside Lit-GPT's way and datasets', on the same rows and tokenizer.

python benchmarks/prepare.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct --folder /tmp/prepare

Lit-GPT's way (original): all rows in memory; for each, one by one, the prompt is tokenized and then prompt and response
together, both become tensors, and the list of all samples is pickled. The way of datasets: its `map` in batches, with
the fast tokenizer of transformers; both have to be installed. Each way runs in a process of its own, in turns.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--checkpoint_dir", type=Path, required=True, help="a checkpoint with a tokenizer")
    arguments.add_argument("--folder", type=Path, required=True, help="for the rows and what is made of them")
    arguments.add_argument("--data_file", type=Path, default=ROOT / "demo/train.json", help="rows to repeat")
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--ways", default="ours,original,datasets", help="separated by commas, ours first")
    arguments.add_argument("--way", choices=WAYS, help="run this one only, in this process")
    args = arguments.parse_args()
    if args.way:
        measure(args)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    write_rows(args)
    print(
        f"{args.rows:,} rows of {args.data_file.name}, tokenizer of {args.checkpoint_dir.name}, {os.cpu_count()} cores"
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "sentencepiece", "torch", "numpy"))
    print(f"Python {platform.python_version()}, {packages}; {os.cpu_count()} cores")
    ways = [way for way in args.ways.split(",") if way != "datasets" or find_spec("datasets")]
    ratios: dict[str, list[float]] = {way: [] for way in ways[1:]}
    for n in range(1, args.rounds + 1):
        found = {way: run(args, way) for way in ways}
        for way in ways[1:]:
            ratios[way].append(found["ours"]["rows_per_sec"] / found[way]["rows_per_sec"])
        for way, result in found.items():
            print(
                f"round {n}: {way:8} {result['rows_per_sec']:8,.0f} rows/s, peak memory {result['peak_gb']:.2f} GB, "
                f"{result['tokens']:,} tokens",
                flush=True,
            )
    for way, found_ratios in ratios.items():
        print(
            f"rows a second, ours / {way}: {statistics.median(found_ratios):.2f} in the median of {args.rounds} rounds"
        )


def write_rows(args: argparse.Namespace) -> None:
    """The rows of the data file over and over, each with a number, in Alpaca's schema."""
    sys.path.insert(0, str(ROOT))
    from lit_gpt.data.prepare.sources import read_rows

    rows = list(read_rows(args.data_file))
    with open(args.folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for i in range(args.rows):
            row = rows[i % len(rows)]
            entry = {"instruction": row.instruction, "input": row.context, "output": f"{row.response} {i}"}
            file.write(json.dumps(entry) + "\n")
    (args.folder / "val.jsonl").write_text(json.dumps(entry) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, way: str) -> dict[str, float]:
    """What `measure` printed in a process of its own."""
    command = [sys.executable, __file__, "--checkpoint_dir", args.checkpoint_dir, "--folder", args.folder, "--way", way]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"error: {way} failed\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> None:
    """Prepare the rows in one way and print its figures."""
    if args.way != "ours":
        import torch  # noqa: F401  the other ways need it; no way counts its imports

    from lit_gpt.data.prepare import run as prepare  # noqa: F401

    start = time.perf_counter()
    tokens, n_rows = WAYS[args.way](args)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "linux" else 1e9)
    print(json.dumps({"rows_per_sec": n_rows / seconds, "peak_gb": peak, "tokens": tokens}))


def ours(args: argparse.Namespace) -> tuple[int, int]:
    """(tokens, rows) of what a prepare script leaves."""
    from lit_gpt.args import PrepareArgs
    from lit_gpt.data import store
    from lit_gpt.data.prepare.run import Files, prepare
    from lit_gpt.data.prepare.schemas import alpaca

    out = args.folder / "ours"
    train, val = (Files((args.folder / f"{name}.jsonl",), alpaca) for name in ("rows", "val"))
    prepare(train, val, out, args.checkpoint_dir, PrepareArgs(check=False, overwrite=True))
    samples, _, _ = store.load(out)
    return len(samples.ids), len(samples)


def original(args: argparse.Namespace) -> tuple[int, int]:
    """(tokens, rows) of Lit-GPT's way; the block size is not applied, so that no row is cut."""
    import torch

    from lit_gpt.prompts import make_prompt
    from lit_gpt.tokenizer import Tokenizer

    tokenizer = Tokenizer(args.checkpoint_dir)
    with open(args.folder / "rows.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    samples = []
    for row in rows:
        prompt = make_prompt("alpaca", row["instruction"], row["input"])
        asked = torch.tensor(tokenizer.encode(prompt), dtype=torch.int)
        ids = torch.tensor(tokenizer.encode(prompt + row["output"], eos=True), dtype=torch.int)
        labels = ids.clone()
        labels[: len(asked)] = -100
        samples.append({**row, "input_ids": ids, "labels": labels})
    torch.save(samples, args.folder / "original.pt")
    return sum(len(s["input_ids"]) for s in samples), len(samples)


def by_datasets(args: argparse.Namespace) -> tuple[int, int]:
    """(tokens, rows) of `datasets.map` in batches, with transformers' fast tokenizer."""
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    from lit_gpt.prompts import make_prompt
    from lit_gpt.tokenizer import Tokenizer

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.checkpoint_dir / "tokenizer.json"))
    eos = Tokenizer(args.checkpoint_dir).eos_id

    def encoded(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        pairs = zip(batch["instruction"], batch["input"], strict=True)
        prompts = [make_prompt("alpaca", instruction, context) for instruction, context in pairs]
        texts = [prompt + answer for prompt, answer in zip(prompts, batch["output"], strict=True)]
        asked, whole = (tokenizer(part)["input_ids"] for part in (prompts, texts))
        ids = [[*row, eos] for row in whole]
        labels = [[-100] * len(a) + row[len(a) :] for a, row in zip(asked, ids, strict=True)]
        return {"input_ids": ids, "labels": labels}

    path, cache = str(args.folder / "rows.jsonl"), str(args.folder / "cache")
    rows: Any = load_dataset("json", data_files=path, split="train", cache_dir=cache, download_mode="force_redownload")
    found = rows.map(encoded, batched=True, remove_columns=rows.column_names, load_from_cache_file=False)
    n_tokens = sum(len(ids) for batch in found.iter(batch_size=1000) for ids in batch["input_ids"])
    return n_tokens, len(found)


WAYS = {"ours": ours, "original": original, "datasets": by_datasets}

if __name__ == "__main__":
    main()
