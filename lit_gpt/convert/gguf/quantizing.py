"""Quantizes gguf files with llama.cpp's own program, llama-quantize."""

import shutil
import subprocess
from pathlib import Path

from lit_gpt.errors import UserError

PROGRAM = "llama-quantize"
TYPES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_K_S", "Q5_K_M", "Q6_K")
TYPES += ("IQ4_NL", "IQ4_XS")
"""Types that the program can write, under its names, which Ollama and model pages also use."""
_SHOWN = 200
"""Number of characters of the program's error message that are shown."""


def find_quantizer(kind: str) -> str:
    """Returns the path of llama-quantize; raises UserError if it is not installed."""
    if found := shutil.which(PROGRAM):
        return found
    raise UserError(
        f"--gguf_type {kind} needs llama.cpp's {PROGRAM}, which is not on the PATH: `brew install llama.cpp`, "
        "`conda install -c conda-forge llama.cpp` or a release from https://github.com/ggml-org/llama.cpp/releases has "
        f"it. Or write F16, and let Ollama do it: `ollama create NAME --quantize {kind.lower()}`"
    )


def quantize(program: str, whole: Path, path: Path, kind: str) -> None:
    """Quantizes the gguf file `whole` to `path`, and deletes `whole`.

    Args:
        program: path of llama-quantize.
        whole: a file in a type that is not quantized.
        kind: one of TYPES.

    Raises:
        UserError: the program failed; the message has its last line.
    """
    done = subprocess.run([program, str(whole), str(path), kind], capture_output=True, text=True, errors="replace")
    if done.returncode or not path.is_file():
        message = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        last = message[-1][:_SHOWN] if message else f"exit code {done.returncode}"
        raise UserError(f"{program} could not write {kind} ({last}); write F16 or Q8_0 instead, which need no program")
    whole.unlink()
