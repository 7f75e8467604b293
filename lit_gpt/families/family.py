"""The shape of a family file: how an architecture is spelled in checkpoints, and which sizes of it exist."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lit_gpt.config import Config


@dataclass(frozen=True)
class Separate:
    """Three checkpoint modules for q, k and v: `template` with `{qkv}` replaced by each of `names`."""

    template: str
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Names for q, k and v; fewer for a layer that has no v, or neither k nor v, see `lit_gpt.layer_heads`."""
    pairs: bool = False
    """Whether theirs rotates neighbouring channels of a head in pairs; ours are reordered, so that halves rotate."""
    gated: bool = False
    """Whether each head of theirs has a query and then a gate of the output, which `OutputGate` is."""

    @property
    def sources(self) -> list[str]:
        return [self.template.replace("{qkv}", n) for n in self.names]


@dataclass(frozen=True)
class Interleaved:
    """A checkpoint module that stacks [q.. k v] once per query group (GPT-NeoX)."""

    name: str

    @property
    def sources(self) -> list[str]:
        return [self.name]


@dataclass(frozen=True)
class Part:
    """Rows of a checkpoint module: the `index`-th of `of` equal blocks (Phi 3 stacks the two halves of its MLP)."""

    name: str
    index: int
    of: int = 2
    alternating: bool = False
    """Whether the rows of all blocks alternate, rather than lie one block after the other."""

    @property
    def sources(self) -> list[str]:
        return [self.name]


@dataclass(frozen=True)
class PerHead:
    """A checkpoint module per head, `template` with `{head}` replaced by 0, 1, ...; our module stacks their weights."""

    template: str
    keys: bool = False
    """Whether the modules are those of the key/value heads rather than the query heads."""


@dataclass(frozen=True)
class Stacked:
    """An expert's rows of a tensor that stacks those of all experts of a layer along a leading dimension.

    The tensor's name is `name`, with `_bias` appended for a bias.
    """

    name: str
    rows: Literal["all", "first half", "second half", "even", "odd"] = "all"
    """The expert's rows that make up our module."""
    transposed: bool = False
    """Whether an expert's matrix is (inputs, outputs)."""
    expert: int = 0
    """Index of the expert, set where the rule is looked up."""

    @property
    def n_parts(self) -> int:
        """Number of our modules that make up an expert's rows."""
        return 1 if self.rows == "all" else 2


@dataclass(frozen=True)
class OutputGate:
    """The gates of attention's output in a checkpoint module that has, for each head, a query and then a gate."""

    name: str

    @property
    def sources(self) -> list[str]:
        return [self.name]


@dataclass(frozen=True)
class KeyHeads:
    """Rows of a checkpoint module that stacks [q k v.. z..], or [b.. a..], once per key head of the delta rule."""

    name: str
    part: str
    """What our module has of it, one of `parts`."""
    parts: tuple[str, ...]

    @property
    def sources(self) -> list[str]:
        return [self.name]


Rule = str | OutputGate | KeyHeads | Separate | Interleaved | Part | PerHead | Stacked
"""The source of one of our modules; a string is a plain rename."""

_Values = dict[str, Any]
"""Contents of a config.json, or fields of Config."""


@dataclass(frozen=True)
class Architecture:
    """One decoder layout as Hugging Face names it: its configuration keys and its weights."""

    name: str
    """Our name of the architecture; unique."""
    hf_class: str
    """Entry of `architectures` in their config.json."""
    traits: _Values
    """Config fields that every model of the architecture shares, and defaults for keys that config.json lacks."""
    config_keys: dict[str, str | tuple[str, ...]]
    """Their config.json key -> our Config field, or fields. The first key that names a field is written back."""
    config_values: dict[str, tuple[Any, ...]]
    """Their config.json keys that could change the computation, with the values for which it is what `model.py`
    computes; the first value is written back."""
    weights: dict[str, Rule]
    """Our module -> theirs. `{}` stands for the index of a layer or an expert; `.weight` and `.bias` are added."""
    model_type: str = ""
    """`model_type` in their config.json; empty means `name`."""
    when: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of their keys (None: absent) that tell this architecture from others of the same class."""
    adapt: Callable[[_Values], _Values] = dict
    """Converts their config.json, which may state a trait in several ways, to one with keys of the tables only."""
    restore: Callable[["Config"], _Values] = lambda config: {}
    """Returns the keys of their config.json that the tables do not give, the inverse of `adapt`; None becomes null."""
    ignore: tuple[str, ...] = ()
    """Suffixes of tensor names in their checkpoints that are buffers rather than weights."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Other names of their modules: name in some checkpoints -> name in `weights`."""
    in_memory: dict[str, Rule] = field(default_factory=dict)
    """Our module -> theirs in a loaded model of transformers, where it is called otherwise than in files."""
    swaps_factors: bool = False
    """Whether PEFT takes the inputs of stacked experts for their outputs, as their class does not say how they lie."""
    not_in_peft: tuple[str, ...] = ()
    """Last part of the names of their linear layers that PEFT adapts in no model of this class."""
    other_classes: tuple[str, ...] = ()
    """Older names of `hf_class`."""
    other_types: _Values = field(default_factory=dict)
    """Types of their keys where they are not those of other architectures."""
    text_defaults: _Values = field(default_factory=dict)
    """Their keys with the values that hold where the part on text of a multimodal config.json leaves them out."""


@dataclass(frozen=True)
class Family:
    """Models of one publisher that share an architecture."""

    org: str
    """Hugging Face organization."""
    architecture: Architecture
    common: _Values
    """Config fields all members share, beyond the architecture's."""
    models: list[_Values]
    """One dict per model: `name`, the fields in which it differs, `hf_repo` where that is not `org`/`name`."""

    @property
    def configs(self) -> dict[str, _Values]:
        """Short name -> Config fields."""
        a = self.architecture
        shared = {"architecture": a.name, **a.traits, **self.common}
        return {m["name"]: {**shared, "hf_repo": f"{self.org}/{m['name']}", **m} for m in self.models}


def fused_experts(mlp: str, gate: str = "gate") -> dict[str, Rule]:
    """Returns where a loaded model of transformers has the experts and the router that its files have one by one.

    Args:
        mlp: their module that is the mixture.
        gate: name of the router in it.
    """
    ours, theirs = "transformer.h.{}.mlp.experts.{}.", f"{mlp}.experts."
    return {
        "transformer.h.{}.mlp.gate": f"{mlp}.{gate}",
        f"{ours}fc_1": Stacked(f"{theirs}gate_up_proj", "first half"),
        f"{ours}fc_2": Stacked(f"{theirs}gate_up_proj", "second half"),
        f"{ours}proj": Stacked(f"{theirs}down_proj"),
    }


def table(header: str, *rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Returns a header and rows as dicts; a row may end with a dict of one-off fields.

    >>> table("name n_layer", ("a", 6), ("b", 12, {"bias": False}))
    [{'name': 'a', 'n_layer': 6}, {'name': 'b', 'n_layer': 12, 'bias': False}]
    """
    columns = header.split()
    return [dict(zip(columns, row, strict=False)) | (row[-1] if len(row) > len(columns) else {}) for row in rows]


def variants(rows: list[dict[str, Any]], *patterns: str) -> list[dict[str, Any]]:
    """Returns each row once for every pattern, in which `{}` stands for its name.

    >>> variants([{"name": "a"}], "{}", "{}-chat")
    [{'name': 'a'}, {'name': 'a-chat'}]
    """
    return [row | {"name": p.format(row["name"])} for row in rows for p in patterns]
