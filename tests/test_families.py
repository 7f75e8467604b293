"""The families: the table of docs/models.md is theirs, and the page on adding one is true."""

import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf, config_to_hf
from lit_gpt.convert.names import from_hf, to_hf
from lit_gpt.errors import UserError
from lit_gpt.families import ARCHITECTURES, config_for
from lit_gpt.families.overview import overview
from lit_gpt.layers.attention import Documents
from lit_gpt.model import GPT, _LayerCache


def test_the_page_on_models_has_the_table_of_families():
    assert overview() in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_example_of_the_docs_is_a_family(monkeypatch):
    page = (ROOT / "docs" / "add_a_family.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope: dict = {}
    exec(code, scope)
    acme = scope["ACME"]
    monkeypatch.setitem(ARCHITECTURES, acme.name, acme)
    hf = {
        "architectures": ["AcmeForCausalLM"],
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "vocab_size": 96,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    }
    config = config_from_hf(hf, "acme-tiny", "config.json")
    assert config_from_hf(config_to_hf(config), "acme-tiny", "config.json") == config
    state = GPT(config).state_dict()
    theirs = to_hf(config, state)
    assert "model.layers.1.self_attn.q_proj.bias" in theirs and "model.layers.0.self_attn.k_norm.weight" in theirs
    back = from_hf(config, theirs, theirs.__getitem__)
    assert all(torch.equal(back[name], x) for name, x in state.items())
    assert list(scope["FAMILY"].configs) == ["acme-1b"]


def test_the_mixing_layer_of_the_docs_sees_its_own_document_and_what_is_in_the_cache():
    page = (ROOT / "docs" / "add_a_family.md").read_text(encoding="utf-8")
    _, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope: dict = {}
    exec(code, scope)
    layer = scope["TokenShift"](replace(config_for("pythia-70m"), n_embd=16))
    x, cache = torch.randn(1, 12, 16), _LayerCache(torch.zeros(1, 1, 12, 16), torch.zeros(1, 1, 12, 0))
    with torch.no_grad():
        alone = [layer(part, x, x) for part in x.split((5, 7), 1)]
        packed = layer(x, x, x, documents=Documents.of((5, 7)))
        torch.testing.assert_close(packed, torch.cat(alone, 1))
        steps = [layer(x[:, at], x, x, None, cache, at) for at in torch.arange(12).split((6, 1, 5))]
        torch.testing.assert_close(torch.cat(steps, 1), layer(x, x, x))


HUB = {  # what config.json says in repositories of the hub, the keys that decide and some that do not
    "falcon-7b": {
        "architectures": ["FalconForCausalLM"], "alibi": False, "apply_residual_connection_post_layernorm": False,
        "bias": False, "hidden_size": 4544, "layer_norm_epsilon": 1e-5, "model_type": "falcon", "multi_query": True,
        "new_decoder_architecture": False, "num_attention_heads": 71, "num_hidden_layers": 32, "num_kv_heads": 71,
        "parallel_attn": True, "vocab_size": 65024, "hidden_dropout": 0.0, "torch_dtype": "bfloat16",
    },
    "falcon-40b": {
        "architectures": ["RWForCausalLM"], "alibi": False, "bias": False, "hidden_size": 8192, "n_head": 128,
        "layer_norm_epsilon": 1e-5, "n_head_kv": 8, "n_layer": 60, "new_decoder_architecture": True,
        "parallel_attn": True, "vocab_size": 65024, "model_type": "RefinedWeb",
    },
    "Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Gemma-2b": {
        "architectures": ["GemmaForCausalLM"], "attention_bias": False, "head_dim": 256, "hidden_act": "gelu",
        "hidden_activation": None, "hidden_size": 2048, "intermediate_size": 16384, "max_position_embeddings": 8192,
        "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 256000,
    },
    "gemma-2-2b": {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26,
        "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "sliding_window": 4096, "vocab_size": 256000,
    },
    "gemma-3-1b-pt": {
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": None,
        "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262144,
    },
    "gemma-3-270m": {
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "intermediate_size": 2048,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 3, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000.0, "rope_scaling": None,
        "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": False, "vocab_size": 262144,
    },
    "Olmo-3-7B-Instruct": {
        "architectures": ["Olmo3ForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 11008, "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 8,
        "max_position_embeddings": 65536, "model_type": "olmo3", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 500000, "sliding_window": 4096,
        "tie_word_embeddings": False, "vocab_size": 100278,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
            "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
    },
    "Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
        "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
        "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "phi-2": {
        "architectures": ["PhiForCausalLM"], "hidden_act": "gelu_new", "hidden_size": 2560, "intermediate_size": 10240,
        "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "partial_rotary_factor": 0.4, "qk_layernorm": False, "resid_pdrop": 0.1,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 51200,
    },
    "stablelm-3b-4e1t": {
        "architectures": ["StableLMEpochForCausalLM"], "hidden_act": "silu", "hidden_size": 2560,
        "intermediate_size": 6912, "max_position_embeddings": 4096, "norm_eps": 1e-5, "num_attention_heads": 32,
        "num_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "rope_pct": 0.25, "rope_theta": 10000,
        "tie_word_embeddings": False, "vocab_size": 50304,
    },
    "Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
        "unsloth_fixed": True, "_attn_implementation_autoset": True,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Falcon3-7B-Base": {
        "activation": "swiglu", "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 256,
        "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 23040, "max_position_embeddings": 32768,
        "mlp_bias": False, "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000042, "tie_word_embeddings": False,
        "vocab_size": 131072,
    },
    "phi-4": {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "embd_pdrop": 0.0, "hidden_act": "silu",
        "hidden_size": 5120, "intermediate_size": 17920, "max_position_embeddings": 16384, "num_attention_heads": 40,
        "num_hidden_layers": 40, "num_key_value_heads": 10, "original_max_position_embeddings": 16384,
        "resid_pdrop": 0.0, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 250000, "sliding_window": None,
        "tie_word_embeddings": False, "vocab_size": 100352,
    },
    "SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 11008, "layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536,
        "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3", "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16, "num_hidden_layers": 36,
        "num_key_value_heads": 4, "pretraining_tp": 2, "rms_norm_eps": 1e-6, "rope_scaling": None,
        "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False, "vocab_size": 128256,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_config_json_of_the_hub_says_what_we_list(name):
    listed = config_for(name)
    found = config_from_hf(HUB[name], name, "config.json")
    assert found == replace(listed, padding_multiple=found.padding_multiple)  # of which config.json knows nothing


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("num_hidden_layers", "32", "num_hidden_layers='32' is not a whole number"),
        ("num_hidden_layers", 2.0, "num_hidden_layers=2.0 is not a whole number"),
        ("hidden_size", -4096, "hidden_size=-4096 is not the size"),
        ("num_attention_heads", 0, "num_attention_heads=0 is not the size"),
        ("num_attention_heads", True, "num_attention_heads=True is not a whole number"),
        ("rms_norm_eps", "1e-6", "rms_norm_eps='1e-6' is not a number"),
        ("tie_word_embeddings", "false", "tie_word_embeddings='false' is not true or false"),
        ("max_window_layers", "28", "max_window_layers='28' is not a whole number"),
        ("rope_theta", "1e6", "rope_theta='1e6' is not a number"),
        ("rope_scaling", "linear", "rope_scaling='linear' is not an object"),
        ("rope_parameters", [1], "is not an object"),
        ("layer_types", 4, "layer_types=4 is not a list with an entry for each layer"),
        ("layer_types", False, "layer_types=False is not a list with an entry for each layer"),
        ("layer_types", 0, "layer_types=0 is not a list with an entry for each layer"),
        ("layer_types", ["full_attention"] * 3, "is not a list with an entry for each layer"),
        ("rope_scaling", {"type": "linear"}, "'linear' lacks 'factor'"),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}, "'dynamic' is not supported"),
    ],
)
def test_a_value_that_makes_no_model_is_named(key, value, says):
    with pytest.raises(UserError, match=re.escape(says)):
        config_from_hf(HUB["Qwen2.5-0.5B"] | {key: value}, "other", "config.json")


