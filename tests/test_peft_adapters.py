"""What PEFT saves becomes a run with PEFT's logits; what we write is loaded by PEFT, saved again, and comes back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_hf, write_tokenizer
from lightning.fabric import Fabric

from lit_gpt import lora
from lit_gpt.checkpoint import load_base, load_finetuned, read_run
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.lit import CONFIG, WEIGHTS
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.errors import UserError
from lit_gpt.files import save_state
from lit_gpt.interchange import read_adapter, write_adapter
from lit_gpt.merging.write import write_merged

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))
QV = ["q_proj", "v_proj"]


def fabric():
    return Fabric(accelerator="cpu", devices=1, precision="32-true")


def convert(folder: Path) -> Path:
    """Put our files beside those of a folder of transformers."""
    source = open_source(folder)
    config = config_from_hf(source.hf_config, folder.name, "config.json")
    save_state(from_hf(config, source.names, source.get), folder / WEIGHTS)
    config.to_json(folder / CONFIG)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Kind of tests/conftest.py's SHAPES -> its converted checkpoint, made when it is first asked for."""
    made = {}

    def base(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("base") / f"tiny-{kind}"
            tiny_hf(kind).save_pretrained(made[kind])
            write_tokenizer(made[kind])
            convert(made[kind])
        return made[kind]

    return base


def saved_by_peft(folder: Path, kind: str, settings: dict, save: dict | None = None):
    """PEFT's model with all that trains at random, saved in `folder`."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(tiny_hf(kind), LoraConfig(**settings)).eval()
    torch.manual_seed(5)
    for name, p in model.named_parameters():
        if p.requires_grad:
            with torch.no_grad():
                p += torch.randn_like(p) * (0.02 if "magnitude" in name else 0.1)
    model.save_pretrained(folder, **save or {})
    return model


@torch.no_grad()
def close(got, want, tolerance=2e-6):
    size = want.abs().max()
    torch.testing.assert_close(got / size, want / size, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def read_back(bases, kind: str, folder: Path, run_dir: Path):
    """Our model of the run that an adapter becomes."""
    shutil.rmtree(run_dir, ignore_errors=True)
    read_adapter(bases(kind), folder, run_dir, "plain", overwrite=False)
    return load_finetuned(fabric(), bases(kind), run_dir)[0].eval()


DORA, NEOX = {"use_dora": True}, {"target_modules": ["query_key_value"]}
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BOTH = ["embed_tokens", "lm_head"]
SETTINGS = {  # name -> kind of model, what LoraConfig is given
    "plain": ("llama-gqa", {"target_modules": QV}),
    "all layers": ("llama-gqa", {"target_modules": "all-linear", "lora_alpha": 5}),
    "regex": ("llama-gqa", {"target_modules": r".*layers\.1\..*(q_proj|down_proj)"}),
    "a part of the MLP": ("llama-gqa", {"target_modules": ["q_proj", "gate_proj"]}),
    "excluded": ("llama-gqa", {"target_modules": EVERY, "exclude_modules": r".*layers\.0\.mlp.*"}),
    "layers_to_transform": (
        "llama-gqa",
        {"target_modules": QV, "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "head": ("llama-gqa", {"target_modules": [*QV, "lm_head"]}),
    "head, tied": ("llama-tied", {"target_modules": [*QV, "lm_head"]}),
    "head, dora": ("llama-tied", {"target_modules": [*QV, "lm_head"], **DORA}),
    "rank_pattern": ("llama-gqa", {"target_modules": EVERY, "rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 6}}),
    "alpha_pattern": ("llama-gqa", {"target_modules": QV, "alpha_pattern": {"v_proj": 3, "no_such": 5}}),
    "both patterns": (
        "llama-gqa",
        {"target_modules": EVERY, "rank_pattern": {r"layers.1.self_attn.*": 3, "up_proj": 7}, "use_rslora": True}
        | {"alpha_pattern": {"down_proj": 11, "layers.0.self_attn.q_proj": 0.7}},
    ),
    "patterns, dora": ("llama-gqa", {"target_modules": EVERY, "rank_pattern": {"k_proj": 1}, **DORA}),
    "dora, one layer": ("llama-biases", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 0, **DORA}),
    "patterns that match nothing": (
        "llama-gqa",
        {"target_modules": QV, "rank_pattern": {"nothing": 9}, "alpha_pattern": {r"layers\.77\..*": 1}},
    ),
    "one alpha, by pattern": ("llama-gqa", {"target_modules": QV, "alpha_pattern": {".*": 3}}),
    "rslora": ("llama-gqa", {"target_modules": QV, "use_rslora": True}),
    "dora": ("llama-biases", {"target_modules": "all-linear", **DORA}),
    "fan_in_fan_out": ("llama-gqa", {"target_modules": QV, "fan_in_fan_out": True}),
    "init False": ("llama-gqa", {"target_modules": QV, "init_lora_weights": False}),
    "init gaussian": ("llama-gqa", {"target_modules": QV, "init_lora_weights": "gaussian"}),
    "init orthogonal": ("llama-gqa", {"target_modules": QV, "init_lora_weights": "orthogonal"}),
    "init mica": ("llama-gqa", {"target_modules": QV, "init_lora_weights": "mica"}),
    "lora_bias, none in the base": ("llama-gqa", {"target_modules": ["q_proj", "o_proj"], "lora_bias": True}),
    "lora_bias": ("llama-biases", {"target_modules": [*QV, "down_proj"], "lora_bias": True}),
    "lora_bias, fused": ("neox", {**NEOX, "lora_bias": True}),
    "bias all": ("llama-biases", {"target_modules": QV, "bias": "all"}),
    "bias lora_only": ("llama-biases", {"target_modules": QV, "bias": "lora_only"}),
    "bias all, fused": ("neox", {**NEOX, "bias": "all"}),
    "norms": ("llama-gqa", {"target_modules": QV, "modules_to_save": ["norm", "input_layernorm"]}),
    "norms with biases": ("neox", {**NEOX, "modules_to_save": ["final_layer_norm"]}),
    "head in full": ("llama-gqa", {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "head in full, tied": ("llama-tied", {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "embeddings in full": ("llama-gqa", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "embeddings in full, tied": ("llama-tied", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "both in full": ("llama-tied", {"target_modules": QV, "modules_to_save": BOTH}),
    "both in full, tied": ("llama-tied", {"target_modules": QV, "modules_to_save": BOTH, "ensure_weight_tying": True}),
    "embeddings in full, kept tied": (
        "llama-tied",
        {"target_modules": QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "a projection in full": ("llama-gqa", {"target_modules": ["down_proj"], "modules_to_save": ["v_proj"]}),
    "embeddings": ("llama-gqa", {"target_modules": [*QV, "embed_tokens"]}),
    "embeddings, tied": ("llama-tied", {"target_modules": [*QV, "embed_tokens"]}),
    "embeddings and head, tied": ("llama-tied", {"target_modules": [*QV, *BOTH]}),
    "embeddings and head, kept tied": ("llama-tied", {"target_modules": [*QV, *BOTH], "ensure_weight_tying": True}),
    "embeddings, dora": ("llama-gqa", {"target_modules": [*QV, "embed_tokens"], **DORA}),
    "embeddings alone": ("neox", {"target_modules": ["embed_in"]}),
    "tokens": ("llama-gqa", {"target_modules": QV, "trainable_token_indices": [3, 5, 300]}),
    "tokens, tied": ("llama-tied", {"target_modules": QV, "trainable_token_indices": [3, 5, 300]}),
    "tokens by name, tied": ("llama-tied", {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [3, 9]}}),
    "tokens of both, tied": (
        "llama-tied",
        {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 7]}},
    ),
    "fused, patterns": (
        "neox",
        {"target_modules": "all-linear", "rank_pattern": {"dense": 2, r".*1.*query_key_value": 5}},
    ),
    "fused, dora": ("neox", {"target_modules": ["query_key_value", "dense"], **DORA}),
    "falcon": ("falcon", {"target_modules": "all-linear", "alpha_pattern": {"query_key_value": 9}}),
    "falcon 40b": ("falcon-40b", {"target_modules": ["query_key_value"], "layers_to_transform": [0]}),
    "phi 3": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "down_proj"], "rank_pattern": {"qkv_proj": 6}}),
    "phi": ("phi", {"target_modules": "all-linear", "bias": "all"}),
    "gemma, norms": ("gemma", {"target_modules": QV, "modules_to_save": ["post_attention_layernorm"]}),
    "qwen 3": ("qwen3", {"target_modules": "all-linear", "use_rslora": True}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_what_peft_saved_is_read_with_its_logits_written_and_read_again(name, bases, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kind, settings = SETTINGS[name]
    theirs = saved_by_peft(tmp_path / "theirs", kind, settings)
    want = theirs(IDS).logits
    base, run_dir = bases(kind), tmp_path / "run"
    assert (load_base(fabric(), base)[0].eval()(IDS) - want).abs().max() > 0.05
    model = read_back(bases, kind, tmp_path / "theirs", run_dir)
    close(model(IDS), want)
    lora.merge(model)
    close(model(IDS), want, 2e-5)
    write_adapter(base, run_dir, tmp_path / "ours", overwrite=False)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "ours").eval()
    close(again(IDS).logits, want)
    again.save_pretrained(tmp_path / "resaved")
    close(read_back(bases, kind, tmp_path / "resaved", tmp_path / "again")(IDS), want)
