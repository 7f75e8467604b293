"""Maps the tensors of our architectures to those of gguf files."""

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.families.family import Part, Separate


@dataclass(frozen=True)
class _Expert:
    """One expert's block of a gguf tensor that stacks all experts of a layer."""

    name: str


_Location = str | Separate | Part | _Expert
FUSED = "blk.{}.attn_qkv"

_LOCATIONS: dict[str, _Location] = {  # our module -> name in the file; `{}` stands for the layer
    "transformer.wte": "token_embd",
    "transformer.h.{}.norm_1": "blk.{}.attn_norm",
    "transformer.h.{}.attn.qkv": Separate("blk.{}.attn_{qkv}", ("q", "k", "v")),
    "transformer.h.{}.attn.norm_q": "blk.{}.attn_q_norm",
    "transformer.h.{}.attn.norm_k": "blk.{}.attn_k_norm",
    "transformer.h.{}.attn.proj": "blk.{}.attn_output",
    "transformer.h.{}.post_attention_norm": "blk.{}.post_attention_norm",
    "transformer.h.{}.norm_2": "blk.{}.ffn_norm",
    "transformer.h.{}.mlp.fc": "blk.{}.ffn_up",
    "transformer.h.{}.mlp.fc_1": "blk.{}.ffn_gate",
    "transformer.h.{}.mlp.fc_2": "blk.{}.ffn_up",
    "transformer.h.{}.mlp.proj": "blk.{}.ffn_down",
    "transformer.h.{}.mlp.gate": "blk.{}.ffn_gate_inp",
    "transformer.h.{}.mlp.experts.{}.fc_1": _Expert("blk.{}.ffn_gate_exps"),
    "transformer.h.{}.mlp.experts.{}.fc_2": _Expert("blk.{}.ffn_up_exps"),
    "transformer.h.{}.mlp.experts.{}.proj": _Expert("blk.{}.ffn_down_exps"),
    "transformer.h.{}.post_mlp_norm": "blk.{}.post_ffw_norm",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}


@dataclass(frozen=True)
class Layout:
    """What llama.cpp's implementation of one of our architectures looks like."""

    name: str
    """Value of `general.architecture`."""
    locations: dict[str, _Location] = field(default_factory=dict)
    """Entries that differ from `_LOCATIONS`."""
    pairs: bool = False
    """Whether neighboring channels of queries and keys are rotated in pairs, so that each head's rows are reordered."""
    biases: tuple[str, ...] = ()
    """Fields of Config for optional biases."""
    has_window: bool = False
    """Whether the file states the sliding window."""
    hides: bool = False
    """Whether llama.cpp applies the sliding window."""
    scalings: tuple[str, ...] = ("yarn",)
    """Supported kinds of rope scaling besides the linear one."""
    unrotated: int = 0
    """Period of the layers without rotary embeddings; 0 if all layers have them."""
    windowless: int = 0
    """Period of the layers without the sliding window; 0 if all layers have it."""
    head: Literal["either", "own", "tied"] = "either"
    """Whether the file must have an output projection ("own"), must not have one, so that the embeddings serve as it
    ("tied"), or may do either."""
    multipliers: bool = False
    """Whether the file states the factors of embeddings, residuals, scores and logits."""
    window_of: tuple[int, int] | None = None
    """Number of layers by which llama.cpp recognizes the model with a window, and the window; None if the file says."""
    narrow: bool = False
    """Whether the channels of all heads together are those of the embeddings."""
    rotates_windows: bool = False
    """Whether the layers without the sliding window, if the others have one, are those without rotary embeddings."""
    local_base: Literal["none", "same", "own"] = "none"
    """Rope base of the layers with a window, if their rotation is not scaled like that of the others: the same base, or
    one of their own that the file states."""


