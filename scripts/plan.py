"""Say how much memory and time a finetuning run will take, before it starts.

python scripts/plan.py --method lora --checkpoint_dir checkpoints/openlm-research/open_llama_7b --data_dir data/alpaca

Takes the flags of finetune/<method>.py, which it runs with --dry_run true; the weights may be absent. With
--device a100-40gb it plans for another machine, and with --fit true --max_time 24:00:00 it chooses what fits.
"""

import runpy
import sys
from pathlib import Path

METHODS = ("lora", "adapter", "adapter_v2", "full")


def method_of(argv: list[str]) -> tuple[str, list[str]]:
    """Returns the value of --method, `lora` by default, and all other arguments.

    Raises:
        SystemExit: there is no such method.
    """
    method, rest = "lora", list(argv)
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == "--method":
            rest = argv[:i] + argv[i + (1 if equals else 2) :]
            method = value if equals else " ".join(argv[i + 1 : i + 2])
    if method not in METHODS:
        print(f"error: --method {method!r} is none of {', '.join(METHODS)}", file=sys.stderr)
        sys.exit(2)
    return method, rest


if __name__ == "__main__":
    method, rest = method_of(sys.argv[1:])
    script = Path(__file__).resolve().parent.parent / "finetune" / f"{method}.py"
    sys.argv = [str(script), *rest, "--dry_run", "true"]
    runpy.run_path(str(script), run_name="__main__")
