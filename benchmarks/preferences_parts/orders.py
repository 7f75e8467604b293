"""The demo's orders in four parts: rows with an answer, prompts whose answers a checker knows, and two held out."""

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_parts.material import ROOT

sys.path.insert(0, str(ROOT / "demo"))
import make_data  # pyright: ignore[reportMissingImports] a script of the demo

SEED = 11
"""Seed of the test set, another one than the demo's."""


@dataclass(frozen=True)
class Orders:
    """Files of rows under a work folder."""

    folder: Path
    sizes: argparse.Namespace
    """How many rows, prompts and orders of the test."""

    def path(self, part: str) -> Path:
        """The file of a part: rows, prompts, validation or test."""
        return self.folder / f"{part}.json"

    def make(self) -> None:
        """Write all parts anew; no order of the test has two values that an order of another part has together."""
        n = self.sizes.rows
        train, held_out = (json.loads((ROOT / f"demo/{name}.json").read_text()) for name in ("train", "held_out"))
        parts = {"rows": train[:n], "prompts": train[n : n + self.sizes.prompts], "validation": held_out[:40]}
        parts["test"] = self._test([*train, *held_out])
        for name, rows in parts.items():
            self.path(name).write_text(json.dumps(rows, indent=1), encoding="utf-8")

    def _test(self, others: list[dict[str, Any]]) -> list[dict[str, str]]:
        """New orders by the demo's rule: three of four have an item, a name or a city that no training row has."""
        used = {pair for row in others for pair in make_data.pairs(json.loads(row["output"]))}
        rng, found = random.Random(SEED), []
        while len(found) < self.sizes.test:
            unseen = (None, *make_data.UNSEEN)[len(found) % 4]
            pool = {**make_data.SEEN, unseen: make_data.UNSEEN[unseen]} if unseen else make_data.SEEN
            order = make_data.draw(rng, pool)
            if not make_data.pairs(order) & used:
                found.append(order)
        return make_data.make_rows(rng, found)
