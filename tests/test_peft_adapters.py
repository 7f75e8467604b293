"""What PEFT saves becomes a run with PEFT's logits; what we write is loaded by PEFT, saved again, and comes back."""

import json
import os
import runpy
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import ALL, ROOT, VARIANTS, tiny_hf, write_tokenizer
from safetensors.torch import load_file

from lit_gpt.args import LoRAArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, load_finetuned, read_run, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import from_hf, stream_from_hf
from lit_gpt.convert.peft.runs import read_adapter, write_adapter
from lit_gpt.convert.readers import open_source
from lit_gpt.errors import UserError
from lit_gpt.files import load_state, save_state
from lit_gpt.lightning import Fabric
from lit_gpt.merge.compare import texts_to_compare
from lit_gpt.merge.write import write_merged
from lit_gpt.methods import lora

UMASK = os.umask(0)
os.umask(UMASK)
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
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SETTINGS = {  # name -> kind of model, what LoraConfig is given
    "plain": ("llama-gqa", {"target_modules": QV}),
    "all layers": ("llama-gqa", {"target_modules": "all-linear", "lora_alpha": 5}),
    "all layers, with per-layer inputs": ("gemma4", {"target_modules": "all-linear"}),
    "a part of the per-layer inputs": ("gemma4", {"target_modules": ["per_layer_input_gate", "o_proj"]}),
    "per-layer inputs, dora": (
        "gemma4",
        {"target_modules": ["per_layer_model_projection", "per_layer_projection"], **DORA},
    ),
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
    "experts": ("mixtral", {"target_modules": QV, "target_parameters": EXPERTS}),
    "some experts": ("gpt-oss", {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "experts, patterns, router": (
        "qwen3-moe",
        {"target_modules": QV, "target_parameters": [*EXPERTS, "mlp.gate.weight"], "use_rslora": True}
        | {"rank_pattern": {"gate_up_proj": 3, "mlp.gate.weight": 2}, "alpha_pattern": {"experts.down_proj": 7}},
    ),
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
    "use_bdlora": ({"nblocks": 2}, "merge_and_unload"),
    "kasa_config": ({"beta": 0.1}, "merge_and_unload"),
    "monteclora_config": ({"num_samples": 2}, "merge_and_unload"),
    "use_new_thing": (True, "merge_and_unload"),
    "arrow_config": ({"top_k": 2}, "one of the adapters"),
    "alora_invocation_tokens": ([3, 4], "generate with PEFT"),
    "use_qalora": (True, "write false"),
    "megatron_config": ({"x": 1}, "write null"),
    "init_lora_weights": ("corda", "path_initial_model_for_weight_conversion"),
    "r": ("four", "is not a whole number"),
    "alpha_pattern": ({"(": 3}, "no regex"),
    "rank_pattern": ({"q_proj": 9}, "q_proj has A"),
    "use_dora": (True, "use_dora=True"),
    "task_type": ("SEQ_CLS", "task_type='SEQ_CLS'"),
    "peft_type": ("PROMPT_TUNING", "peft_type='PROMPT_TUNING'"),
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
@pytest.mark.parametrize("case", ["embeddings as a parameter", "another method"])
def test_merged_by_peft_and_converted_what_was_refused_computes_the_same(case, bases, tmp_path):
    """The advice of most refusals, followed."""
    import peft
    from transformers import AutoModelForCausalLM

    kind, config = {
        "embeddings as a parameter": (
            "mixtral",
            peft.LoraConfig(target_modules=[], target_parameters=[BOTH[0] + ".weight"]),
        ),
        "another method": ("llama-gqa", peft.LoHaConfig(r=4, target_modules=QV)),
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


def random_run(folder: Path, base: Path, style: str = "alpaca", **flags):
    """A run of ours with random updates, and its logits."""
    model, digest = load_base(fabric(), base)
    args = LoRAArgs(**{"lora_r": 4, "lora_alpha": 6, "lora_dropout": 0.0} | flags)
    torch.manual_seed(0)
    lora.inject(model, args)
    folder.mkdir()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if lora.trainable(name):
                p += torch.randn_like(p) * 0.05
        save_trained(model, trained_path(folder, "lora"))
        training, data = {"precision": "32-true"}, {"folder": "data/x"}
        save_run(Run("lora", asdict(args), style, str(base), digest, data, training, {}), folder)
        return model.eval()(IDS)


ROUND_TRIPS = [(kind, variant, False) for kind in ("llama-tied", "neox") for variant in VARIANTS]
ROUND_TRIPS += [(kind, variant, False) for kind in ("falcon", "phi3") for variant in ("plain", "all")]
ROUND_TRIPS += [(kind, "plain", False) for kind in ("glm4", "lfm2", "qwen3.5", "nemotron-h", "nemotron-h-moe")]
ROUND_TRIPS += [(kind, "plain", False) for kind in ("granite4-moe", "llama4", "gemma4", "gemma4-moe")]
ROUND_TRIPS += [("mixtral", "plain", False), ("gpt-oss", "pissa", False), ("qwen3-moe", "rslora", False)]
ROUND_TRIPS += [(kind, variant, True) for kind in ("llama-tied", "neox", "phi3") for variant in ("rslora", "all")]


@torch.no_grad()
@pytest.mark.parametrize("kind, variant, is_folded", ROUND_TRIPS)
def test_a_run_comes_back_from_peft_and_from_pefts_own_saving_of_it(kind, variant, is_folded, bases, tmp_path):
    """The record brings the very run back, even after PEFT has saved it; without, its logits come."""
    from peft import PeftModel

    flags = ALL | VARIANTS[variant] | {"lora_plus_ratio": 1.0}
    if kind.startswith("nemotron-h"):  # whose outputs of Mamba-2 PEFT does not adapt
        flags["lora_projection"] = False
    want = random_run(tmp_path / "run", bases(kind), **flags)
    write_adapter(bases(kind), tmp_path / "run", tmp_path / "peft", overwrite=False, fold_scale=is_folded)
    theirs = PeftModel.from_pretrained(tiny_hf(kind), tmp_path / "peft").eval()
    close(theirs(IDS).logits, want, 1e-5)
    theirs.save_pretrained(tmp_path / "resaved")
    config = json.loads((tmp_path / "resaved/adapter_config.json").read_text())
    assert any("base_layer" in name for name in load_file(tmp_path / "resaved/adapter_model.safetensors"))
    if is_folded:  # what heeds neither patterns nor rsLoRA computes the same
        assert config["r"] == config["lora_alpha"] and not config["use_rslora"]
        assert not config["rank_pattern"] and not config["alpha_pattern"]
        ranks = {len(x) for n, x in load_file(tmp_path / "peft/adapter_model.safetensors").items() if "lora_A" in n}
        assert ranks == {config["r"]}
    close(read_back(bases, kind, tmp_path / "resaved", tmp_path / "without record")(IDS), want, 1e-5)
    shutil.copy(tmp_path / "peft/finetuned.json", tmp_path / "resaved")
    read_back(bases, kind, tmp_path / "resaved", tmp_path / "back")
    states = [load_state(trained_path(tmp_path / name, "lora"), "test") for name in ("run", "back")]
    assert states[0].keys() == states[1].keys()
    for name, x in states[0].items():
        torch.testing.assert_close(states[1][name], x, rtol=1e-6 if is_folded else 0, atol=0)
    assert read_run(tmp_path / "back").method_args == read_run(tmp_path / "run").method_args


@torch.no_grad()
def test_a_run_that_peft_trained_on_comes_back_as_what_it_is_now(bases, tmp_path):
    """GPT-NeoX has one projection for three of ours: trained on, each has learned in the rows of the others."""
    from peft import PeftModel

    random_run(tmp_path / "run", bases("neox"), lora_key=True)
    write_adapter(bases("neox"), tmp_path / "run", tmp_path / "peft", overwrite=False)
    theirs = PeftModel.from_pretrained(tiny_hf("neox"), tmp_path / "peft", is_trainable=True).eval()
    for p in theirs.parameters():
        if p.requires_grad:
            p += torch.randn_like(p) * 0.1
    theirs.save_pretrained(tmp_path / "peft")
    assert (tmp_path / "peft/finetuned.json").is_file()
    close(read_back(bases, "neox", tmp_path / "peft", tmp_path / "back")(IDS), theirs(IDS).logits)


@torch.no_grad()
def test_a_padded_vocabulary_is_cut_for_peft_and_filled_up_when_read(tmp_path):
    from peft import PeftModel

    base = tmp_path / "base"
    tiny_hf("llama-gqa").save_pretrained(base)
    write_tokenizer(base)
    source = open_source(base)
    config = replace(config_from_hf(source.hf_config, "tiny", "config.json"), padded_vocab_size=384)
    save_state(dict(stream_from_hf(config, source.names, source.get, None, 320)), base / WEIGHTS)
    config.to_json(base / CONFIG)
    for variant in ("plain", "dora"):
        want = random_run(tmp_path / variant, base, **ALL, **VARIANTS[variant])[..., :320]
        write_adapter(base, tmp_path / variant, tmp_path / f"{variant}-peft", overwrite=False)
        theirs = PeftModel.from_pretrained(tiny_hf("llama-gqa"), tmp_path / f"{variant}-peft").eval()
        close(theirs(IDS).logits, want, 1e-5)
        (tmp_path / f"{variant}-peft/finetuned.json").unlink()
        read_adapter(base, tmp_path / f"{variant}-peft", tmp_path / f"{variant}-back", "plain", overwrite=False)
        got = load_finetuned(fabric(), base, tmp_path / f"{variant}-back")[0].eval()(IDS)
        close(got[..., :320], want, 1e-5)
    for name in ("embeddings in full", "head in full", "tokens", "embeddings"):
        want = saved_by_peft(tmp_path / name, *SETTINGS[name])(IDS).logits
        read_adapter(base, tmp_path / name, tmp_path / f"{name}-run", "plain", overwrite=False)
        close(load_finetuned(fabric(), base, tmp_path / f"{name}-run")[0].eval()(IDS)[..., :320], want)
        write_adapter(base, tmp_path / f"{name}-run", tmp_path / f"{name}-ours", overwrite=False)
        close(PeftModel.from_pretrained(tiny_hf("llama-gqa"), tmp_path / f"{name}-ours").eval()(IDS).logits, want)


def test_an_adapters_folder_is_ready_to_share(bases, tmp_path):
    """Readable by others, with a card that the hub parses, and a tokenizer that transformers opens."""
    from huggingface_hub import ModelCard
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(bases("llama-gqa"), base)
    config = json.loads((base / CONFIG).read_text())
    (base / CONFIG).write_text(json.dumps(config | {"hf_repo": "someone/tiny"}))
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    (base / "chat_template.jinja").write_text(template)
    for style, says in (("alpaca", "### Instruction:\n{prompt}"), ("chat_template", "chat template of its tokenizer")):
        random_run(tmp_path / style, base, style, lora_scaling="rslora")
        write_adapter(base, tmp_path / style, tmp_path / f"{style}-peft", overwrite=False)
        folder = tmp_path / f"{style}-peft"
        assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o666 & ~UMASK}
        card = ModelCard.load(folder / "README.md")
        assert (card.data.base_model, card.data.library_name, card.data.license) == ("someone/tiny", "peft", None)
        assert "base_model:adapter:someone/tiny" in card.data.tags and says in card.text
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == template and tokenizer.encode("the end")
        (folder / "finetuned.json").unlink()
        style_found = read_adapter(base, folder, tmp_path / f"{style}-back", None, overwrite=False)
        assert style_found == "chat_template"  # as far as a folder with the checkpoint's own template tells
    bare = tmp_path / "bare"
    saved_by_peft(bare, "llama-gqa", {"target_modules": QV})
    assert read_adapter(base, bare, tmp_path / "bare-run", None, overwrite=False) == "alpaca"


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "both patterns",
        "dora, one layer",
        "head, tied",
        "embeddings in full, tied",
        "both in full, tied",
        "tokens, tied",
        "norms with biases",
        "a projection in full",
        "bias all, fused",
        "head in full",
    ],
)
def test_a_run_that_was_an_adapter_is_quantized_merged_and_exported_like_any_other(name, bases, tmp_path):
    kind, settings = SETTINGS[name]
    want = saved_by_peft(tmp_path / "peft", kind, settings)(IDS).logits
    model = read_back(bases, kind, tmp_path / "peft", tmp_path / "run")
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    write_merged(bases(kind), tmp_path / "run", read_run(tmp_path / "run"), tmp_path / "merged")
    merged = load_base(fabric(), tmp_path / "merged")[0].eval()
    close(merged(IDS), want, 2e-5)
    record = read_run(tmp_path / "run")
    assert record.training["precision"] == "32-true" and record.prompt_style == "plain"
    texts, what = texts_to_compare(record, bases(kind))
    assert texts and what
    few, _ = load_finetuned(fabric(), bases(kind), tmp_path / "run", "bnb.nf4")
    for n, p in few.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p, own[n], rtol=0, atol=0)
    assert (few.eval()(IDS) - want).abs().max() < want.abs().max()


