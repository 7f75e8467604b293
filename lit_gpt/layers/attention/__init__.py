"""Attention within packed documents, which lie end to end in one row without padding.

Shapes: T tokens of a row, H query heads, G key/value heads, D head size, R = H / G; L queries and S keys of one
document, where S > L if the document begins with a shared prefix, whose queries are computed elsewhere.
"""

from lit_gpt.layers.attention.attention import PackedAttention, attended, attended_backward, rotated, rotated_back
from lit_gpt.layers.attention.documents import Documents, SharedPrefixes
from lit_gpt.layers.attention.flash import flash_can
from lit_gpt.layers.attention.heads import Heads, from_groups, split, to_groups
from lit_gpt.layers.attention.sinks import softmax_with_sinks

__all__ = [
    "Documents",
    "Heads",
    "PackedAttention",
    "SharedPrefixes",
    "attended",
    "attended_backward",
    "flash_can",
    "from_groups",
    "rotated",
    "rotated_back",
    "softmax_with_sinks",
    "split",
    "to_groups",
]
