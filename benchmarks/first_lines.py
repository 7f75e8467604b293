"""Seconds from a command to the first line that it prints, for the scripts of this tree.

python benchmarks/first_lines.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct

Each command is a process of its own, on the data of the demo and on a LoRA run of one step, which are made first, in a
temporary folder. The line is the first one on stdout or stderr; scripts/serve.py prints its address once it answers. A
command that goes on after that is ended. What downloads is left out, and so are HELM's own programs.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BASE, DATA, RUN = "--checkpoint_dir CHECKPOINT", "--data_dir TMP/data", "--finetuned_path TMP/run"
ASK = "--prompt Hello --max_new_tokens 2"
TASK = "'{demo_orders: DEMO/held_out.json}'"
MADE = {
    "scripts/prepare_alpaca.py": f"{BASE} --data_file DEMO/train.json --destination_path TMP/data",
    "finetune/lora.py": f"{BASE} {DATA} --out_dir TMP/run --max_iters 1 --batch_size 1 --eval_interval 100",
}
"""Commands that make what the others need, and run to their end."""
OTHERS = {
    "finetune/adapter.py": f"{BASE} {DATA} --out_dir TMP/adapter",
    "finetune/adapter_v2.py": f"{BASE} {DATA} --out_dir TMP/adapter_v2",
    "finetune/full.py": f"{BASE} {DATA} --out_dir TMP/full",
    "generate/base.py": f"{BASE} {ASK}",
    "generate/lora.py": f"{BASE} {RUN} {ASK}",
    "generate/chat.py": BASE,
    "eval/validate.py": f"{BASE} {DATA}",
    "eval/lm_eval_harness.py": f"{BASE} --task_path DEMO/held_out.yaml --eval_tasks '[demo_orders]' --limit 1 "
    f"--task_data {TASK} --save_filepath TMP/scores.json",
    "scripts/check_data.py": DATA,
    "scripts/check_contamination.py": f"{DATA} --task_data {TASK}",
    "scripts/merge_lora.py": f"{BASE} {RUN} --out_dir TMP/merged",
    "scripts/plan.py": f"{BASE} {DATA}",
    "scripts/prepare_csv.py": f"{BASE} --csv_path TMP/rows.csv --destination_path TMP/csv",
    "scripts/prepare_json.py": f"{BASE} --json_path DEMO/train.json --destination_path TMP/json",
    "scripts/prepare_mix.py": f"{BASE} --sources '{{a: TMP/data, b: DEMO/held_out.json}}' --destination_path TMP/mix",
    "scripts/sample_answers.py": f"{BASE} --json_path DEMO/held_out.json --destination_path TMP/sampled",
    "scripts/serve.py": f"{BASE} --port 0",
    "scripts/convert_lit_checkpoint.py": f"{BASE} --output_dir TMP/hf",
    "scripts/write_report.py": RUN,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--only", default="", help="names with this in them, besides those that make the data")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rows.csv").write_text("instruction,input,output\n" + "Say one.,,one\nSay two.,,two\n" * 20)
        places = {"CHECKPOINT": args.checkpoint_dir.resolve(), "DEMO": ROOT / "demo", "TMP": Path(folder)}
        for script, words in (MADE | {name: w for name, w in OTHERS.items() if args.only in name}).items():
            for name, place in places.items():
                words = words.replace(name, str(place))
            seconds, line = first_line(script, shlex.split(words), ends=script in MADE)
            print(f"{seconds:6.2f} s  {script:34}{line[:70]}", flush=True)


def first_line(script: str, words: list[str], ends: bool) -> tuple[float, str]:
    """Seconds until a script has printed a line, and that line.

    Args:
        words: its command line.
        ends: wait for its end; it is killed otherwise.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert process.stdout
    line = process.stdout.readline() if script != "scripts/serve.py" else ""
    while script == "scripts/serve.py" and "http" not in line and (line := process.stdout.readline()):
        pass
    seconds = time.perf_counter() - started
    if ends:
        process.stdout.read()
    else:
        process.kill()
    process.wait()
    if line.startswith("error: "):
        raise SystemExit(f"{script} {shlex.join(words)}: {line.strip()}")
    return seconds, line.strip()


if __name__ == "__main__":
    main()
