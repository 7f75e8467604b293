"""Asks a base model and runs of it the same questions, with one copy of the weights in memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.args import EvalArgs
from lit_gpt.checkpoints.base import digest_of, load_base
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.runs import Run, load_finetuned, read_run, require_base
from lit_gpt.errors import UserError
from lit_gpt.evaluation.run import choose_style, measured
from lit_gpt.generation.batching.runs import load_shared
from lit_gpt.generation.cpu.compiling import release
from lit_gpt.lightning import Fabric
from lit_gpt.tokenizer import Tokenizer


class Asked(NamedTuple):
    """A model and what it got."""

    name: str
    results: dict[str, Any]
    """In lm-eval's schema, with samples."""


def style_of(args: EvalArgs, folders: Sequence[Path], checkpoint_dir: Path) -> str | None:
    """Returns the prompt style in which all models are asked; None for the bare questions.

    Raises:
        UserError: runs were trained in different styles, and none is named.
    """
    if not args.apply_prompt_style or args.prompt_style is not None:
        return choose_style(args, None, checkpoint_dir)
    trained = {read_run(folder).prompt_style: folder for folder in folders}
    if len(trained) > 1:
        (one, first), (other, second) = list(trained.items())[:2]
        raise UserError(
            f"{first} was trained in the prompt style {one} and {second} in {other}, and all models are asked the "
            "same; name a style with --prompt_style, or compare each run with the base by itself"
        )
    return choose_style(args, next(iter(trained)), checkpoint_dir)


def check_runs(folders: Sequence[Path], checkpoint_dir: Path) -> dict[Path, Run]:
    """Returns the records of runs of one checkpoint, by their folders.

    Raises:
        UserError: a folder is no run, given twice, or a run of another checkpoint.
    """
    if not folders:
        raise UserError("--finetuned_path is missing: the folder of a run, or of several, to compare with the base")
    if twice := [f for i, f in enumerate(folders) if f.resolve() in {g.resolve() for g in folders[:i]}]:
        raise UserError(f"--finetuned_path names {twice[0]} twice")
    records = {folder: read_run(folder) for folder in folders}
    _, specs, get = open_lit(checkpoint_dir)
    digest = digest_of(specs, get)
    for folder, record in records.items():
        require_base(record, folder, checkpoint_dir, digest)
    return records


def ask_all(
    fabric: Fabric,
    checkpoint_dir: Path,
    records: dict[Path, Run],
    *,
    tasks: tuple[Any, list[Any]],
    args: EvalArgs,
    style: str | None,
    quantize: str | None,
) -> Iterator[Asked]:
    """Yields what the base got, and then what each run got.

    LoRA runs of it are computed beside the base's weights; a run of another method, or one whose weights are quantized
    in another way than the base's, is loaded after those before it have left the memory.

    Args:
        quantize: key of QUANTIZATIONS, or `none`; if None, each run is quantized as in its training, the base is not.
    """
    base_kind = None if quantize == "none" else quantize
    tokenizer = Tokenizer(checkpoint_dir)
    common = {"tokenizer": tokenizer, "tasks": tasks, "args": args, "style": style}
    about = {"checkpoint_dir": checkpoint_dir}
    model, digest = load_base(fabric, checkpoint_dir, base_kind)
    yield Asked("base", measured(fabric, model, **common, about=about | {"quantize": base_kind}))
    release()  # runs beside the base multiply by packed weights of their own
    done: dict[Path, dict[str, Any]] = {}
    for folder, record in records.items():
        kind = base_kind if quantize is not None else record.quantize
        if record.method != "lora" or record.method_args.get("whole") or kind != base_kind:
            continue
        told = about | {"finetuned_path": folder, "method": "lora", "quantize": kind}
        shared = load_shared(model, digest, checkpoint_dir, {"run": folder})["run"]
        done[folder] = measured(fabric, model, **common, about=told, run=shared)
    del model
    for folder in records:
        if folder not in done:
            model, run = load_finetuned(fabric, checkpoint_dir, folder, quantize)
            told = about | {"finetuned_path": folder, "method": run.method, "quantize": run.quantize}
            done[folder] = measured(fabric, model, **common, about=told)
            del model
        yield Asked(str(folder), done.pop(folder))
