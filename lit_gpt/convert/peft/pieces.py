"""Maps each of our updates and parameters to the Hugging Face model that PEFT adapts.

"Ours" are modules and parameters of our model, "theirs" those of the Hugging Face model.

Letters: r rank of our updates, R rank of a piece (2 r if PiSSA's start is subtracted).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_gpt.args import LoRAArgs
from lit_gpt.args.methods import LORA_TARGETS
from lit_gpt.config import Config
from lit_gpt.convert.names import EMBEDDINGS, HEAD, VOCABULARY, config_of
from lit_gpt.convert.packing import joined, pack, unpack
from lit_gpt.convert.peft.experts import sources_in_memory
from lit_gpt.errors import UserError
from lit_gpt.families.family import KeyHeads, OutputGate, Part, Rule, Separate
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.qkv import halves_of_pairs, pairs_of_halves
from lit_gpt.methods import lora
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.model import GPT


@dataclass
class Piece:
    """One of our updates, and its location in one of their modules."""

    path: str
    """Name of our layer."""
    index: int
    """Index of the update among those of the layer."""
    block: str
    """Name of the block, one of lora.BLOCKS, or the empty string for a whole layer."""
    layer: LoRALinear
    theirs: str
    """Name of their module."""
    rule: Rule

    @property
    def name(self) -> str:
        """Name of the update, as in `LoRARunArgs.ranks`."""
        return lora.update_name(self.path, self.block)

    @property
    def rows(self) -> slice:
        """Output channels of our layer that the update changes."""
        return slice(*self.layer.blocks[self.index])

    @property
    def rank(self) -> int:
        """Rank R with which the layer computes."""
        return self.layer.lora_A[0].size(0) * (1 if self.layer.lora_A_start is None else 2)

    @property
    def _is_paired(self) -> bool:
        """Whether their rows are in another order, since neighbouring channels rotate in pairs."""
        return isinstance(self.rule, Separate) and self.rule.pairs and self.block in lora.BLOCKS[:2]

    @property
    def _slot(self) -> int | None:
        """Index of the half of each head's rows in their module that the update changes; None if it has no halves."""
        if isinstance(self.rule, OutputGate):
            return 1
        is_query = isinstance(self.rule, Separate) and self.rule.gated and self.block == lora.BLOCKS[0]
        return 0 if is_query else None

    def spread(self, x: Tensor, config: Config) -> Tensor:
        """Returns rows of the update as rows of their module, with zeros in the others."""
        if (slot := self._slot) is not None:
            heads = x.unflatten(0, (config.n_head, config.head_size))
            other = torch.zeros_like(heads)
            return torch.stack((other, heads) if slot else (heads, other), 1).flatten(0, 2)
        if isinstance(self.rule, Separate):
            return pairs_of_halves(x, config) if self._is_paired else x
        full = x.new_zeros(self.layer.linear.out_features, *x.shape[1:])
        full[self.rows] = x
        if isinstance(self.rule, KeyHeads):
            return joined([(self.rule, full)], config)
        if isinstance(self.rule, Part):
            parts = [full if i == self.rule.index else torch.zeros_like(full) for i in range(self.rule.of)]
            return joined([(self.rule, part) for part in parts], config)
        return unpack(self.rule, full, config)[0]

    def gather(self, x: Tensor, config: Config) -> Tensor | None:
        """Returns the rows of the update out of those of their module; None if x has another number of rows."""
        if (slot := self._slot) is not None:
            if x.size(0) != 2 * config.n_head * config.head_size:
                return None
            return x.unflatten(0, (config.n_head, 2, config.head_size))[:, slot].flatten(0, 1)
        if isinstance(self.rule, Separate):
            if x.size(0) != self.rows.stop - self.rows.start:
                return None
            return halves_of_pairs(x, config) if self._is_paired else x
        full = pack(self.rule, [x], [self.layer.linear.out_features, *x.shape[1:]], config)
        return None if full is None or full.size(0) != self.layer.linear.out_features else full[self.rows]


def pieces(config: Config, args: LoRAArgs) -> list[Piece]:
    """Returns every update of a run, without values."""
    with torch.device("meta"):
        model = GPT(config)
        lora.inject(model, args)
    found = []
    for path, layer in model.named_modules():
        if not isinstance(layer, LoRALinear):
            continue
        rule, names = sources_in_memory(f"{path}.weight", config)
        blocks = {rows: name for name, rows in lora.rows_of(config, path).items()} if path.endswith("attn.qkv") else {}
        for index, rows in enumerate(layer.blocks):
            block = blocks.get((rows[0], rows[1]), "")
            name = names[lora.BLOCKS.index(block) if isinstance(rule, Separate) else 0].removesuffix(".weight")
            found.append(Piece(path, index, block=block, layer=layer, theirs=name, rule=rule))
    return found


def all_pieces(config: Config) -> list[Piece]:
    """Returns every update that their modules can have."""
    flags: dict[str, Any] = {f"lora_{name}": True for name in LORA_TARGETS}
    return pieces(config, LoRAArgs(lora_r=1, **flags))


