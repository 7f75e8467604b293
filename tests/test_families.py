"""The families: the README's table is theirs, and the page on adding one is true."""

import re

import torch
from conftest import ROOT

from lit_gpt.convert.configs import config_from_hf, config_to_hf
from lit_gpt.convert.names import from_hf, to_hf
from lit_gpt.families import ARCHITECTURES
from lit_gpt.families.overview import overview
from lit_gpt.model import GPT


def test_the_readme_has_the_table_of_families():
    assert overview() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_of_the_docs_is_a_family(monkeypatch):
    page = (ROOT / "docs" / "add_a_family.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
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
