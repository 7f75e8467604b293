"""Checkpoints of Lit-GPT 2023 and of litgpt are read without being told, and give the reference's logits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import assert_one_line_error, tiny_hf, write_tokenizer
from script_processes import run

from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.configs import translated
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric

FIELDS = {
    "name": "tiny-model",
    "hf_config": {"org": "nobody", "name": "tiny-model"},
    "block_size": 512,
    "vocab_size": 320,
    "padding_multiple": 64,
    "padded_vocab_size": 320,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "n_query_groups": 2,
    "shared_attention_norm": False,
    "norm_eps": 1e-6,
    "intermediate_size": 48,
}
Y2023 = FIELDS | {"_norm_class": "RMSNorm", "_mlp_class": "LLaMAMLP", "condense_ratio": 1, "head_size": 8}
LITGPT = FIELDS | {
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "head_size": 8,
    "rope_condense_ratio": 1,
    "rope_base": 10000,
    "attn_bias": False,
    "norm_1": True,
    "norm_2": True,
    "norm_qk": False,
    "rope_adjustments": None,
    "sliding_window_size": None,
    "routed_scaling_factor": 1.0,
}


def renamed(theirs, qkv):
    """A Llama state dict under Lit names; `qkv` arranges the three projections of a layer."""
    hf = theirs.state_dict()
    state = {
        "transformer.wte.weight": hf["model.embed_tokens.weight"],
        "transformer.ln_f.weight": hf["model.norm.weight"],
        "lm_head.weight": hf["lm_head.weight"],
    }
    for i in range(2):
        there, here = f"model.layers.{i}.", f"transformer.h.{i}."
        q, k, v = (hf[f"{there}self_attn.{x}_proj.weight"] for x in "qkv")
        state |= {f"{here}{name}": x for name, x in qkv(q, k, v).items()}
        for a, b in (
            ("self_attn.o_proj", "attn.proj"),
            ("input_layernorm", "norm_1"),
            ("post_attention_layernorm", "norm_2"),
            ("mlp.gate_proj", "mlp.fc_1"),
            ("mlp.up_proj", "mlp.fc_2"),
            ("mlp.down_proj", "mlp.proj"),
        ):
            state[f"{here}{b}.weight"] = hf[f"{there}{a}.weight"]
    return state


def interleaved(q, k, v):
    """Of each of the two groups: its two queries of 8 rows, its key, its value."""
    groups = [torch.cat((q[16 * g : 16 * g + 16], k[8 * g : 8 * g + 8], v[8 * g : 8 * g + 8])) for g in range(2)]
    return {"attn.attn.weight": torch.cat(groups)}


def stacked(q, k, v):
    return {"attn.qkv.weight": torch.cat((q, k, v))}


def write(folder, layout):
    theirs = tiny_hf("llama-gqa")
    folder.mkdir()
    write_tokenizer(folder)
    if layout == "2023":
        torch.save(renamed(theirs, interleaved), folder / "lit_model.pth")
        (folder / "lit_config.json").write_text(json.dumps(Y2023))
    else:
        torch.save(renamed(theirs, stacked), folder / "lit_model.pth")
        (folder / "model_config.yaml").write_text(yaml.safe_dump(LITGPT))
    return theirs


@pytest.mark.parametrize("layout", ["2023", "litgpt"])
@torch.no_grad()
def test_the_logits_are_those_of_the_model_it_was_made_from(layout, tmp_path):
    theirs = write(tmp_path / "there", layout)
    ours, _ = load_base(make_fabric("32-true"), tmp_path / "there")
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "field, says",
    [
        ({"latent_attention": {"q": 1}}, "latent_attention"),
        ({"mlp_class_name": "KAN"}, "mlp_class_name='KAN' is none of GptNeoxMLP"),
        ({"norm_class_name": "DyT"}, "norm_class_name='DyT' is none of LayerNorm"),
        (
            {"rope_local_base_freq": 5000, "rope_indices": [1, 0], "sliding_window_size": 8},
            r"rope_indices=\[1, 0\] are not the layers with a window",
        ),
    ],
)
def test_a_field_that_we_do_not_compute_is_named(field, says, tmp_path):
    write(tmp_path / "there", "litgpt")
    (tmp_path / "there" / "model_config.yaml").write_text(yaml.safe_dump(LITGPT | field))
    with pytest.raises(UserError, match=says):
        load_base(make_fabric("32-true"), tmp_path / "there")


def test_the_experts_of_a_mixture_have_a_size_of_their_own():
    mixture = {"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2, "moe_intermediate_size": 24}
    assert translated(LITGPT | mixture, Path("model_config.yaml")).intermediate_size == 24
    assert (
        translated(LITGPT | {"moe_intermediate_size": 24}, Path("x")).intermediate_size == LITGPT["intermediate_size"]
    )


@pytest.mark.parametrize("field, value", [("n_layer", "2"), ("n_head", 4.0), ("norm_eps", "1e-6"), ("qkv_bias", 0)])
def test_a_value_of_another_type_in_our_configuration_is_named(field, value, checkpoint, tmp_path):
    from lit_gpt.config import Config

    values = json.loads((checkpoint / "lit_config.json").read_text())
    (tmp_path / "lit_config.json").write_text(json.dumps(values | {field: value}))
    with pytest.raises(UserError, match=f"lit_config.json: {field}={value!r} is not"):
        Config.from_json(tmp_path / "lit_config.json")


def test_a_tensor_that_only_the_configuration_has_is_named(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "tiny")
    path = tmp_path / "tiny/lit_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm": "layer"}))
    _, specs, read = open_lit(tmp_path / "tiny")
    assert read("transformer.h.0.norm_1.weight").shape == specs["transformer.h.0.norm_1.weight"].shape
    with pytest.raises(UserError, match=r"lit_model.pth has no transformer.h.0.norm_1.bias, .*do not belong together"):
        read("transformer.h.0.norm_1.bias")


def test_every_script_takes_such_a_folder_and_it_can_be_written_for_others(tmp_path):
    write(tmp_path / "there", "2023")
    process = run("generate/base.py", "--checkpoint_dir", tmp_path / "there", "--max_new_tokens", 3, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    command = ("scripts/convert_lit_checkpoint.py", "--checkpoint_dir", tmp_path / "there", "--output_dir", "out")
    assert_one_line_error(run(*command, cwd=tmp_path), "architecture")  # of a name that no family has
    values = Y2023 | {"name": "open_llama_7b"}
    (tmp_path / "there" / "lit_config.json").write_text(json.dumps(values))
    process = run(*command, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip().endswith(": 0")


@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_checkpoints_of_2023_in_the_protocol_of_2023_are_read(wrapped, tmp_path):
    theirs = write(tmp_path / "there", "2023")
    state = renamed(theirs, interleaved)
    torch.save({"model": state} if wrapped else state, tmp_path / "there" / "lit_model.pth", pickle_protocol=5)
    ours, _ = load_base(make_fabric("32-true"), tmp_path / "there")
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-4)


def test_a_checkpoint_that_would_run_code_is_refused_by_name(tmp_path):
    write(tmp_path / "there", "2023")
    torch.save({"model": {}, "hook": print}, tmp_path / "there" / "lit_model.pth", pickle_protocol=5)
    with pytest.raises(UserError, match=r"lit_model.pth names builtins.print and is not loaded"):
        load_base(make_fabric("32-true"), tmp_path / "there")


def test_what_litgpt_writes_step_by_step_in_2023_is_read(tmp_path):
    utils = pytest.importorskip("litgpt.utils", reason="litgpt is not installed")
    from lit_gpt.files.pickles import load_weights

    state = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16()}
    with utils.incremental_save(tmp_path / "x.pth") as saver:
        saver.protocol_version = 5  # as lit-gpt had it
        saver.save({name: saver.store_early(x) for name, x in state.items()})
    got = load_weights(tmp_path / "x.pth")
    assert all(torch.equal(got[name], x) for name, x in state.items())


def test_litgpt_itself_agrees_on_what_its_file_means(tmp_path):
    litgpt = pytest.importorskip("litgpt.model", reason="litgpt is not installed")
    from litgpt.config import Config

    write(tmp_path / "there", "litgpt")
    shutil.copyfile(tmp_path / "there" / "lit_model.pth", tmp_path / "copy.pth")
    reference = litgpt.GPT(Config.from_file(tmp_path / "there" / "model_config.yaml"))
    reference.load_state_dict(torch.load(tmp_path / "copy.pth", weights_only=True))
    ours, _ = load_base(make_fabric("32-true"), tmp_path / "there")
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(ids), reference(ids), rtol=1e-5, atol=1e-4)
