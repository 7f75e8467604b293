"""Measures how much the logits of a merged checkpoint differ from those of the trained model."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lit_gpt.checkpoints.base import load_pretrained
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.checkpoints.runs import Run, load_finetuned
from lit_gpt.convert.verify import Difference, difference_of, joined
from lit_gpt.data import store
from lit_gpt.data.compatibility import check_vocabulary
from lit_gpt.errors import UserError
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.prompts import make_prompt
from lit_gpt.tokenizer import Tokenizer

_COMPARED_TOKENS = 512
"""Number of tokens compared: enough to see a difference, and the logits of a large vocabulary fit in memory twice."""


@torch.no_grad()
def compare(
    fabric: Fabric, checkpoint_dir: Path, run_dir: Path, out_dir: Path, texts: list[list[int]], team: Team = ALONE
) -> Difference:
    """Returns how the merged model in `out_dir` differs from the trained one; only one is in memory at a time.

    The trained model is loaded with the precision and quantization that it was trained with.

    Args:
        texts: token ids of each text.
        team: the processes among which the texts are dealt; each has a whole model.
    """
    mine = texts[team.rank :: team.size]
    before = _logits(fabric, lambda: load_finetuned(fabric, checkpoint_dir, run_dir)[0], mine) if mine else None
    after = _logits(fabric, lambda: load_pretrained(fabric, out_dir), mine) if mine else None
    of_mine = difference_of(before, after) if before is not None and after is not None else None
    return joined([found for found in team.every(of_mine) if found is not None])


def _logits(fabric: Fabric, load: Callable[[], GPT], texts: list[list[int]]) -> Tensor:
    """Returns the logits at all positions of the texts, (tokens, V), fp32, on the CPU; one text is run at a time."""
    model = load().eval()
    with fabric.autocast():
        return torch.cat([model(torch.tensor([ids], device=fabric.device))[0].float().cpu() for ids in texts])


def texts_to_compare(run: Run, checkpoint_dir: Path) -> tuple[list[list[int]], str]:
    """Returns token ids to compare on, and a description of them.

    They are the first _COMPARED_TOKENS tokens of the training set, or a prompt if the training set is gone.
    """
    folder = Path(run.data.get("folder", ""))
    try:
        train, _, meta = store.load(folder, judged=None)
        known = meta["tokenizer"] == run.data.get("tokenizer")
        check_vocabulary((train,), folder, read_config(checkpoint_dir).padded_vocab_size)
    except UserError:
        known = False
    if not known:
        prompt = "What food do llamas eat?"
        ids = Tokenizer(checkpoint_dir).encode(make_prompt(run.prompt_style, prompt, checkpoint_dir=checkpoint_dir))
        return [ids], f"the prompt {prompt!r}, since the data of the training ({folder}) is not there"
    texts, room = [], _COMPARED_TOKENS
    for i in range(len(train)):
        texts.append(train[i][0][:room].tolist())
        room -= len(texts[-1])
        if room == 0:
            break
    return texts, f"the first {len(texts)} samples of {folder}"
