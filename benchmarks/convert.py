"""Peak memory and seconds of converting TinyLlama's shape (2.2 GB of random bf16 in shards of 400 MB), each format.

python benchmarks/convert.py --folder /tmp/convert

Runs our two scripts, litgpt's converter where litgpt is installed (`pip install --no-deps litgpt==0.5.13`), and
copying the files twice, each in a process of its own; prints peak resident memory as the kernel counted it, pages of
mapped files included. What our writer spends on comparing the logits, once the result is there, stands apart.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lit_gpt.convert.configs import config_to_hf
from lit_gpt.convert.names import lit_shapes, stream_to_hf, to_hf
from lit_gpt.families import config_for
from lit_gpt.files import save_safetensors_shards, spec_of

COPIES = "copying the files twice"
ROOT = Path(__file__).parent.parent
MODEL = "tiny-llama-1.1b"
LITGPT = """
import sys
from pathlib import Path
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
convert_hf_checkpoint(Path(sys.argv[1]))
"""
WRITTEN = {
    "to Hugging Face": ["--max_shard_gb", "0.4"],
    "to litgpt": ["--format", "lit"],
    "to gguf, BF16": ["--format", "gguf", "--gguf_type", "BF16"],
    "to gguf, Q8_0": ["--format", "gguf", "--gguf_type", "Q8_0"],
}
"""What is written, and the options for it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where to work; 10 GB, emptied afterwards")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is measured")
    folder, rounds = parser.parse_args().folder, parser.parse_args().rounds
    source = folder / MODEL
    n_bytes = make_checkpoint(source)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{n_bytes / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} shards\n")
    print(f"{'':34}{'seconds':>9}{'compared':>9}{'peak GB':>9}")

    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, seconds in one_round(source, folder):
            found.setdefault(name, []).append(seconds)
    shutil.rmtree(folder)
    copies = statistics.median(found[COPIES])
    print(f"\nmedian seconds of {rounds} rounds, and relative to {COPIES}")
    for name, seconds in found.items():
        print(f"{name:34}{statistics.median(seconds):9.1f}{statistics.median(seconds) / copies:9.2f}")


def one_round(source: Path, folder: Path) -> Iterator[tuple[str, float]]:
    """Every conversion once, with its seconds, between two copies."""
    yield copy_twice(source, folder)
    script_from = [sys.executable, ROOT / "scripts/convert_hf_checkpoint.py"]
    yield measure("ours, from Hugging Face", [*script_from, "--checkpoint_dir", source])
    script = [sys.executable, ROOT / "scripts/convert_lit_checkpoint.py", "--checkpoint_dir", source]
    back = folder / "back"
    for name, options in WRITTEN.items():
        shutil.rmtree(back, ignore_errors=True)
        yield measure(f"ours, {name}", [*script, "--output_dir", back, *options], made=back)
    (back / "tokenizer.json").unlink(missing_ok=True)
    yield measure("ours, from the last gguf", [*script_from, "--checkpoint_dir", back, "--dtype", "bfloat16"])
    yield copy_twice(source, folder)
    shutil.rmtree(back)
    (source / "lit_model.pth").unlink()
    try:
        yield measure(f"litgpt {version('litgpt')}, from Hugging Face", [sys.executable, "-c", LITGPT, source])
    except PackageNotFoundError:
        print("litgpt is not installed")
    for made in ("lit_model.pth", "lit_config.json", "model_config.yaml"):
        (source / made).unlink(missing_ok=True)


def copy_twice(source: Path, folder: Path) -> tuple[str, float]:
    """The time that a conversion may take."""
    copies = f"cat {source}/*.safetensors > {folder}/1 && cat {source}/*.safetensors > {folder}/2 && sync"
    measured = measure(COPIES, ["sh", "-c", copies])
    for path in (folder / "1", folder / "2"):
        path.unlink()
    return measured


def make_checkpoint(folder: Path) -> int:
    """Random weights as a download would leave them; returns their bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    config = config_for(MODEL)
    meta = {n: torch.empty(s, dtype=torch.bfloat16, device="meta") for n, s in lit_shapes(config).items()}
    specs = {name: spec_of(x) for name, x in to_hf(config, meta).items()}
    weights = stream_to_hf(config, meta, lambda name: torch.randn(meta[name].shape).mul_(0.02).bfloat16())
    save_safetensors_shards(specs, weights, folder, 400_000_000)
    import json

    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = [*alphabet, *(f"t{i}" for i in range(31998 - len(alphabet))), "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}')
    return sum(spec.n_bytes for spec in specs.values())


def measure(name: str, command: list[object], made: Path | None = None) -> tuple[str, float]:
    """Run a command, and print how long it took and the most memory that it held; returns name and seconds.

    Args:
        made: what it writes, and then reads back to compare it: the seconds after it is there stand apart.
    """
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak, there = 0, 0.0
    while process.poll() is None:
        peak = max(peak, high_water_mark(process.pid))
        if made is not None and not there and made.exists():
            there = time.perf_counter()
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{name} failed")
    end = time.perf_counter()
    compared = f"{end - there:9.1f}" if there else " " * 9
    print(f"{name:34}{(there or end) - start:9.1f}{compared}{peak / 1e9:9.2f}", flush=True)
    return name, (there or end) - start


def high_water_mark(pid: int) -> int:
    """Most bytes that a running process has held so far; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0][1]) * 1024 if lines else 0


if __name__ == "__main__":
    main()
