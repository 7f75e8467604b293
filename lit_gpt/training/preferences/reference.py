"""Log-probabilities of answers under the reference, computed once and kept beside the data, a number an answer.

data/<name>/reference-<digest>.<split>.npy   (n_answers,) fp32, NaN of answers that no run has asked for yet
data/<name>/reference-<digest>.json          what they were made of, whose digest is in the names
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_gpt.args import TrainArgs
from lit_gpt.data.answers import Answers
from lit_gpt.data.batches import AnswerBatch, Idle, micro_batches
from lit_gpt.data.dealing import dealt
from lit_gpt.files import replace_with, write_text
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import is_sharded, reshard
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.training.batching import packing_of
from lit_gpt.training.log_probs import answer_log_probs
from lit_gpt.training.randomness import undisturbed
from lit_gpt.training.run.disk import going_on
from lit_gpt.training.run.progress import file_digest

_AT_ONCE = 512
"""Rows of a device that are packed together."""
_KEPT_EVERY = 60.0
"""Seconds after which what is computed is written, so that a killed process loses no more."""


class ReferenceStore:
    """The reference's log-probabilities in a folder of prepared data.

    Args:
        made_of: what they follow from: model, precision, the answers themselves.
    """

    def __init__(self, folder: Path, made_of: dict[str, Any]) -> None:
        self.folder, self.text = folder, json.dumps(made_of, indent=2, sort_keys=True) + "\n"
        self.name = f"reference-{hashlib.sha256(self.text.encode()).hexdigest()[:16]}"

    def path(self, split: str) -> Path:
        """Returns the file of a split."""
        return self.folder / f"{self.name}.{split}.npy"

    def read(self, split: str, n: int) -> np.ndarray:
        """Returns what is known of a split, (n,) fp32 with NaN elsewhere; a damaged file is as none."""
        try:
            found = np.load(self.path(split))
        except (OSError, ValueError, EOFError):
            found = None
        if found is None or found.shape != (n,) or found.dtype != np.float32:
            return np.full(n, np.nan, dtype=np.float32)
        return found

    def write(self, split: str, values: np.ndarray) -> None:
        """Writes what is known of a split; a full disk is said in a line."""

        def fill(path: Path) -> None:
            with open(path, "wb") as file:
                np.save(file, values)

        with going_on(
            f"the reference's log-probabilities {self.path(split)}", then="they are computed again next time"
        ):
            write_text(self.folder / f"{self.name}.json", self.text)
            replace_with(self.path(split), fill)


def made_of(
    data: tuple[Answers, Answers], base_digest: str, quantize: str | None, precision: str, weights: Path | None
) -> dict[str, Any]:
    """Returns what the log-probabilities of the reference follow from.

    Args:
        base_digest: digest of the checkpoint's weights.
        weights: trained weights of the run that is the reference; None is the checkpoint itself.
    """
    return {
        "base_digest": base_digest.partition("-")[0],
        "quantize": quantize,
        "precision": precision,
        "run": weights and file_digest(weights),
        "answers": [split.contents() for split in data],
    }


def known_references(
    fabric: Fabric,
    model: GPT,
    data: Answers,
    rows: Sequence[int] | np.ndarray,
    *,
    store: ReferenceStore,
    split: str,
    train: TrainArgs,
    team: Team = ALONE,
) -> np.ndarray:
    """Returns the log-probability of each answer under `model`, (n_answers,) fp32; NaN of rows not asked for.

    What is in the store is not computed again; what was not there is afterwards.

    Args:
        rows: the rows that are asked for.
        split: train or val.
        team: the processes among which the rows are dealt; the leader reads and writes the store.
    """
    known = team.first(lambda: store.read(split, data.n_answers))
    firsts = data.firsts
    missing = [int(i) for i in np.unique(rows) if np.isnan(known[firsts[i] : firsts[i + 1]]).any()]
    if not missing:
        return known
    print(f"{split}: the reference's log-probabilities of {len(missing):,} rows are computed once", flush=True)
    began = written = time.monotonic()
    model.eval()
    with fabric.autocast():
        packing = packing_of(model, train, fabric.device)
    with undisturbed(fabric.device), torch.no_grad(), fabric.autocast():
        at_once = _AT_ONCE * team.size
        for start in range(0, len(missing), at_once):
            mine = dealt(data.lengths, missing[start : start + at_once], team.size)[team.rank]
            here: dict[int, float] = {}
            batches = micro_batches(data, mine, packing) if mine else []
            n_idle = team.most(len(batches)) - len(batches) if is_sharded(model) else 0
            for batch in [*batches, *(Idle.make() for _ in range(n_idle))]:
                assert isinstance(batch, AnswerBatch)
                found = answer_log_probs(model, batch.to(fabric.device))
                here.update(zip(batch.answers, found.float().tolist(), strict=True))
            for of_rank in team.every(here):
                known[list(of_rank)] = list(of_rank.values())
            if team.leads and time.monotonic() - written > _KEPT_EVERY:
                store.write(split, known)
                written = time.monotonic()
    if team.leads:
        store.write(split, known)
    reshard(model)
    print(f"{split}: {time.monotonic() - began:.1f} s, kept in {store.path(split)}")
    return known