@torch.no_grad()
def test_biases_that_the_base_has_not_stay_in_the_run(bases, tmp_path):
    saved_by_peft(tmp_path / "peft", *SETTINGS["lora_bias, none in the base"])
    read_back(bases, "llama-gqa", tmp_path / "peft", tmp_path / "run")
    with pytest.raises(UserError, match=r"transformer\.h\.0\.attn\.proj\.bias.*no place.*generate/lora\.py"):
        write_merged(bases("llama-gqa"), tmp_path / "run", read_run(tmp_path / "run"), tmp_path / "merged")


@pytest.mark.parametrize("dtype, precision", [(torch.bfloat16, "bf16-true"), (torch.float16, "16-true")])
def test_the_record_says_in_which_precision_the_checkpoint_is(dtype, precision, bases, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(bases("llama-gqa"), base)
    save_state({n: x.to(dtype) for n, x in load_state(base / WEIGHTS, "test").items()}, base / WEIGHTS)
    saved_by_peft(tmp_path / "peft", "llama-gqa", {"target_modules": [*QV, "lm_head"]})
    read_adapter(base, tmp_path / "peft", tmp_path / "run", None, overwrite=False)
    assert read_run(tmp_path / "run").training == {"from": str(tmp_path / "peft"), "precision": precision}


def test_the_script_says_where_to_go_on(bases, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "scripts/convert_peft_adapter.py"))["main"]
    random_run(tmp_path / "run", bases("llama-gqa"), lora_scaling="rslora")
    common = {"checkpoint_dir": bases("llama-gqa"), "peft_dir": tmp_path / "a"}
    main("peft", **common, finetuned_path=tmp_path / "run", fold_scale=True)
    assert f"hf upload USER/NAME {tmp_path / 'a'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["use_rslora"] is False
    main("lit", **common, finetuned_path=tmp_path / "back")
    assert "in the style alpaca" in capsys.readouterr().out
    with pytest.raises(UserError, match="--fold_scale is for --to peft"):
        main("lit", **common, finetuned_path=tmp_path / "again", fold_scale=True)
    with pytest.raises(UserError, match="--prompt_style is for --to lit"):
        main("peft", **common, finetuned_path=tmp_path / "run", prompt_style="plain", overwrite=True)


