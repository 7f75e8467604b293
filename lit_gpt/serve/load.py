"""Loads what a server serves, and runs it once, so that the first request finds everything ready."""

import sys
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.args import Precision, Quantization, SamplingArgs, ServeArgs
from lit_gpt.args.folders import require_checkpoint, run_folder
from lit_gpt.checkpoints.base import load_base, load_pretrained
from lit_gpt.checkpoints.runs import Run, load_finetuned
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.generation.batching.runs import load_shared
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request
from lit_gpt.lightning import Fabric
from lit_gpt.merge.record import trained_style
from lit_gpt.prompts import CHAT_TEMPLATE, ChatTemplate, Style, open_style, read_template
from lit_gpt.serve.models import Registry, Served, names_of
from lit_gpt.tokenizer import Tokenizer

_WARM_TOKENS = 4


@dataclass(frozen=True)
class What:
    """What is served."""

    checkpoint_dir: Path
    finetuned_path: Path | None = None
    runs: tuple[Path, ...] = ()
    prompt_style: str | None = None
    """Style in which a base without one of its own is asked."""
    precision: Precision | None = None
    quantize: Quantization | str | None = None


@dataclass(frozen=True)
class Loaded:
    """What a server needs of a model."""

    engine: Engine
    tokenizer: Tokenizer
    models: Registry
    block_size: int


def load(what: What, args: ServeArgs, fabric: Fabric | None = None) -> Loaded:
    """Returns the models of a server, warmed up.

    Args:
        fabric: the device; made here if not given.

    Raises:
        UserError: there is no such checkpoint or run, or they do not go together.
    """
    require_checkpoint(what.checkpoint_dir, takes_runs=True)
    fabric = fabric or make_fabric(what.precision)
    tokenizer = Tokenizer(what.checkpoint_dir)
    guesses = args.speculate == "ngram" if args.speculate else fabric.device.type == "cpu"
    n_guessed = SamplingArgs.speculative_tokens if guesses else 0
    limits = {"max_rows": args.max_rows, "max_tokens": args.max_tokens, "speculative_tokens": n_guessed}
    if what.finetuned_path is not None:
        folder = run_folder(what.finetuned_path)
        model, run = load_finetuned(fabric, what.checkpoint_dir, folder, what.quantize)
        models = [_served(what, tokenizer, run, name=folder.resolve().name, folder=folder)]
        engine = Engine(model, tokenizer, **limits, autocast=fabric.autocast)
    else:
        kind = None if what.quantize == "none" else what.quantize
        if what.runs:
            model, digest = load_base(fabric, what.checkpoint_dir, kind)
        else:
            model, digest = load_pretrained(fabric, what.checkpoint_dir, kind), ""
        folders = [run_folder(path) for path in what.runs]
        base, *names = names_of(what.checkpoint_dir, folders)
        shared = load_shared(model, digest, what.checkpoint_dir, dict(zip(names, folders, strict=True)))
        style_name, style = _style_of_base(what, tokenizer)
        models = [Served(base, what.checkpoint_dir, None, style, style_name=style_name)]
        for name, folder in zip(names, folders, strict=True):
            run = shared[name].record
            if run.quantize != kind:
                print(_other_base(name, run.quantize, kind), file=sys.stderr)
            models.append(_served(what, tokenizer, run, name=name, folder=folder, run_name=name, parent=base))
        engine = Engine(model, tokenizer, runs=shared, **limits, autocast=fabric.autocast)
    loaded = Loaded(engine, tokenizer, Registry(models), model.config.block_size)
    _warm(loaded)
    return loaded


def _other_base(name: str, trained: str | None, served: str | None) -> str:
    """Returns a line that says that a run's base is served in another form than it was trained over."""
    return (
        f"warning: {name} was trained over weights in {trained or 'full precision'}, and its base is served in "
        f"{served or 'full precision'}; --quantize {trained or 'none'} serves all of them in the former"
    )


def _served(
    what: What,
    tokenizer: Tokenizer,
    run: Run,
    *,
    name: str,
    folder: Path,
    run_name: str | None = None,
    parent: str | None = None,
) -> Served:
    """Returns a run as requests name it, asked in the prompt style of its training."""
    style = open_style(run.prompt_style, what.checkpoint_dir, tokenizer)
    ends = frozenset(run.data.get("end_ids", ()))
    return Served(name, folder, run_name, style, style_name=run.prompt_style, end_ids=ends, parent=parent)


def _style_of_base(what: What, tokenizer: Tokenizer) -> tuple[str, Style | ChatTemplate | None]:
    """Returns the prompt style of a base, with its name: what the user says, what it was trained with, its template."""
    name = what.prompt_style or trained_style(what.checkpoint_dir)
    if name is None:
        try:
            read_template(what.checkpoint_dir)
        except UserError:
            return "", None
        name = CHAT_TEMPLATE
    return name, open_style(name, what.checkpoint_dir, tokenizer)


def _warm(loaded: Loaded) -> None:
    """Runs every model once, and loads the tokenizer where texts are decoded, so that no request pays for that."""
    tokenizer = loaded.tokenizer
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    tokenizer.decode([start])
    n = min(_WARM_TOKENS, loaded.block_size - 1)
    requests = [
        Request([start], n, GREEDY, logprobs=0, prompt_logprobs=0, run=model.run) for model in loaded.models.models
    ]
    for answer in loaded.engine.complete(requests):
        if answer.finish == "error":
            raise UserError(f"the model does not run here: {answer.error}")
