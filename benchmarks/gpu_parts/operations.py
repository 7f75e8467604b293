"""Floating-point operations and bytes that a job needs, counted by hand from the model's shape."""

from collections.abc import Sequence

from gpu_parts.documents import Document, n_targets

from lit_gpt.args import LoRAArgs
from lit_gpt.config import Config


def body_parameters(config: Config) -> int:
    """Weights of the matrix products of all blocks of a gated decoder."""
    heads = config.n_head * config.head_size
    attention = config.n_embd * sum(config.qkv_sizes) + heads * config.n_embd
    return config.n_layer * (attention + 3 * config.n_embd * config.intermediate_size)


def head_parameters(config: Config) -> int:
    return config.n_embd * config.padded_vocab_size


def lora_parameters(config: Config, args: LoRAArgs) -> int:
    """Weights that LoRA trains."""
    q, k, v = config.qkv_sizes
    c, ff = config.n_embd, config.intermediate_size
    layers = {
        (c, q): args.lora_query,
        (c, k, "k"): args.lora_key,
        (c, v, "v"): args.lora_value,
        (q, c, "o"): args.lora_projection,
        (c, ff, "gate"): args.lora_mlp,
        (c, ff, "up"): args.lora_mlp,
        (ff, c, "down"): args.lora_mlp,
    }
    return config.n_layer * args.lora_r * sum(s[0] + s[1] for s, adapted in layers.items() if adapted)


def lora_step(config: Config, args: LoRAArgs, documents: Sequence[Document], head_everywhere: bool = False) -> float:
    """Operations of forward and backward over the documents, without recomputing anything.

    A frozen weight takes 2 a token forward and 2 for the gradient of its input, a trained one 2 more. Attention takes
    2 * T * heads * head_size a token and layer forward (its causal half), and twice that backward.

    Args:
        head_everywhere: count the output projection for every token, not only for those that predict a target.
    """
    total = 0.0
    for ids, _ in documents:
        length = len(ids)
        total += length * (4 * body_parameters(config) + 6 * lora_parameters(config, args))
        total += 3 * 2 * length**2 * config.n_layer * config.n_head * config.head_size
    predicting = sum(len(ids) for ids, _ in documents) if head_everywhere else n_targets(documents)
    return total + 4 * head_parameters(config) * predicting


def decode_bytes(config: Config, bytes_per_weight: float = 2.0) -> float:
    """Bytes of weights that drawing one token reads: all but the table of input embeddings; the head in 16 bits."""
    return bytes_per_weight * body_parameters(config) + 2 * head_parameters(config)


def cache_bytes(config: Config, length: int) -> float:
    """Bytes of keys and values of `length` positions, in 16 bits."""
    return 2 * 2 * config.n_layer * config.n_query_groups * config.head_size * length
