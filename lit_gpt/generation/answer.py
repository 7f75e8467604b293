"""What the generate scripts share: loading, streaming a completion to stdout, figures on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric import Fabric

from lit_gpt.args import SamplingArgs
from lit_gpt.generation.conversation import Asked
from lit_gpt.generation.lockstep import generate
from lit_gpt.model import GPT
from lit_gpt.resources import peak_memory_gb
from lit_gpt.tokenizer import StreamDecoder, Tokenizer


def say(text: str) -> None:
    """Prints a line to stderr: stdout carries generated text only."""
    print(text, file=sys.stderr)


@contextmanager
def loading(checkpoint_dir: Path) -> Iterator[None]:
    """Says what is loaded, and afterwards how long it took."""
    say(f"Loading model {str(checkpoint_dir)!r}")
    start = time.perf_counter()
    yield
    say(f"Time to load the model weights: {time.perf_counter() - start:.02f} seconds.")


def print_completion(
    fabric: Fabric,
    model: GPT,
    tokenizer: Tokenizer,
    asked: Asked,
    args: SamplingArgs,
    echo: bool,
    compile: bool | None = None,
) -> None:
    """Streams the completion of a prompt to stdout.

    Args:
        asked: the prompt; an empty one starts from the begin-of-sequence token.
        echo: write the prompt first.
        compile: as for `generate_batch`.
    """
    ids = asked.ids
    if not ids:
        ids = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]
    model.eval()
    decoder = StreamDecoder(tokenizer, ids)
    _write(asked.text if echo else "")
    n_tokens, blank, start = 0, not echo, time.perf_counter()
    with fabric.autocast():
        tokens = generate(
            model,
            ids,
            args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            stop_ids=asked.stop_ids,
            compile=compile,
        )
        for token in tokens:
            n_tokens += 1
            text = decoder.push(token)
            text = text.lstrip() if blank else text  # whitespace before the first word is dropped
            blank = blank and not text
            _write(text)
    _write(decoder.pending() + "\n")
    seconds = time.perf_counter() - start
    say(f"Time for inference: {seconds:.02f} sec total, {n_tokens / seconds:.02f} tokens/sec")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def say_memory() -> None:
    """Prints the peak memory, the last line of a generate script."""
    say(f"Memory used: {peak_memory_gb():.02f} GB")