def test_what_peft_would_take_for_experts_is_refused(bases, tmp_path):
    """A shared expert's modules have the names that experts have in files; attention beside them goes to PEFT."""
    from peft import PeftModel

    random_run(tmp_path / "run", bases("qwen3-next"), lora_mlp=True)
    with pytest.raises(UserError, match=r"would take the update of .*shared_expert\.gate_proj for one of the experts"):
        write_adapter(bases("qwen3-next"), tmp_path / "run", tmp_path / "peft", overwrite=False)
    want = random_run(tmp_path / "other", bases("qwen3-next"), lora_projection=True)
    write_adapter(bases("qwen3-next"), tmp_path / "other", tmp_path / "peft", overwrite=False)
    with torch.no_grad():
        close(PeftModel.from_pretrained(tiny_hf("qwen3-next"), tmp_path / "peft").eval()(IDS).logits, want, 1e-5)


def test_magnitudes_of_experts_are_refused_for_peft_has_none(bases, tmp_path):
    random_run(tmp_path / "run", bases("mixtral"), lora_mlp=True, lora_dora=True)
    with pytest.raises(UserError, match=r"PEFT has no DoRA for experts.*merge the run"):
        write_adapter(bases("mixtral"), tmp_path / "run", tmp_path / "peft", overwrite=False)
