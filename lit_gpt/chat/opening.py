"""Loads the models of a chat."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_gpt.args import SamplingArgs
from lit_gpt.args.folders import run_folder
from lit_gpt.chat.voice import Voice
from lit_gpt.checkpoints.base import load_base, load_pretrained
from lit_gpt.checkpoints.runs import Run, load_finetuned, read_run
from lit_gpt.errors import UserError
from lit_gpt.generation.batching.runs import SharedRun, load_shared
from lit_gpt.generation.engine import Engine
from lit_gpt.lightning import Fabric
from lit_gpt.merge.record import trained_style
from lit_gpt.model import GPT
from lit_gpt.prompts import CHAT_TEMPLATE, open_style
from lit_gpt.prompts.chat_template import read_templates
from lit_gpt.tokenizer import Tokenizer


def open_voices(
    fabric: Fabric,
    tokenizer: Tokenizer,
    checkpoint_dir: Path,
    finetuned_path: Path | None = None,
    *,
    compare: bool = False,
    style: str | None = None,
    quantize: str | None = None,
) -> list[Voice]:
    """Returns the model that answers: the run, the checkpoint if there is no run, or both if they are compared.

    Args:
        tokenizer: the checkpoint's.
        finetuned_path: a run's folder, or the weights in it.
        style: name of the prompt style; None takes that of the training, else the chat template, else plain.
        quantize: as `load_finetuned` takes it.

    Raises:
        UserError: no such checkpoint or run, no such style, or nothing to compare.
    """
    opening = _Opening(fabric, tokenizer, checkpoint_dir, style)
    if finetuned_path is None:
        if compare:
            raise UserError("--compare true shows a run beside its base; pass the run as --finetuned_path")
        model = load_pretrained(fabric, checkpoint_dir, None if quantize == "none" else quantize)
        return [opening.base(checkpoint_dir.absolute().name, opening.engine(model))]
    folder = run_folder(finetuned_path).absolute()
    name = f"{folder.parent.name}/{folder.name}"
    if not compare:
        model, record = load_finetuned(fabric, checkpoint_dir, folder, quantize)
        return [opening.run(name, opening.engine(model), record)]
    record = read_run(folder)
    quantize = record.quantize if quantize is None else quantize
    model, digest = load_base(fabric, checkpoint_dir, None if quantize == "none" else quantize)
    if record.method == "lora":  # one copy of the base weights answers for both
        engine = opening.engine(model, load_shared(model, digest, checkpoint_dir, {name: folder}), n_voices=2)
        return [opening.base("base", engine), opening.run(name, engine, record, shared=name)]
    finetuned, record = load_finetuned(fabric, checkpoint_dir, folder, quantize)
    return [opening.base("base", opening.engine(model)), opening.run(name, opening.engine(finetuned), record)]


class _Opening:
    """What the voices of a chat have in common."""

    def __init__(self, fabric: Fabric, tokenizer: Tokenizer, checkpoint_dir: Path, style: str | None) -> None:
        self.fabric, self.tokenizer, self.checkpoint_dir, self.style = fabric, tokenizer, checkpoint_dir, style

    def engine(self, model: GPT, runs: Mapping[str, SharedRun] | None = None, n_voices: int = 1) -> Engine:
        """Returns an engine with room for a turn of each voice, and for what is kept of the turn before it."""
        rows = 2 * n_voices
        on_cpu = self.fabric.device.type == "cpu"  # where one voice's wrong guesses cost less than right ones save
        return Engine(
            model, self.tokenizer, runs=runs, max_rows=rows, autocast=self.fabric.autocast,
            speculative_tokens=SamplingArgs.speculative_tokens if on_cpu else 0,
        )  # fmt: skip

    def base(self, name: str, engine: Engine) -> Voice:
        """Returns the voice of the checkpoint itself: in the style of its training if it was merged, else its own."""
        own = CHAT_TEMPLATE if "default" in read_templates(self.checkpoint_dir) else "plain"
        return self._voice(name, engine, None, style=trained_style(self.checkpoint_dir) or own)

    def run(self, name: str, engine: Engine, record: Run, shared: str | None = None) -> Voice:
        """Returns the voice of a run; `shared` is its name in an engine that has several."""
        return self._voice(name, engine, shared, style=record.prompt_style, end_ids=record.data.get("end_ids", ()))

    def _voice(self, name: str, engine: Engine, run: str | None, style: str, end_ids: Any = ()) -> Voice:
        style = self.style or style
        opened = open_style(style, self.checkpoint_dir, self.tokenizer)
        return Voice(name, engine, run, opened, style_name=style, tokenizer=self.tokenizer, end_ids=tuple(end_ids))