def flag_of(piece: Piece) -> str:
    """Returns the LoRA flag that adds this update."""
    if piece.block:
        return f"lora_{piece.block}"
    if piece.path == "lm_head":
        return "lora_head"
    if piece.path.endswith(("attn.proj", "attn.out_proj")):
        return "lora_projection"
    if ".per_layer." in piece.path:
        return "lora_per_layer"
    return "lora_query" if ".attn." in piece.path else "lora_mlp"


class Base:
    """The parameters of one of our checkpoints, under our names and under theirs.

    Args:
        get: reads a tensor of the checkpoint by our name.
        own: parameters that replace the checkpoint's, by our names.
    """

    def __init__(self, config: Config, get: Callable[[str], Tensor], own: Mapping[str, Tensor] | None = None) -> None:
        with torch.device("meta"):
            model = GPT(config)
        self.config, self.get, self.own = config, get, own or {}
        self.shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
        self.linear = {path for path, module in model.named_modules() if isinstance(module, LinearLayer)}
        self.modules: dict[str, list[str]] = {}
        """Names of our modules that each of their modules holds."""
        for path in dict.fromkeys(name.rpartition(".")[0] for name in self.shapes):
            for source in sources_in_memory(f"{path}.weight", config)[1]:
                self.modules.setdefault(source.removesuffix(".weight"), []).append(path)

    def shape(self, name: str) -> list[int] | None:
        """Returns the shape of one of our parameters, also of the missing bias of a linear layer."""
        module, _, leaf = name.rpartition(".")
        if name not in self.shapes and leaf == "bias" and module in self.linear:
            return self.shapes[f"{module}.weight"][:1]
        return self.shapes.get(name)

    def ours(self, name: str) -> Tensor:
        """Returns one of our parameters; zeros for the missing bias of a linear layer."""
        if name in self.own:
            return self.own[name]
        if name not in self.shapes:
            shape = self.shape(name)
            assert shape is not None, name
            return torch.zeros(shape)
        return self.get(EMBEDDINGS if name == HEAD and self.config.tie_embeddings else name)

    def their_shape(self, name: str) -> list[int]:
        """Returns the shape of one of their parameters; reads nothing."""
        return list(self._without_values.known(name).shape)

    @cached_property
    def _without_values(self) -> "Base":
        return Base(self.config, lambda ours: torch.empty(self.shapes[ours], device="meta"))

    def theirs(self, name: str) -> Tensor | None:
        """Returns one of their parameters; None if the Hugging Face model has none of this name."""
        module, _, leaf = name.rpartition(".")
        found: list[tuple[Rule, Tensor]] = []
        for ours in self._held_by(module, leaf):
            rule, sources = sources_in_memory(ours, self.config)
            part = dict(zip(sources, unpack(rule, self.ours(ours), config_of(ours, self.config)), strict=True))[name]
            found.append((rule, part))
        if len(found) < 2:
            return found[0][1] if found else None
        return joined(found, self.config)

    def _held_by(self, module: str, leaf: str) -> list[str]:
        """Returns our parameters that one of theirs holds; a module may hold some of several of ours."""
        return [name for path in self.modules.get(module, ()) if self.shape(name := f"{path}.{leaf}") is not None]

    def known(self, name: str) -> Tensor:
        """Returns one of their parameters, which their model must have."""
        x = self.theirs(name)
        assert x is not None, name
        return x

    def rows(self, name: str, x: Tensor) -> Tensor:
        """Returns a tensor of the vocabulary, extended by the checkpoint's rows that `x` lacks; any other unchanged.

        Raises:
            UserError: `x` has more rows than the checkpoint.
        """
        n = self.config.padded_vocab_size
        if not self.has_vocabulary(name) or len(x) == n:
            return x
        if len(x) > n:
            raise UserError(
                f"the adapter's {name} has {len(x):,} rows and the checkpoint {n:,}: tokens were added before "
                f"it was trained; load the base with transformers, resize_token_embeddings({len(x)}), save_pretrained "
                "it with the tokenizer, and convert that folder"
            )
        return torch.cat((x, self.known(name)[len(x) :].to(x.dtype)))

    def has_vocabulary(self, name: str) -> bool:
        """Returns whether one of their parameters has a row for each token."""
        module, _, leaf = name.rpartition(".")
        return f"{self.modules[module][0]}.{leaf}" in VOCABULARY

    def to_ours(self, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns our parameters made from some of theirs; what those lack is taken from the checkpoint.

        Raises:
            UserError: a parameter has another shape than in the model.
        """
        found: dict[str, Tensor] = {}
        for name in theirs:
            module, _, leaf = name.rpartition(".")
            for ours in self._held_by(module, leaf):
                rule, sources = sources_in_memory(ours, self.config)
                parts, shape = [theirs[s] if s in theirs else self.known(s) for s in sources], self.shape(ours)
                assert shape is not None, ours
                x = pack(rule, parts, shape, config_of(ours, self.config))
                if x is None or list(x.shape) != shape:
                    raise UserError(f"the adapter's {name} has the shape {list(theirs[name].shape)}, which is not that "
                                    f"of {self.config.name}")  # fmt: skip
                found[ours] = x
        return found
