"""Layers that only mix tokens, or only have an MLP or a mixture (Nemotron-H): what they say, keep, learn and become."""

import pytest
import torch
from conftest import ALL, tiny_hf_config
from tiny import documents_of, gradients, kept_a_token, losses_of_steps, tiny

from lit_gpt.args import AdapterArgs, LoRAArgs
from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf, config_to_hf
from lit_gpt.convert.peft.writing import to_peft
from lit_gpt.data.batches import collate
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.generation.lockstep.batch import generate
from lit_gpt.layers.moe import MoE
from lit_gpt.layers.quantize import quantizable, quantized
from lit_gpt.methods import adapter, lora
from lit_gpt.training.flops import forward_flops, measured_flops, training_flops
from lit_gpt.training.graphs import _can_record
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.memory import _kept_by_mixer, kept_by_wrappers, kept_values

LAYERS = ["full_attention", "mlp", "moe"]
BASE = {"hidden_size": 64, "vocab_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
BASE |= {"intermediate_size": 48, "max_position_embeddings": 512, "layer_norm_epsilon": 1e-5, "ssm_state_size": 16}
BASE |= {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "architectures": ["NemotronHForCausalLM"]}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
EXPERTS |= {"moe_shared_expert_intermediate_size": 40, "routed_scaling_factor": 2.5}


def read(**keys):
    return config_from_hf(BASE | keys, "other", "config.json")


def test_the_layers_are_a_pattern_or_a_list_under_old_names_or_new_ones():
    config = read(hybrid_override_pattern="M-*E", **EXPERTS)
    assert config.mixers == ["mamba2", "none", "attention", "none"]
    assert [config.mlp_of(i) for i in range(4)] == [("none", 0), ("plain", 48), ("none", 0), ("moe", 24)]
    for types in (["mamba", "mlp", "attention", "moe"], ["linear_attention", "mlp", "full_attention", "moe"]):
        assert read(layers_block_type=types, **EXPERTS) == config
    written = config_to_hf(config)
    assert written["hybrid_override_pattern"] == "M-*E" and written["intermediate_size"] == 48
    assert config_from_hf(written, "other", "x") == config


def test_a_file_of_the_hub_says_what_we_list():
    """As far as remembered; with the keys of its own code, of which several are read by nothing."""
    hf = {"architectures": ["NemotronHForCausalLM"], "attention_bias": False, "chunk_size": 128, "conv_kernel": 4,
          "expand": 2, "head_dim": 128, "hidden_size": 4480, "initializer_range": 0.02, "intermediate_size": 15680,
          "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-", "n_groups": 8,
          "layer_norm_epsilon": 1e-5, "mamba_head_dim": 80, "mamba_hidden_act": "silu", "mamba_num_heads": 128,
          "mamba_proj_bias": False, "max_position_embeddings": 131072, "mlp_bias": False, "mlp_hidden_act": "relu2",
          "model_type": "nemotron_h", "num_attention_heads": 40, "num_hidden_layers": 56, "num_key_value_heads": 8,
          "num_logits_to_keep": 1, "rescale_prenorm_residual": True, "residual_in_fp32": False, "rms_norm_eps": 1e-5,
          "sliding_window": None, "ssm_state_size": 128, "tie_word_embeddings": False, "time_step_floor": 1e-4,
          "time_step_limit": [0.0, float("inf")], "time_step_max": 0.1, "time_step_min": 0.001, "use_bias": False,
          "use_cache": True, "use_conv_bias": True, "use_mamba_kernels": True, "vocab_size": 131072}  # fmt: skip
    name = "NVIDIA-Nemotron-Nano-9B-v2"
    assert config_from_hf(hf, name, "config.json") == config_for(f"nvidia/{name}")


@pytest.mark.parametrize(
    "keys, says",
    [
        ({"hybrid_override_pattern": "M-*X"}, "mixers=.*'X'.* is not one of"),
        ({"hybrid_override_pattern": "M-*", "num_hidden_layers": 4}, "mixers=.* is not one of .* for each layer"),
        ({}, "num_hidden_layers=0 is not the size"),
        ({"hybrid_override_pattern": "M-", "use_bias": True}, "use_bias=True is not supported for nemotron_h"),
        ({"hybrid_override_pattern": "M-", "time_step_limit": [0.0, 0.1]}, "time_step_limit=.* is not supported"),
        ({"hybrid_override_pattern": "ME", **EXPERTS, "norm_topk_prob": False}, "norm_topk_prob=False is not supp"),
        ({"hybrid_override_pattern": 5}, "hybrid_override_pattern=5"),
    ],
)
def test_what_is_not_computed_is_named(keys, says):
    with pytest.raises(UserError, match=says):
        read(**keys)


def test_a_layer_of_nothing_is_no_layer():
    with pytest.raises(UserError, match="layer 1 neither mixes tokens nor has an MLP"):
        Config(n_layer=2, mixers=["attention", "none"], mlp_layers=[0])


@pytest.mark.parametrize("trained", [False, True])
def test_what_a_layer_alone_keeps_is_what_the_count_says(trained):
    flags = {f"lora_{name}": trained for name in ("key", "projection", "mlp")}

    def kept(layers):
        model = tiny("nemotron-h-moe", layers_block_type=layers).train()
        lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=0.0, **flags))
        c, found = model.config, kept_a_token(model)
        return c, found, c.n_layer * (kept_values(c) + kept_by_wrappers(model))

    _, found, counted = kept(LAYERS)
    for kind in LAYERS:
        c, more, wanted = kept([*LAYERS, kind])
        rounding = len(LAYERS)  # the mean over the layers is whole
        handed_out = 0 if trained or kind != "moe" else c.n_expert_per_token * c.latent_size
        statistics = 5 * c.n_expert_per_token if kind == "moe" else c.n_head
        wanted -= counted + handed_out
        assert 0.9 * wanted - rounding <= more - found <= wanted + statistics + rounding, (kind, more - found, wanted)