_ATTENTION, _ALL = ("qkv_bias", "proj_bias"), ("qkv_bias", "proj_bias", "mlp_bias")
_FUSED_QKV: dict[str, _Location] = {"transformer.h.{}.attn.qkv": FUSED}
_GATE_UP: dict[str, _Location] = {
    "transformer.h.{}.mlp.fc_1": Part("blk.{}.ffn_up", 0),
    "transformer.h.{}.mlp.fc_2": Part("blk.{}.ffn_up", 1),
}
_TWO_NORMS: dict[str, _Location] = {  # Falcon 40B's norm of the MLP has the name that 7B's norm of both has
    "transformer.h.{}.norm_1": "blk.{}.attn_norm_2",
    "transformer.h.{}.norm_2": "blk.{}.attn_norm",
}
_LLAMA = Layout("llama", pairs=True, biases=_ALL, scalings=("yarn", "llama3", "longrope"))
_FALCON = Layout("falcon", _FUSED_QKV)
LAYOUTS = {  # our architecture -> llama.cpp's
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "gpt_neox": Layout("gptneox", _FUSED_QKV, head="own"),
    "falcon": _FALCON,
    "falcon-40b": Layout("falcon", _FUSED_QKV | _TWO_NORMS),
    "falcon-11b": _FALCON,
    "phi": Layout("phi2", head="own"),
    "phi3": Layout("phi3", _FUSED_QKV | _GATE_UP, has_window=True, scalings=("longrope",)),
    "gemma": Layout("gemma", head="tied"),
    "gemma2": Layout("gemma2", head="tied", has_window=True, hides=True, windowless=2),
    "gemma3": Layout("gemma3", has_window=True, hides=True, windowless=6, local_base="own", scalings=()),
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
    "qwen3_moe": Layout("qwen3moe"),
    "olmo2": Layout("olmo2", head="own"),
    "olmo3": Layout("olmo2", head="own", has_window=True, hides=True, windowless=4, local_base="same"),
    "granite": Layout("granite", pairs=True, biases=_ALL, scalings=("yarn", "llama3"), multipliers=True),
    "seed_oss": Layout(
        "seed_oss", {"transformer.h.{}.norm_2": "blk.{}.post_attention_norm"}, biases=("qkv_bias",), head="own"
    ),
    "exaone4": Layout(
        "exaone4",
        has_window=True,
        hides=True,
        windowless=4,
        rotates_windows=True,
        window_of=(64, 4096),
        scalings=("llama3",),
    ),
    "glm4": Layout("glm4", _GATE_UP, pairs=True, biases=("qkv_bias",)),
    "hunyuan_v1_dense": Layout("hunyuan-dense"),
    "nemotron": Layout("nemotron", head="own", narrow=True),
    "smollm3": Layout("smollm3", pairs=True, unrotated=4),
    "stablelm": Layout("stablelm", biases=("qkv_bias",), head="own"),
}


def every(period: int, n_layer: int) -> list[int]:
    """Returns every `period`-th index of `n_layer` layers; none if `period` is 0."""
    return list(range(period - 1, n_layer, period)) if period else []


def unlike(config: Config, field: str) -> UserError:
    """Returns the error for a model with a value of a field that llama.cpp does not support."""
    value = getattr(config, field)
    return UserError(f"{config.name}: llama.cpp has no {config.architecture} model with {field}={value!r}")


def is_norm(name: str) -> bool:
    """Returns whether one of our tensors belongs to a norm."""
    return "norm" in name or ".ln_f." in name


class Piece(NamedTuple):
    """A tensor of a file or, if `of` is more than 1, one of `of` equal blocks of it."""

    tensor: str
    index: int = 0
    of: int = 1
    is_stacked: bool = False
    """Whether the blocks are stacked along a leading dimension of their own."""
    heads: int = 0
    """Number of heads whose rows are reordered; 0 if none are."""


def pieces(name: str, config: Config, is_fused: bool = False) -> list[Piece]:
    """Returns the pieces of a file that, concatenated along their rows, make up one of our tensors.

    Args:
        is_fused: whether the file has queries, keys and values in one tensor, whatever the layout says.
    """
    module, _, parameter = name.rpartition(".")
    number = re.compile(r"(?<=\.)\d+(?=\.|$)")
    numbers = [int(n) for n in number.findall(module)]
    layout = LAYOUTS[config.architecture]
    key = number.sub("{}", module)
    location = {**_LOCATIONS, **layout.locations, **(_FUSED_QKV if is_fused else {})}[key]

    def named(template: str) -> str:
        return f"{template.format(*numbers)}.{parameter}"

    match location:
        case Separate():
            heads = (config.n_head, config.n_query_groups, 0) if layout.pairs else (0, 0, 0)
            return [Piece(named(s), heads=h) for s, h in zip(location.sources, heads, strict=True)]
        case Part():
            return [Piece(named(location.name), location.index, location.of)]
        case _Expert():
            return [Piece(named(location.name), numbers[1], config.n_expert, is_stacked=True)]
        case _:
            return [Piece(named(location))]
