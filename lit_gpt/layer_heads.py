"""The heads of each layer, where layers differ: their number and size, and whose keys and values a layer attends to."""

from dataclasses import replace
from typing import Any


def of_layer(config: Any, layer: int) -> Any:
    """Returns a Config whose heads are those of a layer: the layers without the sliding window may have others."""
    if config.is_sliding(layer):
        return config
    return of_full_layers(config)


def of_full_layers(config: Any) -> Any:
    """Returns a Config whose heads are those of the layers without the sliding window."""
    if not (config.full_head_size or config.full_query_groups):
        return config
    size, groups = config.full_head_size or config.head_size, config.full_query_groups or config.n_query_groups
    return replace(config, head_size=size, n_query_groups=groups, full_head_size=0, full_query_groups=0)


def kv_source(config: Any, layer: int) -> int:
    """Returns the layer whose keys and values a layer attends to.

    That is the layer itself, but for the last ones of a model that shares them: they take those of the last layer of
    their kind that has its own, with the sliding window or without it.
    """
    n_own = config.n_layer - config.kv_shared_layers
    if layer < n_own:
        return layer
    return next(i for i in reversed(range(n_own)) if config.is_sliding(i) == config.is_sliding(layer))


def kv_sources(config: Any) -> set[int]:
    """Returns the layers whose keys and values others attend to, too."""
    n = config.n_layer
    return {kv_source(config, i) for i in range(n - config.kv_shared_layers, n)}


def stacked_sizes(config: Any, layer: int) -> tuple[int, int, int]:
    """Returns the output channels of q, k and v that a layer's `attn.qkv` stacks; none of what it takes elsewhere."""
    q, k, v = of_layer(config, layer).qkv_sizes
    if kv_source(config, layer) != layer:
        return q, 0, 0
    return q, k, 0 if config.keys_as_values and not config.is_sliding(layer) else v