def test_what_mamba_2_keeps_in_16_bits_is_what_the_count_says():
    """Its rule is computed again from what the convolution has made, which autograd is not asked to save."""
    model, documents, storages = tiny("nemotron-h").bfloat16(), collate(documents_of((64, 1))).documents, {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        if (storage := x.untyped_storage()).data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # alive, or its address may be another one's before the end
        return x

    x = torch.randn(1, n := sum(documents.lengths), model.config.n_embd, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.transformer.h[0].attn(x, x, x, documents=documents)
    c, n_kept = model.config, sum(storage.nbytes() / 2 for storage in storages.values())
    found = n_kept / n - c.n_embd + sum(c.ssm_sizes)
    assert found == pytest.approx(_kept_by_mixer(model.config, 0), rel=0.02)


def test_the_operations_are_those_that_torch_counts():
    """Attention is where a layer has it; the rule of Mamba-2 is below, and so not in this model."""
    with torch.device("meta"):
        model = tiny("nemotron-h", layers_block_type=["full_attention", "mlp", "mlp", "full_attention", "mlp"])
    whole = 2 * (2 * 64**2)  # torch counts scores that the causal mask hides, too
    assert training_flops(model, 128, 128, squares=whole) == pytest.approx(measured_flops(model, 2, 64), rel=1e-3)
    assert forward_flops(model, 128, 128, squares=whole) == pytest.approx(measured_flops(model, 2, 64) / 3, rel=1e-3)


@pytest.mark.parametrize("lowest", [0, 1])
@pytest.mark.parametrize("kind, system", [("granite4", False), ("qwen3.5", True)])
def test_the_operations_count_what_a_state_takes(kind, system, lowest):
    """Its forward pass runs once more before the backward pass. Torch counts no triangular system.

    The backward pass leaves out the gradient of the zeros that a state begins with, and takes more for the system.
    """
    model = tiny(kind).to("meta")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("transformer.wte", "transformer.h.0")[: 1 + lowest]))
    n_tokens, whole = 2 * 128, 2 * (2 * 128**2)
    counted = measured_flops(model, 2, 128)
    if system:
        c = model.config
        passes = [1 if i < lowest else 4 for i in range(c.n_layer) if c.mixer(i) == "delta"]
        counted += sum(passes) * n_tokens * 64 * c.delta_value_heads * (c.delta_key_size + c.delta_value_size)
    assert training_flops(model, n_tokens, n_tokens, squares=whole) == pytest.approx(
        counted, rel=1e-3 if lowest else 0.03
    )


