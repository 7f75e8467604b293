"""What the kinds of tests/conftest.py are made of, and a few of them that have every part that any of them has.

A family is a table; what a packed row, a cache, a shared prefix or the engine may get wrong is a part that computes:
attention and its traits, another mixing layer, a rotation, a norm, an MLP, a router. A test of such a promise runs over
ONE_OF_EACH. Parity with transformers and what is written for others run over all kinds, since they test the tables.
"""

ONE_OF_EACH = (
    "llama-gqa",
    "llama-linear",
    "llama-long",
    "neox-full-rotary",
    "falcon",
    "mistral",
    "gemma2",
    "olmo3",
    "stablelm-12b",
    "nemotron",
    "apertus",
    "gpt-oss",
    "lfm2",
    "qwen3-next",
    "granite4",
    "nemotron-h-moe",
    "glm4-moe",
    "llama4",
    "gemma4",
    "gemma4-moe",
)
DECODED = ("llama", "llama-gqa", "llama-mqa", "neox", "falcon", "mistral", "mixtral", "gemma2", "qwen2")
DECODED += ("qwen3", "olmo2", "stablelm-12b", "phi3-long", "phi3-short", "smollm3", "gemma3", "olmo3")
"""Kinds whose decoding over rooms of a cache is compared with the model by itself."""
TRACED = ("llama-gqa", "neox", "falcon", "mistral", "gemma2", "stablelm-12b", "phi3-long", "smollm3", "gemma3", "olmo3")
"""Those of them that torch.compile traces there, which takes seconds: they have every part that any of them has, but
for experts, which cannot be compiled."""
_EQUAL = ("norm", "norm_unit_offset", "pre_norm", "post_norm", "qk_norm", "activation", "attention_gate", "router")
_EQUAL += ("attention_sinks", "rotates_first", "qkv_bias", "mlp_bias", "shared_expert_gate", "tie_embeddings")
_EQUAL += ("value_norm", "keys_as_values", "layer_scale", "dense_beside_experts", "plain_experts")
"""Fields of Config of which every value is a part."""
_ON = ("attn_logit_softcapping", "final_logit_softcapping", "residual_factor", "logit_divisor", "embedding_factor")
_ON += ("scale_embeddings", "router_groups", "shared_expert_size", "dense_layers", "rope_condense_ratio")
_ON += ("full_head_size", "full_query_groups", "kv_shared_layers", "kv_shared_mlp_size", "per_layer_input_size")
_ON += ("latent_size", "ssm_min_step")
"""Fields that are parts where they are not neutral."""


def parts_of(c) -> set[tuple]:
    """What the decoder of a configuration is made of."""
    shared = "MHA" if c.n_query_groups == c.n_head else "MQA" if c.n_query_groups == 1 else "GQA"
    found = {("heads", shared), ("scaling", (c.rope_scaling or {}).get("type"))}
    found |= {("parallel", c.parallel_residual, c.shared_attention_norm), ("partial", c.rotary_percentage < 1)}
    found |= {("windows", tuple(sorted({c.is_sliding(i) for i in range(c.n_layer)})))}
    for i in range(c.n_layer):
        found |= {("mixing", c.mixer(i)), ("mlp", c.mlp_of(i)[0]), ("rotation", c.rotation(i))}
    found |= {(field, getattr(c, field)) for field in _EQUAL}
    return found | {(field, getattr(c, field) not in (0, 1, False, None)) for field in _ON}
