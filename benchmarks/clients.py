"""Compares what real clients of the server get with what the model says in process, and with llama.cpp's server.

python benchmarks/clients.py --checkpoint_dir CK --data DIR --folder /tmp/clients [--parts http,llama.cpp]

`http`: lm-eval's `local-completions` asks our server for TruthfulQA (mc1 and mc2), for a task with five solved examples
whose answers are scored, and for GSM8K's texts with five solved examples; `local-chat-completions` for the last one as
a conversation. The same tasks are answered in this process, as eval/lm_eval_harness.py does, all in fp32. `llama.cpp`:
log-probabilities of TruthfulQA's answers by our server and by llama.cpp's, which read the weights of one gguf file, in
fp32, in 16 bits, and in 8. DIR has `truthfulqa_mc.jsonl`, `gsm8k_train.jsonl` and `gsm8k_test.jsonl`, with rows as the
hub's. Exits with 1 if a log-likelihood over HTTP is more than 1e-4 off, or a greedy flag or a text differs. Needs the
packages of the tests. Nothing is downloaded.
"""

import argparse
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[1:1] = [str(ROOT)]

from clients_parts import beside_llama_cpp, over_http  # noqa: E402
from clients_parts.server import serving  # noqa: E402

_PARTS = ("http", "llama.cpp")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--checkpoint_dir", type=Path, required=True)
    arguments.add_argument("--data", type=Path, required=True, help="folder with the questions")
    arguments.add_argument("--folder", type=Path, required=True, help="for gguf files and checkpoints of them")
    arguments.add_argument("--parts", default=",".join(_PARTS), help="with commas between them")
    arguments.add_argument("--questions", type=int, help="most of each of TruthfulQA's tasks; all if not given")
    arguments.add_argument("--numbers", type=int, default=100, help="questions with solved examples that are scored")
    arguments.add_argument("--texts", type=int, default=8, help="questions that are answered with a text")
    arguments.add_argument("--beside", type=int, default=20, help="questions for llama.cpp")
    arguments.add_argument("--types", default=",".join(beside_llama_cpp.KINDS), help="gguf files for llama.cpp")
    args = arguments.parse_args()
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in _PARTS]:
        arguments.error(f"no part {unknown[0]}; there are {', '.join(_PARTS)}")
    kinds = args.types.split(",")
    if unknown := [kind for kind in kinds if kind not in beside_llama_cpp.KINDS]:
        arguments.error(f"no type {unknown[0]}; there are {', '.join(beside_llama_cpp.KINDS)}")
    folder, checkpoint_dir, data = (path.resolve() for path in (args.folder, args.checkpoint_dir, args.data))
    folder.mkdir(parents=True, exist_ok=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lm_eval", "xllamacpp"))
    print(f"Python {platform.python_version()}, {packages}; {os.cpu_count()} cores; {checkpoint_dir.name}", flush=True)
    is_right = True
    if "http" in parts:
        limits = {"gsm8k_numbers": args.numbers, "gsm8k": args.texts}
        if args.questions is not None:
            limits |= dict.fromkeys(("truthfulqa_mc1", "truthfulqa_mc2"), args.questions)
        with serving(checkpoint_dir, "--precision", "32-true") as (url, _):
            for line, holds in over_http.rows(url, checkpoint_dir, data=data, folder=folder, limits=limits):
                print(f"{line}{'' if holds else '  <- more than it may be'}", flush=True)
                is_right &= holds
    if "llama.cpp" in parts:
        for line in beside_llama_cpp.rows(checkpoint_dir, data, folder, args.beside, kinds):
            print(line, flush=True)
    return int(not is_right)


if __name__ == "__main__":
    sys.exit(main())