def test_phi_4_mini_says_of_traits_that_it_does_not_have_them():
    hf = HUB["phi-4"] | {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False}
    hf |= {"num_attention_heads": 24, "num_key_value_heads": 8, "hidden_size": 3072, "partial_rotary_factor": 0.75}
    assert config_from_hf(hf, "Phi-4-mini-instruct", "config.json").rope_n_elem == 96
    with pytest.raises(UserError, match="lm_head_bias=True is not a field"):
        config_from_hf(hf | {"lm_head_bias": True}, "Phi-4-mini-instruct", "config.json")


NEWER = ("Gemma3nForCausalLM", "GraniteMoeForCausalLM")


@pytest.mark.parametrize("name", NEWER)
def test_an_architecture_that_we_do_not_know_is_refused_by_name(name):
    with pytest.raises(UserError, match=f"config.json: {name} is not an architecture.*LlamaForCausalLM"):
        config_from_hf(HUB["Llama-3.2-1B"] | {"architectures": [name]}, "other", "config.json")


def test_windows_from_a_layer_on_count_where_they_are_switched_on():
    hf = HUB["Qwen2.5-0.5B"] | {"use_sliding_window": True, "max_window_layers": 20, "sliding_window": 100}
    config = config_from_hf(hf, "other", "config.json")
    assert [i for i in range(24) if config.is_sliding(i)] == [20, 21, 22, 23] and config.sliding_window == 100


def test_a_window_that_is_switched_off_or_null_is_none():
    hf = HUB["Qwen2.5-0.5B"] | {"max_window_layers": 20, "sliding_window": 100}
    assert config_from_hf(hf, "other", "config.json").sliding_window == 0
    hf = HUB["Mistral-7B-v0.1"] | {"sliding_window": None}
    assert config_from_hf(hf, "other", "config.json").sliding_window == 0
    del hf["sliding_window"]  # transformers takes 4096 then
    assert config_from_hf(hf, "other", "config.json").sliding_window == 4096


