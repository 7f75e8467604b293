"""The shape of a family file: how an architecture is spelled in checkpoints, and which sizes of it exist."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Separate:
    """q, k and v are three modules of theirs: `template` with `{qkv}` replaced by each of `names`."""

    template: str
    names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")

    @property
    def sources(self) -> list[str]:
        return [self.template.replace("{qkv}", n) for n in self.names]


@dataclass(frozen=True)
class Interleaved:
    """One module of theirs that stacks [q.. k v] once per query group (GPT-NeoX)."""

    name: str

    @property
    def sources(self) -> list[str]:
        return [self.name]


Rule = str | Separate | Interleaved
"""Where one of our modules comes from; a string is a plain rename."""


@dataclass(frozen=True)
class Architecture:
    """One decoder layout as Hugging Face names it: its configuration keys and its weights."""

    name: str
    """`model_type` in their config.json."""
    hf_class: str
    """Entry of `architectures` in their config.json."""
    traits: dict[str, Any]
    """Config fields that every model of the architecture has."""
    config_keys: dict[str, str]
    """Their config.json key -> our Config field."""
    config_values: dict[str, tuple[Any, ...]]
    """Their keys that would change the computation, with the values under which it is what `model.py` computes."""
    weights: dict[str, Rule]
    """Our module -> theirs. `{}` stands for a layer number; `.weight` and `.bias` come along."""
    ignore: tuple[str, ...] = ()
    """Endings of tensors in their checkpoints that carry no weights (buffers)."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Other names under which a module of theirs is found: name in some checkpoints -> name in `weights`."""


@dataclass(frozen=True)
class Family:
    """Models of one publisher that share an architecture."""

    org: str
    """Hugging Face organisation."""
    architecture: Architecture
    common: dict[str, Any]
    """Config fields all members share, beyond the architecture's."""
    models: list[dict[str, Any]]
    """One dict a model: `name` and the fields in which it differs."""

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Short name -> Config fields."""
        a = self.architecture
        shared = {"architecture": a.name, **a.traits, **self.common}
        return {m["name"]: {**shared, **m, "hf_repo": f"{self.org}/{m['name']}"} for m in self.models}


def table(header: str, *rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Turn a header and rows into dicts; a row may end with a dict of one-off fields.

    >>> table("name n_layer", ("a", 6), ("b", 12, {"bias": False}))
    [{'name': 'a', 'n_layer': 6}, {'name': 'b', 'n_layer': 12, 'bias': False}]
    """
    columns = header.split()
    return [dict(zip(columns, row, strict=False)) | (row[-1] if len(row) > len(columns) else {}) for row in rows]


def variants(rows: list[dict[str, Any]], *patterns: str) -> list[dict[str, Any]]:
    """Repeat each row under every pattern, `{}` being its name.

    >>> variants([{"name": "a"}], "{}", "{}-chat")
    [{'name': 'a'}, {'name': 'a-chat'}]
    """
    return [row | {"name": p.format(row["name"])} for row in rows for p in patterns]
