"""What the generate scripts share: loading, streaming a completion to stdout, figures on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lit_gpt.args import SamplingArgs
from lit_gpt.errors import UserError
from lit_gpt.generation.batching.draft import load_draft
from lit_gpt.generation.conversation import Asked
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.lockstep.batch import FAST_FROM, compiles, generate
from lit_gpt.generation.request import Delta, Request, Sampling, Scored
from lit_gpt.generation.sampling.sampler import Sampler
from lit_gpt.generation.text import Text
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.resources import peak_memory_gb
from lit_gpt.tokenizer import Tokenizer


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
    num_samples: int = 1,
) -> None:
    """Streams completions of a prompt to stdout, one after the other.

    Args:
        asked: the prompt; an empty one starts from the begin-of-sequence token.
        echo: write the prompt first.
        compile: as for `generate_batch`.
    """
    ids = asked.ids
    if not ids:
        ids = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]
    request = Request(
        ids,
        args.max_new_tokens,
        Sampling(
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            presence_penalty=args.presence_penalty,
            frequency_penalty=args.frequency_penalty,
        ),  # each answer has a seed of its own, which follows from the one that Fabric was given
        stop=args.stop,
        stop_ids=frozenset() if args.ignore_eos else asked.stop_ids,
        min_new_tokens=args.min_new_tokens,
    )
    if args.asks_to_speculate:
        if compile:
            raise UserError("--compile true runs single tokens, and speculation checks several; leave one out")
        compile = False
    draft = None if args.draft_dir is None else load_draft(fabric, args.draft_dir, tokenizer)
    with fabric.autocast():
        if compiles(model.eval(), args.max_new_tokens, compile):
            answer = partial(stream_compiled, model, tokenizer, compile=compile)
        else:
            room = min(len(ids) + args.max_new_tokens, model.config.block_size)
            room *= min(2, num_samples)  # an answer's prompt is kept while the next one is generated
            answer = Engine(
                model,
                tokenizer,
                max_rows=1,
                max_tokens=room,
                autocast=fabric.autocast,
                speculative_tokens=0 if args.speculate == "none" else args.speculative_tokens,
                draft=draft,
                pack=num_samples * args.max_new_tokens >= FAST_FROM,
            ).stream
        for _ in range(num_samples):
            _print(answer(request), asked.text if echo else None)


def _print(deltas: Iterator[Delta], prompt: str | None) -> None:
    """Writes one answer to stdout while it comes, after its prompt if that is shown, and its speed to stderr."""
    n_tokens, blank, start = 0, prompt is None, time.perf_counter()
    _write(prompt or "")
    for delta in deltas:
        if delta.error:
            raise UserError(delta.error)
        n_tokens += len(delta.tokens) - isinstance(delta.stop_reason, int)  # without the one that ended the text
        text = delta.text.lstrip() if blank else delta.text  # whitespace before the first word is dropped
        blank = blank and not text
        _write(text)
    _write("\n")
    seconds = time.perf_counter() - start
    say(f"Time for inference: {seconds:.02f} sec total, {n_tokens / seconds:.02f} tokens/sec")


def stream_compiled(model: GPT, tokenizer: Tokenizer, request: Request, *, compile: bool | None) -> Iterator[Delta]:
    """Yields what `Engine.stream` does for a request, from a compiled model."""
    text, sampler = Text(tokenizer, request), Sampler(model.config.padded_vocab_size, model.lm_head.weight.device)
    sampler.add(0, request)
    n = 0
    tokens = generate(
        model,
        request.ids,
        request.max_new_tokens,
        stop_ids=request.stop_ids,
        compile=compile,
        pick=lambda logits: sampler.sample(logits.float(), [0]),
    )
    for n, token in enumerate(tokens, 1):
        new, stop = text.push(token, may_end=n > request.min_new_tokens)
        yield Delta(new, (Scored(token),), finish=None if stop is None else "stop", stop_reason=stop)
        if stop is not None:
            return
    new, stop = text.close(may_end=n > request.min_new_tokens)
    yield Delta(new, finish="length" if n == request.max_new_tokens else "stop", stop_reason=stop)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def say_memory() -> None:
    """Prints the peak memory, the last line of a generate script."""
    say(f"Memory used: {peak_memory_gb():.02f} GB")
