"""Runs random damaged files through the scripts, and kills random runs: what is neither read nor refused is a fault.

python benchmarks/robustness.py --folder /tmp/robustness [--sections config,index] [--seconds 60] [--seed 0]

Makes tiny valid checkpoints, data sets and runs with random weights, and per section damages them at random and gives
them to the script that reads them, a forked process a case, until the seconds are over. A case ends well if it is
read, or refused in one line. Anything else is a fault: another exception, a crash, more than 10 s, more memory than
twice the file and 0.5 GB, a message of more than a line or of 1,000 characters, something written outside, a temporary
file left; and for a run that was killed, other results than those of the run that was not. `--case config:17` runs
that one again, with its seed, and shows all it says. `--sum F1/robustness.json F2/robustness.json` adds up what earlier
calls found, with other seeds. Exits with 1 if there is a fault. Needs the packages of the
tests, and Linux. Nothing is downloaded.
"""

import argparse
import gc
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]  # for damage.py and conftest.py, which the tests need more than we do

import torch  # noqa: E402
from robustness_parts import campaign  # noqa: E402
from robustness_parts.material import Material, import_all  # noqa: E402
from robustness_parts.sections import sections_of  # noqa: E402


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, help="for material, cases and robustness.json")
    arguments.add_argument("--sum", type=Path, nargs="+", help="the robustness.json of earlier calls; runs nothing")
    arguments.add_argument("--sections", help="names with commas between them; all if not given")
    arguments.add_argument("--seconds", type=float, default=60.0, help="of each section")
    arguments.add_argument("--cases", type=int, help="run this many cases of each section, whatever they take")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--patience", type=float, default=1.0, help="times 10 s that a case may take; more if busy")
    arguments.add_argument("--case", help="SECTION:NUMBER, run this one only and show what comes of it")
    args = arguments.parse_args()
    if args.sum:
        return _shown(campaign.summed([counts for path in args.sum for counts in json.loads(path.read_text())]))
    if not args.folder:
        arguments.error("--folder is missing")
    torch.set_num_threads(1)  # a thread does not survive a fork
    folder = args.folder.resolve()
    sections = {section.name: section for section in sections_of(Material(folder / "material"))}
    wanted = args.sections.split(",") if args.sections else list(sections)
    if args.case:
        wanted = [args.case.partition(":")[0]]
    if unknown := [name for name in wanted if name not in sections]:
        arguments.error(f"no section {unknown[0]}; there are {', '.join(sections)}")
    import_all()
    gc.freeze()
    if args.case:
        return _one(sections[wanted[0]], folder, args.seed, int(args.case.partition(":")[2]))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "tokenizers", "safetensors", "gguf"))
    print(f"Python {platform.python_version()}, {packages}; seed {args.seed}, {args.seconds:g} s a section", flush=True)
    found = []
    for name in wanted:
        sections[name].prepare()
        limits = campaign.Limits(args.seconds, args.cases, args.patience)
        found.append(campaign.run(sections[name], folder, args.seed, limits))
        print(f"{name}: {found[-1].n:,} cases, {found[-1].n_faults:,} faults", flush=True)
        (folder / "robustness.json").write_text(json.dumps(campaign.as_json(found), indent=1) + "\n")
    return _shown(found)


def _shown(found: list[campaign.Counts]) -> int:
    """Prints the table and the faults; returns the program's exit status."""
    print(*campaign.lines_of(found), sep="\n")
    return int(any(counts.n_faults for counts in found))


def _one(section: campaign.Section, folder: Path, seed: int, number: int) -> int:
    """Runs one case and prints its outcome; its files stay in work/SECTION/box/case."""
    section.prepare()
    outcome = campaign.run_case(section, folder, seed, number)
    print(f"{section.name}:{number}: {outcome.kind} after {outcome.seconds:.2f} s and {outcome.n_bytes / 1e6:.0f} MB")
    print(outcome.text)
    print(f"its files: {folder / 'work' / section.name / 'box' / 'case'}")
    return int(outcome.is_fault)


if __name__ == "__main__":
    sys.exit(main())
