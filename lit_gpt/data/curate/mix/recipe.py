"""Writes the recipe of a mixture, for meta.json: its sources, how much of each, and what became of their rows."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lit_gpt.args.command import noted_command
from lit_gpt.args.curation import AugmentArgs, MixArgs
from lit_gpt.data.curate.mix.sources import SAME, Source
from lit_gpt.prompts.wording import WORDING, wording_of


def recipe(
    sources: Mapping[str, Source],
    available: Mapping[str, int],
    amounts: Mapping[str, int],
    args: MixArgs,
    augment: AugmentArgs,
    seed: int,
) -> dict[str, Any]:
    """Returns the content of a mixture's meta.json, except for what is counted while it is written."""
    first = next(iter(sources.values())).meta
    entries, start = {}, 0
    for name, source in sources.items():
        stop = start + len(source.val)
        entries[name] = {
            "path": str(source.path),
            "source": source.meta.get("source"),
            "available": available[name],
            "train": amounts[name],
            "val": [start, stop],
            "made": dict(source.made),
            "rows": source.meta.get("rows"),
        }
        start = stop
    asked = {key: getattr(args, key) for key in ("weights", "sizes", "caps", "size")}
    return {
        "source": ", ".join(str(source.path) for source in sources.values()),
        **{key: first[key] for key in ("checkpoint_dir", *SAME) if key in first},
        WORDING: wording_of(first),
        "max_seq_length": max(source.meta["max_seq_length"] for source in sources.values()),
        "end_ids": sorted({i for source in sources.values() for i in source.meta.get("end_ids", [])}),
        "seed": seed,
        "rows": _account(sources, available, amounts),
        "mix": {
            "sources": entries,
            **asked,
            "augment": asdict(augment) if augment.any else None,
        },
        "command": noted_command(),
    }


def _account(sources: Mapping[str, Source], available: Mapping[str, int], amounts: Mapping[str, int]) -> dict[str, Any]:
    """Returns the record of both splits' rows: rows read and repeated equal rows kept and dropped."""
    leaks = {f"of {name} in another validation set": len(s.train) - available[name] for name, s in sources.items()}
    not_drawn = {f"of {name} not drawn": available[name] - amounts[name] for name in sources}
    dropped = {reason: n for reason, n in (leaks | not_drawn).items() if n > 0}
    n_train, n_val = (sum(len(getattr(s, split)) for s in sources.values()) for split in ("train", "val"))
    kept = sum(amounts.values())
    repeated = kept + sum(dropped.values()) - n_train
    train = {"read": n_train, "kept": kept, "dropped": dropped, "cut": {}, "repeated": repeated}
    return {"train": train, "val": {"read": n_val, "kept": n_val, "dropped": {}, "cut": {}}}
