"""The configuration of a decoder, as plain data that does not need torch."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from lit_gpt.args.formats import read_record, with_format
from lit_gpt.errors import UserError, shown
from lit_gpt.layer_heads import kv_source, of_layer
from lit_gpt.limits import check_heads_and_experts, check_layers, check_rope_scaling, check_values
from lit_gpt.records import require_types


@dataclass
class Config:
    """Sizes and traits of one decoder; `lit_gpt/model.py` reads every field but the first four.

    Raises:
        UserError: sizes contradict each other, or a field has an impossible value.
    """

    name: str = ""
    """Short name, e.g. `pythia-160m`."""
    hf_repo: str = ""
    """Hugging Face repository the weights come from, `org/name`; empty if they come from somewhere else."""
    architecture: str = ""
    """Key of `lit_gpt.families.ARCHITECTURES`, whose tensor names the checkpoint had, e.g. `gpt_neox`."""

    wrapper: str = ""
    """Class of the multimodal checkpoint that the decoder was taken from, as its config.json names it; empty if it is a
    checkpoint of text alone."""

    # sizes
    n_layer: int = 16
    n_head: int = 32
    n_embd: int = 4096
    head_size: int = 0
    """Channels per head; 0 means n_embd / n_head."""
    n_query_groups: int = 0
    """Key/value heads; 0 means n_head. n_head is MHA, 1 is MQA, in between is GQA (arXiv:2305.13245)."""
    intermediate_size: int = 0
    """Hidden channels of the MLP; 0 means 4 * n_embd."""
    block_size: int = 2048
    """Longest sequence, in tokens."""
    vocab_size: int = 50254
    """Tokens the tokenizer knows."""
    padding_multiple: int = 512
    padded_vocab_size: int = 0
    """Rows of the embedding table; 0 means vocab_size rounded up to a multiple of padding_multiple."""

    # the block
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    norm_unit_offset: bool = False
    """Whether norms scale by 1 + weight (Gemma, Nemotron)."""
    pre_norm: bool = True
    """Whether the inputs of attention and MLP are normalized."""
    post_norm: bool = False
    """Whether the outputs of attention and MLP are normalized before they are added (Gemma 2, OLMo 2)."""
    mlp: Literal["plain", "gated", "moe"] = "plain"
    """`moe` is a mixture of gated MLPs (arXiv:2401.04088), or of plain ones, see `plain_experts`."""
    mlp_layers: list[int] | None = None
    """Layers that have an MLP; None means all of them."""
    activation: Literal["gelu", "gelu_tanh", "silu", "relu2", "xielu", "clamped_swiglu"] = "gelu"
    """`relu2` is the square of ReLU (arXiv:2109.08668), `xielu` has two trained scalars in each layer
    (arXiv:2411.13010), `clamped_swiglu` is that of gpt-oss (arXiv:2508.10925)."""
    n_expert: int = 0
    """MLPs (experts) in each layer of a mixture."""
    n_expert_per_token: int = 0
    """Experts that each token goes through."""
    router: Literal["softmax", "sigmoid", "sigmoid_of_inputs"] = "softmax"
    """What weighs the chosen experts: the softmax of their scores, or the sigmoid of each, divided by the sum
    (arXiv:2412.19437); with `sigmoid_of_inputs` it scales what the expert reads, undivided (Llama 4)."""
    router_scale: float = 1.0
    """Factor of the weights that are divided by their sum."""
    router_bias: bool = False
    """Whether the scores by which experts are chosen have a bias (gpt-oss)."""
    router_choice_bias: bool = False
    """Whether the sigmoids have a bias that counts in choosing experts and not in their weights (GLM-4.5)."""
    router_groups: int = 1
    router_groups_per_token: int = 1
    """Groups of experts, and how many of them the experts of a token may come from."""
    shared_expert_size: int = 0
    """Hidden channels of an expert that all tokens go through besides; 0 means that there is none."""
    shared_expert_gate: bool = False
    """Whether its output is multiplied by the sigmoid of a projection of its input (Qwen3-Next)."""
    plain_experts: bool = False
    """Whether the experts of a mixture are plain MLPs (Nemotron-H)."""
    latent_size: int = 0
    """Channels to which a token is projected before the experts that are chosen for it, and back after them; 0 means
    that they read and write n_embd."""
    dense_layers: list[int] | None = None
    """Layers of a mixture that have a single MLP instead, gated or plain as the experts are."""
    dense_size: int = 0
    """Hidden channels of that MLP; 0 means intermediate_size."""
    dense_beside_experts: bool = False
    """Whether the layers of a mixture have such an MLP, too, and norms for each of the two (Gemma 4)."""
    kv_shared_mlp_size: int = 0
    """Hidden channels of the MLP in the layers of `kv_shared_layers`; 0 means intermediate_size."""
    per_layer_input_size: int = 0
    """Channels of what each layer reads of the tokens besides, from a table of its own (Gemma 4); 0 means nothing."""
    layer_scale: bool = False
    """Whether the output of each layer is multiplied by a constant of the checkpoint (Gemma 4)."""
    parallel_residual: bool = True
    """Whether a block computes x + attn(norm(x)) + mlp(norm(x)) rather than one after the other."""
    shared_attention_norm: bool = False
    """Whether, in a parallel block, the MLP reads the same norm's output as attention: there is no second norm."""
    qkv_bias: bool = False
    proj_bias: bool = False
    """Bias of attention's output projection."""
    mlp_bias: bool = False
    lm_head_bias: bool = False
    tie_embeddings: bool = False
    """Whether the output projection shares its weight with the embedding table."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied by the square root of n_embd (Gemma)."""
    embedding_factor: float = 1.0
    """Factor of the embeddings (Granite)."""
    residual_factor: float = 1.0
    """Factor of the outputs of attention and MLP before they are added (Granite)."""
    logit_divisor: float = 1.0
    """Divisor of the logits (Granite)."""
    final_logit_softcapping: float = 0.0
    """Soft cap c of the logits x, which become c * tanh(x / c); 0 means none (arXiv:2408.00118)."""

    # mixing of tokens
    mixers: list[str] | None = None
    """What mixes the tokens in each layer: `attention`, `conv` (a short convolution, arXiv:2511.23404), `delta` (the
    gated delta rule, arXiv:2412.06464), `mamba2` (arXiv:2405.21060), or `none` where a layer is an MLP alone; None
    means attention in all layers."""
    conv_size: int = 0
    """Tokens that a short convolution sees, the present one included."""
    conv_bias: bool = False
    """Whether short convolutions have biases, and in LFM2 the other parts of their layers."""
    delta_key_heads: int = 0
    delta_value_heads: int = 0
    """Heads of the gated delta rule; as many value heads in a row share a key head as there are more of them."""
    delta_key_size: int = 0
    delta_value_size: int = 0
    """Channels of its heads."""
    ssm_heads: int = 0
    ssm_head_size: int = 0
    ssm_state_size: int = 0
    ssm_groups: int = 1
    """Heads of Mamba-2, their channels, those of a head's state, and groups of heads that share what is written to the
    state and read from it."""
    ssm_min_step: float = 0.0
    """Smallest time step of Mamba-2."""

    # attention
    attention_gate: bool = False
    """Whether the output of attention is multiplied by the sigmoid of a projection of its input (Qwen3-Next)."""
    qk_norm: Literal["none", "head", "full", "per_head", "unweighted"] = "none"
    """Norm of queries and keys: over a head's channels with one weight for all heads (Qwen 3), over all heads' channels
    (OLMo 2), over a head's channels with a weight for each head (StableLM 2 12B), or without a weight in the layers
    that rotate (Llama 4)."""
    value_norm: bool = False
    """Whether the values of each head have a norm, without a weight (Gemma 4)."""
    full_head_size: int = 0
    full_query_groups: int = 0
    """Channels per head, and key/value heads, of the layers without the sliding window; 0 means as in the others."""
    keys_as_values: bool = False
    """Whether values of those layers are what keys are before their norm (Gemma 4)."""
    kv_shared_layers: int = 0
    """Number of layers, the last ones, that take keys and values of an earlier layer (Gemma 4), see `kv_source`."""
    rotates_first: bool = False
    """Whether queries and keys are rotated before their norm rather than after it (Hunyuan, Llama 4)."""
    attention_sinks: bool = False
    """Whether the softmax of each head has a trained logit beside the scores, whose share is dropped (gpt-oss)."""
    query_pre_attn_scalar: float = 0.0
    """Number whose square root divides the attention scores; 0 means head_size."""
    attn_logit_softcapping: float = 0.0
    """Soft cap of attention scores, computed like final_logit_softcapping."""
    sliding_window: int = 0
    """Number of tokens that a position attends to, itself included; 0 means no limit."""
    sliding_layers: list[int] | None = None
    """Layers with the window; None means all of them."""

    # rotary embeddings
    rotary_percentage: float = 0.25
    """Fraction of each head's channels that is rotated."""
    rope_base: float = 10000.0
    rope_condense_ratio: float = 1.0
    """Divisor of positions (linear rope scaling, arXiv:2306.15595)."""
    rope_scaling: dict[str, Any] | None = None
    """Another rope scaling: `type` (llama3, yarn or longrope) and its parameters, named as in Hugging Face's
    config.json."""
    unrotated_layers: list[int] | None = None
    """Layers that do not rotate queries and keys (arXiv:2501.18795); None means that all layers rotate."""
    rope_local_base: float = 0.0
    """Base for the layers with the sliding window, whose rotation is not scaled (arXiv:2503.19786); 0 means the same
    rotation as in other layers."""

    def __str__(self) -> str:
        """Returns the fields whose values are not the default ones."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def __post_init__(self) -> None:
        check_values(self, HINTS)
        if not self.head_size:
            if self.n_embd % self.n_head:
                raise UserError(f"{self.name}: n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
            self.head_size = self.n_embd // self.n_head
        self.n_query_groups = self.n_query_groups or self.n_head
        check_heads_and_experts(self)
        check_layers(self)
        self.intermediate_size = self.intermediate_size or 4 * self.n_embd
        rounded_up = math.ceil(self.vocab_size / self.padding_multiple) * self.padding_multiple
        self.padded_vocab_size = self.padded_vocab_size or rounded_up
        self.vocab_size = min(self.vocab_size, self.padded_vocab_size)
        check_rope_scaling(self)

    @property
    def rope_n_elem(self) -> int:
        """Channels of each head that are rotated."""
        return int(self.rotary_percentage * self.head_size)

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Output channels of q, k and v, in the order `attn.qkv` stacks them."""
        kv = self.n_query_groups * self.head_size
        return self.n_head * self.head_size, kv, kv

    @property
    def is_plain(self) -> bool:
        """Whether the code that is written for decoding alone, on GPUs and CPUs, knows all that this decoder has."""
        special = self.attention_sinks or self.rotates_first or self.attention_gate or self.mixers is not None
        special = special or self.value_norm or self.kv_shared_layers or self.per_layer_input_size or self.layer_scale
        return self.activation in ("gelu", "gelu_tanh", "silu") and not special

    @property
    def delta_sizes(self) -> tuple[int, int, int]:
        """Channels of queries, keys and values of the gated delta rule."""
        keys = self.delta_key_heads * self.delta_key_size
        return keys, keys, self.delta_value_heads * self.delta_value_size

    @property
    def ssm_sizes(self) -> tuple[int, int, int]:
        """Channels of inputs, of what is written to the state, and of what is read from it (Mamba-2)."""
        groups = self.ssm_groups * self.ssm_state_size
        return self.ssm_heads * self.ssm_head_size, groups, groups

    def mlp_of(self, layer: int) -> tuple[str, int]:
        """Returns the kind of a layer's MLP and its hidden channels, those of one expert in a mixture.

        The kind is one of the field `mlp`, or `none`.
        """
        if self.mlp_layers is not None and layer not in self.mlp_layers:
            return "none", 0
        if self.mlp == "moe" and layer in (self.dense_layers or ()):
            return "plain" if self.plain_experts else "gated", self.dense_size or self.intermediate_size
        if self.kv_shared_mlp_size and kv_source(self, layer) != layer:
            return self.mlp, self.kv_shared_mlp_size
        return self.mlp, self.intermediate_size

    def mixer(self, layer: int) -> str:
        """Returns what mixes the tokens in a layer, `attention`, `conv`, `delta`, `mamba2` or `none`."""
        return self.mixers[layer] if self.mixers is not None else "attention"

    def cached(self, layer: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns what a layer keeps of each token, as (heads, channels) of keys and of values."""
        heads = of_layer(self, layer)
        head = heads.n_query_groups, heads.head_size if kv_source(self, layer) == layer else 0
        others = {"none": 0, "conv": self.n_embd, "delta": sum(self.delta_sizes) + 2 * self.delta_value_heads}
        others["mamba2"] = sum(self.ssm_sizes) + self.ssm_heads
        n = others.get(self.mixer(layer))
        return (head, head) if n is None else ((1, n), (1, 0))

    def is_sliding(self, layer: int) -> bool:
        """Returns whether a layer has the sliding window."""
        return self.sliding_window > 0 and (self.sliding_layers is None or layer in self.sliding_layers)

    def rotation(self, layer: int) -> Literal["usual", "local", "none"]:
        """Returns how a layer rotates: by `rope_base` and its scaling, by `rope_local_base`, or not at all."""
        if layer in (self.unrotated_layers or ()):
            return "none"
        return "local" if self.rope_local_base and self.is_sliding(layer) else "usual"

    @classmethod
    def from_json(cls, path: Path) -> "Config":
        """Returns the configuration that `to_json` wrote.

        Raises:
            UserError: the file is not JSON, a field is unknown, or a value is of the wrong type or impossible.
        """
        remedy = "run scripts/convert_hf_checkpoint.py again"
        values = read_record(path, remedy)
        if unknown := sorted(values.keys() - {f.name for f in fields(cls)}):
            raise UserError(f"{path} is not a configuration of this toolkit: it has {shown(unknown[0])}; {remedy}")
        require_types(str(path), values, HINTS, remedy)
        try:
            return cls(**values)
        except UserError as e:
            raise UserError(f"{path}: {e}; {remedy}") from e

    def to_json(self, path: Path) -> None:
        record = with_format("lit_config.json", asdict(self))
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


HINTS = get_type_hints(Config)
"""Type of each field."""
