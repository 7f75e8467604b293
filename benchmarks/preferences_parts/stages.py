"""Scripts of ours as a user starts them, each with what it took; what a folder holds already is not run again."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from train_parts.material import ROOT


@dataclass(frozen=True)
class Took:
    """What a command took."""

    processor_seconds: float
    said: str

    def __add__(self, other: "Took") -> "Took":
        return Took(self.processor_seconds + other.processor_seconds, other.said)


def command(folder: Path, script: str, **flags: object) -> Took:
    """Run a script whose results are in `folder`, unless it was done with these flags; end the program if it fails."""
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    path, key = folder.with_name(folder.name + ".took.json"), [script, *words]
    if path.is_file() and (kept := json.loads(path.read_text()))["key"] == key:
        return Took(**kept["took"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    print(f"$ python {script} {' '.join(words)}", file=sys.stderr, flush=True)
    before = _processor_seconds()
    done = subprocess.run([sys.executable, str(ROOT / script), *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"error: {script} failed\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    took = Took(_processor_seconds() - before, done.stdout)
    path.write_text(json.dumps({"key": key, "took": asdict(took)}), encoding="utf-8")
    return took


def _processor_seconds() -> float:
    """Seconds of the processor that ended children took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