def test_a_base_in_8_bits_learns():
    model = tiny("nemotron-h-moe", hidden_size=64, intermediate_size=64)
    for path in quantizable(model):
        model.set_submodule(path, quantized(model.get_submodule(path), "int8"))
    lora.inject(model, LoRAArgs(lora_r=4, lora_dropout=0.0, **ALL))
    losses = losses_of_steps(model, collate(documents_of((20, 7))))
    assert losses[-1] < 0.95 * losses[0], losses


def test_one_pass_over_plain_experts_has_the_gradients_of_each_by_itself(monkeypatch):
    model, batch, found = tiny("nemotron-h-moe"), collate(documents_of((20, 7, 9))), []
    lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=0.0, lora_mlp=True))
    for name, p in model.named_parameters():
        if lora.trainable(name):
            torch.nn.init.normal_(p, std=0.2)
    called = []
    for expert in model.transformer.h[1].mlp.experts:
        expert.fc.register_forward_pre_hook(lambda *given: called.append(1))
    found.append(gradients(model, loss_sum(model, batch)))
    assert not called
    monkeypatch.setattr(MoE, "in_one_pass", lambda *given: None)
    found.append(gradients(model, loss_sum(model, batch)))
    assert called and found[0].keys() == found[1].keys()
    for name, wanted in found[1].items():
        torch.testing.assert_close(found[0][name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max() + 1))


@torch.no_grad()
def test_updates_of_all_layers_merge():
    model, ids = tiny("nemotron-h-moe"), torch.arange(30)[None]
    lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=0.0, **ALL))
    for name, p in model.named_parameters():
        if lora.trainable(name):
            torch.nn.init.normal_(p, std=0.05)
    want = model(ids)
    lora.merge(model)
    torch.testing.assert_close(model(ids), want, rtol=1e-4, atol=1e-4)
    assert not any(".lora_" in name for name, _ in model.named_parameters())


def test_prompts_are_added_where_there_is_attention():
    args = AdapterArgs(adapter_prompt_length=4, adapter_start_layer=0)
    model = tiny("nemotron-h")
    adapter.inject(model, args)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"transformer.h.2.attn.{name}" for name in ("adapter_wte.weight", "gating_factor")}
    args = AdapterArgs(adapter_prompt_length=4, adapter_start_layer=3)
    with pytest.raises(
        UserError, match="nothing to train: the last of the model's layers with keys and values of its own is 2"
    ):
        adapter.inject(tiny("nemotron-h"), args)


def test_outputs_of_mamba_are_refused_for_peft_which_refuses_them():
    model = tiny("nemotron-h")
    args = LoRAArgs(lora_r=2, lora_projection=True)
    lora.inject(model, args)
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(UserError, match=r"adapts no out_proj of NemotronHForCausalLM.*layers\.0\.mixer.*merge"):
        to_peft(model.config, args, trained)


def test_what_a_gpu_is_asked_of_attention_is_asked_of_a_layer_that_has_it():
    """Granite 4 and Nemotron-H begin with Mamba-2, whose rule goes by lengths that only the host knows."""
    for kind in ("granite4", "nemotron-h"):
        model = tiny(kind)
        assert model.attention_heads.sizes == model.config.qkv_sizes and not _can_record(model)
    model = tiny("nemotron-h", layers_block_type=["linear_attention", "mlp"])
    assert model.attention_heads is None and not _can_record(model)


@torch.no_grad()
def test_small_time_steps_are_raised_in_every_step():
    """As transformers does in passes over several tokens; in steps of one it does not, and generates otherwise."""
    from conftest import ours_of, tiny_hf

    theirs = tiny_hf("nemotron-h")
    ours, prompt = ours_of(theirs, "nemotron-h"), [5, 9, 200, 17, 40, 3]
    got, ids = list(generate(ours, prompt, 10, temperature=0)), list(prompt)
    for _ in range(10):
        ids.append(int(theirs(torch.tensor([ids])).logits[0, -1].argmax()))
    assert got == ids[len(prompt) :]
    low = tiny_hf("nemotron-h", time_step_min=1e-6)
    settings = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10}
    with_cache = low.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 6), **settings)[0, 6:].tolist()
    assert list(generate(ours_of(low, "nemotron-h"), prompt, 10, temperature=0)) == with_cache
    assert tiny_hf_config("nemotron-h").time_step_min > 0.5
