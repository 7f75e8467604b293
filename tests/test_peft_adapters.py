"""What PEFT saves becomes a run with PEFT's logits; what we write is loaded by PEFT, saved again, and comes back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_hf, write_tokenizer
from lightning.fabric import Fabric

from lit_gpt import lora
from lit_gpt.checkpoint import load_base, load_finetuned
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.lit import CONFIG, WEIGHTS
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.errors import UserError
from lit_gpt.files import save_state
from lit_gpt.interchange import read_adapter, write_adapter

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
def close(got, want, tolerance=5e-6):
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
    "pissa as it is": ("llama-gqa", {"target_modules": QV, "init_lora_weights": "pissa"}),
    "olora as it is": ("neox", {"target_modules": "all-linear", "init_lora_weights": "olora", "use_rslora": True}),
    "pissa, head": ("llama-gqa", {"target_modules": [*QV, "lm_head"], "init_lora_weights": "pissa"}),
    "olora, head, tied": ("llama-tied", {"target_modules": [*QV, "lm_head"], "init_lora_weights": "olora"}),
    "pissa, head, tied": ("llama-tied", {"target_modules": [*QV, "lm_head"], "init_lora_weights": "pissa"}),
    "velora": ("llama-gqa", {"target_modules": QV, "velora_config": {}}),
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


@torch.no_grad()
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_what_begins_with_a_part_of_the_base_is_read_in_pefts_converted_form(start, bases, tmp_path):
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 6, "target_modules": QV, "init_lora_weights": start, "task_type": "CAUSAL_LM"}
    model = get_peft_model(tiny_hf("llama-gqa"), LoraConfig(**settings)).eval()
    model.save_pretrained(tmp_path / "start")
    for name, p in model.named_parameters():
        if "lora_" in name:
            p += torch.randn_like(p) * 0.1
    model.save_pretrained(tmp_path / "plain")
    want = model(IDS).logits
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    close(read_back(bases, "llama-gqa", tmp_path / "converted", tmp_path / "run")(IDS), want)
    if start == "pissa_niter_4":  # a search that begins at random: the base does not tell what was taken off
        with pytest.raises(
            UserError, match=r"init_lora_weights='pissa_niter_4'.*path_initial_model_for_weight_conversion"
        ):
            read_back(bases, "llama-gqa", tmp_path / "plain", tmp_path / "run")


@torch.no_grad()
def test_an_adapter_in_a_pickle_is_read_as_data(bases, tmp_path):
    kind, settings = SETTINGS["norms"]
    want = saved_by_peft(tmp_path / "peft", kind, settings, {"safe_serialization": False})(IDS).logits
    assert not (tmp_path / "peft/adapter_model.safetensors").exists()
    close(read_back(bases, kind, tmp_path / "peft", tmp_path / "run")(IDS), want)
    torch.save({"x": print}, tmp_path / "peft/adapter_model.bin")
    with pytest.raises(UserError, match="could run code"):
        read_back(bases, kind, tmp_path / "peft", tmp_path / "run")
    (tmp_path / "peft/adapter_model.bin").unlink()
    with pytest.raises(UserError, match=r"neither adapter_model.safetensors nor adapter_model.bin"):
        read_back(bases, kind, tmp_path / "peft", tmp_path / "run")


REFUSED = {  # what adapter_config.json says -> parts of the refusal
    "layer_replication": ([[0, 2], [1, 2]], "unload()"),
    "target_parameters": (["mlp.experts.gate_up_proj"], "merge_and_unload"),
    "use_bdlora": ({"nblocks": 2}, "merge_and_unload"),
    "kasa_config": ({"beta": 0.1}, "merge_and_unload"),
    "monteclora_config": ({"num_samples": 2}, "merge_and_unload"),
    "use_new_thing": (True, "merge_and_unload"),
    "arrow_config": ({"top_k": 2}, "one of the adapters"),
    "alora_invocation_tokens": ([3, 4], "generate with PEFT"),
    "use_qalora": (True, "write false"),
    "megatron_config": ({"x": 1}, "write null"),
    "init_lora_weights": ("corda", "path_initial_model_for_weight_conversion"),
    "r": ("four", "no number"),
    "alpha_pattern": ({"(": 3}, "no regex"),
    "rank_pattern": ({"q_proj": 9}, "q_proj has A"),
    "use_dora": (True, "use_dora=True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_here_computes_is_refused_by_setting_and_value_with_a_way_out(name, bases, tmp_path):
    value, way_out = REFUSED[name]
    saved_by_peft(tmp_path / "peft", "llama-gqa", {"target_modules": QV})
    path = tmp_path / "peft/adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {name: value}))
    with pytest.raises(UserError) as refusal:
        read_back(bases, "llama-gqa", tmp_path / "peft", tmp_path / "run")
    assert way_out in str(refusal.value) and "\n" not in str(refusal.value)
    if isinstance(value, bool | list | dict) and way_out not in ("no regex", "q_proj has A"):
        assert f"{name}={value!r}" in str(refusal.value)
    assert not (tmp_path / "run").exists()
    path.write_text(json.dumps(settings | {name: None if way_out == "write null" else False}))
    if way_out.startswith("write"):
        read_back(bases, "llama-gqa", tmp_path / "peft", tmp_path / "run")


@torch.no_grad()
@pytest.mark.parametrize("case", ["experts", "another method", "router"])
def test_merged_by_peft_and_converted_what_was_refused_computes_the_same(case, bases, tmp_path):
    """The advice of most refusals, followed."""
    import peft
    from transformers import AutoModelForCausalLM

    kind, config = {
        "experts": ("mixtral", peft.LoraConfig(target_modules=[], target_parameters=["mlp.experts.down_proj"])),
        "another method": ("llama-gqa", peft.LoHaConfig(r=4, target_modules=QV)),
        "router": ("mixtral", peft.LoraConfig(target_modules=QV, modules_to_save=["gate"])),
    }[case]
    model = peft.get_peft_model(tiny_hf(kind), config).eval()
    for p in model.parameters():
        if p.requires_grad:
            p += torch.randn_like(p) * 0.1
    model.save_pretrained(tmp_path / "peft")
    with pytest.raises(UserError, match=r"merge_and_unload.*scripts/convert_hf_checkpoint\.py"):
        read_back(bases, kind, tmp_path / "peft", tmp_path / "run")
    base = AutoModelForCausalLM.from_pretrained(bases(kind))
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "peft").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    write_tokenizer(tmp_path / "merged")
    close(load_base(fabric(), convert(tmp_path / "merged"))[0].eval()(IDS), model(IDS).logits)


@torch.no_grad()
def test_repeated_layers_are_read_for_a_base_that_has_them_as_the_refusal_says(bases, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    want = saved_by_peft(tmp_path / "peft", "llama-gqa", {"target_modules": QV, "layer_replication": [[0, 2], [1, 2]]})(
        IDS
    )
    with pytest.raises(UserError, match=r"layer_replication=\[\[0, 2\], \[1, 2\]\].*unload\(\).*write null"):
        read_back(bases, "llama-gqa", tmp_path / "peft", tmp_path / "run")
    repeated = PeftModel.from_pretrained(tiny_hf("llama-gqa"), tmp_path / "peft").unload()
    unshared = AutoModelForCausalLM.from_config(repeated.config)
    unshared.load_state_dict(repeated.state_dict())
    unshared.save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    path = tmp_path / "peft/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_replication": None}))
    read_adapter(convert(tmp_path / "base"), tmp_path / "peft", tmp_path / "run", "plain", overwrite=False)
    close(load_finetuned(fabric(), tmp_path / "base", tmp_path / "run")[0].eval()(IDS), want.logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama-gqa", "llama-tied"])
def test_tokens_that_were_added_before_the_training_want_a_base_that_has_them(kind, bases, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = tiny_hf(kind)
    base.resize_token_embeddings(330)
    base.save_pretrained(tmp_path / "base")
    settings = LoraConfig(target_modules=QV, modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(base, settings).eval()
    for p in model.parameters():
        if p.requires_grad:
            p += torch.randn_like(p) * 0.1
    model.save_pretrained(tmp_path / "peft")
    with pytest.raises(UserError, match=r"330 rows and the checkpoint 320.*resize_token_embeddings\(330\)"):
        read_back(bases, kind, tmp_path / "peft", tmp_path / "run")
    write_tokenizer(tmp_path / "base")
    read_adapter(convert(tmp_path / "base"), tmp_path / "peft", tmp_path / "run", "plain", overwrite=False)
    close(load_finetuned(fabric(), tmp_path / "base", tmp_path / "run")[0].eval()(IDS), model(IDS).logits)
