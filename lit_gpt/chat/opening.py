"""Loads the models of a chat."""

from pathlib import Path

from lightning.fabric import Fabric

from lit_gpt.args.folders import run_folder
from lit_gpt.chat.voice import Voice
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import load_finetuned
from lit_gpt.errors import UserError
from lit_gpt.generation.engine import Engine
from lit_gpt.merge.record import trained_style
from lit_gpt.model import GPT
from lit_gpt.prompts import CHAT_TEMPLATE, open_style
from lit_gpt.prompts.chat_template import read_templates
from lit_gpt.tokenizer import Tokenizer

_ROWS = 2
"""Rows of the KV cache's room: a turn, and what is kept of the turn before it."""


def open_voices(
    fabric: Fabric,
    checkpoint_dir: Path,
    finetuned_path: Path | None = None,
    *,
    compare: bool = False,
    style: str | None = None,
    quantize: str | None = None,
) -> list[Voice]:
    """Returns the model that answers: the run, the checkpoint if there is no run, or both if they are compared.

    Args:
        finetuned_path: a run's folder, or the weights in it.
        style: name of the prompt style; None takes that of the training, else the chat template, else plain.
        quantize: as `load_finetuned` takes it.

    Raises:
        UserError: no such checkpoint or run, no such style, or nothing to compare.
    """
    tokenizer = Tokenizer(checkpoint_dir)

    def voice(name: str, model: GPT, own: str, end_ids: tuple[int, ...] = ()) -> Voice:
        engine = Engine(model, tokenizer, max_rows=_ROWS, autocast=fabric.autocast)
        opened = open_style(style or own, checkpoint_dir, tokenizer)
        return Voice(name, engine, None, opened, style_name=style or own, tokenizer=tokenizer, end_ids=end_ids)

    if finetuned_path is None:
        if compare:
            raise UserError("--compare true shows a run beside its base; pass the run as --finetuned_path")
        model = _base(fabric, checkpoint_dir, quantize)
        return [voice(checkpoint_dir.absolute().name, model, _style_of(checkpoint_dir))]
    model, run = load_finetuned(fabric, checkpoint_dir, finetuned_path, quantize)
    folder = run_folder(finetuned_path).absolute()
    name = f"{folder.parent.name}/{folder.name}"
    finetuned = voice(name, model, run.prompt_style, tuple(run.data.get("end_ids", ())))
    if not compare:
        return [finetuned]
    return [voice("base", _base(fabric, checkpoint_dir, run.quantize), _style_of(checkpoint_dir)), finetuned]


def _base(fabric: Fabric, checkpoint_dir: Path, quantize: str | None) -> GPT:
    """Returns the model of a checkpoint; `none` quantizes nothing."""
    return load_base(fabric, checkpoint_dir, None if quantize == "none" else quantize)[0]


def _style_of(checkpoint_dir: Path) -> str:
    """Returns the prompt style of a checkpoint: of its training if it was merged, else its own template, else plain."""
    own = CHAT_TEMPLATE if "default" in read_templates(checkpoint_dir) else "plain"
    return trained_style(checkpoint_dir) or own