def test_layers_without_rotation_are_listed_or_counted_and_may_have_the_window():
    hf = HUB["SmolLM3-3B"] | {"num_hidden_layers": 6, "layer_types": None, "no_rope_layers": None}
    counted = config_from_hf(hf, "other", "config.json")
    assert counted.unrotated_layers == [3] and counted.sliding_window == 0
    window = {"use_sliding_window": True, "sliding_window": 100}
    config = config_from_hf(hf | window | {"no_rope_layers": [1, 0, 1, 1, 0, 1]}, "other", "config.json")
    assert config.unrotated_layers == [1, 4] and [i for i in range(6) if config.is_sliding(i)] == [1, 4]
    types = ["sliding_attention"] * 2 + ["full_attention"] * 4
    config = config_from_hf(hf | window | {"layer_types": types}, "other", "config.json")
    assert config.unrotated_layers == [3] and [i for i in range(6) if config.is_sliding(i)] == [0, 1]
    everywhere = config_from_hf(hf | {"no_rope_layers": [1] * 6}, "other", "config.json")
    assert everywhere.unrotated_layers is None and everywhere.sliding_window == 0


def test_a_lit_config_from_before_a_field_is_read(tmp_path):
    config = config_for("Mistral-7B-v0.1")
    config.to_json(tmp_path / "lit_config.json")
    values = json.loads((tmp_path / "lit_config.json").read_text())
    for field in ("unrotated_layers", "rope_local_base"):
        del values[field]
    (tmp_path / "lit_config.json").write_text(json.dumps(values))
    assert Config.from_json(tmp_path / "lit_config.json") == config


def test_the_rotation_of_layers_with_a_window_is_stated_in_two_ways_and_is_not_scaled():
    hf = HUB["gemma-3-1b-pt"] | {"rope_local_base_freq": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    config = config_from_hf(hf, "other", "config.json")
    assert (config.rope_base, config.rope_condense_ratio, config.rope_local_base) == (1000000, 8.0, 5000.0)
    assert [config.rotation(i) for i in range(4, 8)] == ["local", "usual", "local", "local"]
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}
    newer = {k: v for k, v in hf.items() if not k.startswith("rope_")}
    both = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}
    assert config_from_hf(newer | {"rope_parameters": both}, "other", "config.json") == config
    for sliding in (full, {"rope_theta": "5000"}, 5000.0):
        with pytest.raises(UserError, match=r"rope_parameters with sliding_attention=.* are not supported"):
            config_from_hf(newer | {"rope_parameters": both | {"sliding_attention": sliding}}, "other", "config.json")
    with pytest.raises(UserError, match=r"final_logit_softcapping=30.0 is not supported for gemma3"):
        config_from_hf(hf | {"final_logit_softcapping": 30.0}, "other", "config.json")


def test_without_a_word_five_of_six_layers_have_the_window():
    hf = {k: v for k, v in HUB["gemma-3-1b-pt"].items() if k != "sliding_window_pattern"}
    assert config_from_hf(hf, "gemma-3-1b-pt", "x").sliding_layers == config_for("gemma-3-1b-pt").sliding_layers
    config = config_from_hf(hf | {"sliding_window_pattern": 4}, "other", "config.json")
    assert [i for i in range(8) if not config.is_sliding(i)] == [3, 7]


def test_olmo_3_scales_the_rotation_of_layers_without_a_window_only():
    hf = HUB["Olmo-3-7B-Instruct"] | {"rope_theta": 100000.0}
    config = config_from_hf(hf, "other", "config.json")
    assert config.rope_base == config.rope_local_base == 100000.0 and config.rope_scaling["factor"] == 8.0
    assert [config.rotation(i) for i in range(4)] == ["local", "local", "local", "usual"]
    older = {k: v for k, v in hf.items() if k not in ("rope_theta", "rope_scaling", "layer_types")}
    flat = older | {"rope_parameters": hf["rope_scaling"] | {"rope_theta": 100000.0}}
    assert config_from_hf(flat, "other", "config.json") == config
    bases = replace(config, rope_local_base=1000.0)
    assert config_from_hf(config_to_hf(bases), "other", "config.json") == bases


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"norm_topk_prob": False}, "norm_topk_prob=False is not supported for qwen3_moe"),
        ({"norm_topk_prob": None}, "norm_topk_prob=None is not supported for qwen3_moe"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2 is not supported"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\] is not supported"),
        ({"num_experts": None, "num_local_experts": 0}, "n_expert_per_token=8 of n_expert=0 is impossible"),
    ],
)
def test_a_mixture_that_is_not_computed_is_named(changed, says):
    with pytest.raises(UserError, match=says):
        config_from_hf(HUB["Qwen3-30B-A3B"] | changed, "other", "config.json")
    without = {k: v for k, v in HUB["Qwen3-30B-A3B"].items() if k != "norm_topk_prob"}
    with pytest.raises(UserError, match="norm_topk_prob=False is not supported"):  # what transformers takes then
        config_from_hf(without, "other", "config.json")
