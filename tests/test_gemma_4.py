"""What Gemma 4 has that no other family has: config.json in two spellings, layers without keys, a table a layer."""

import pytest
import torch
from conftest import ALL, ours_of, tiny_hf
from peft_models import as_peft, close, move, trainable
from tiny import documents_of, gradients, kept_a_token, losses_of_steps, tiny

from lit_gpt.args import AdapterArgs, LoRAArgs, LoRARunArgs
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import from_hf
from lit_gpt.data.batches import collate
from lit_gpt.data.store import IGNORE
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.generation.batching.pool import Pool
from lit_gpt.layer_heads import kv_source
from lit_gpt.layers.per_layer import Carried
from lit_gpt.layers.quantize import quantizable, quantized
from lit_gpt.layers.quantize.frozen import QuantizedLinear
from lit_gpt.methods import adapter, lora
from lit_gpt.model import GPT, KVCache
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.memory import kept_by_wrappers, kept_values, lowest_trained

E2B = {
    "architectures": ["Gemma4ForCausalLM"],
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 131072,
    "vocab_size": 262144,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "tie_word_embeddings": True,
}


def read(**changes):
    return config_from_hf(E2B | changes, "gemma-4-E2B-it", "config.json")


def test_a_file_that_leaves_out_what_transformers_takes_for_granted_is_the_listed_model():
    listed = config_for("gemma-4-E2B-it")
    listed.padding_multiple, listed.wrapper = read().padding_multiple, ""
    assert read() == listed
    assert {kv_source(listed, i) for i in range(15, 35)} == {13, 14}


def test_heads_of_full_layers_are_read_in_both_spellings():
    keys = {"attention_k_eq_v": True, "global_head_dim": 256, "num_global_key_value_heads": 2}
    full = {str(i): {"head_dim": 256, "num_key_value_heads": 2} for i in range(4, 35, 5)}
    assert read(**keys) == read(attention_k_eq_v=True, per_layer_config=full)
    ungated = read(**keys | {"attention_k_eq_v": False})
    assert (ungated.full_head_size, ungated.full_query_groups) == (256, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"per_layer_config": {"3": {"head_dim": 512}}}, "per_layer_config"),
        ({"per_layer_config": {str(i): {"head_dim": 512 + i} for i in range(4, 35, 5)}}, "per_layer_config"),
        ({"per_layer_config": {str(i): {"hidden_size": 512} for i in range(4, 35, 5)}}, "per_layer_config"),
        ({"per_layer_config": [1]}, "per_layer_config"),
        ({"vocab_size_per_layer_input": 1000}, "vocab_size_per_layer_input=1000"),
        ({"num_kv_shared_layers": 35}, "kv_shared_layers=35"),
        ({"num_kv_shared_layers": 31}, "leave a kind of attention without a layer that has keys"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ],
)
def test_what_would_be_another_model_is_refused_by_name(changes, says):
    with pytest.raises(UserError, match=says):
        read(**changes)


@torch.no_grad()
def test_keys_and_values_that_files_have_for_layers_that_share_are_not_read():
    theirs = tiny_hf("gemma4")
    ours, state = ours_of(theirs, "gemma4"), theirs.state_dict()
    attn = "model.layers.{}.self_attn.{}.weight"
    more = {attn.format(i, n): state[attn.format(i - 2, n)] for i in (2, 3) for n in ("k_proj", "v_proj", "k_norm")}
    again = from_hf(ours.config, state | more, (state | more).__getitem__)
    assert all(torch.equal(x, again[name]) for name, x in ours.state_dict().items())
    with pytest.raises(UserError, match="1 tensors have no place in gemma4"):
        from_hf(ours.config, [*state, attn.format(1, "v_norm")], state.__getitem__)


def test_the_cache_and_the_pool_keep_nothing_for_layers_that_share():
    model = tiny("gemma4")
    cache, pool = KVCache(model, 1, 16), Pool(model, 16, torch.float32)
    for layers in ([layer.k for layer in cache.layers], pool.v):
        assert [x.numel() > 0 for x in layers] == [True, True, False, False]


def test_lora_and_prompts_are_where_keys_and_values_are():
    model = tiny("gemma4")
    lora.inject(model, LoRAArgs(lora_r=2, **ALL))
    blocks = [len(block.attn.qkv.blocks) for block in model.transformer.h]
    assert blocks == [3, 3, 1, 1]
    only_values = tiny("gemma4-moe")
    lora.inject(only_values, LoRAArgs(lora_r=2, lora_query=False, lora_value=True))
    assert [hasattr(block.attn.qkv, "blocks") for block in only_values.transformer.h] == [True, False]
    prompted = tiny("gemma4")
    adapter.inject(prompted, AdapterArgs(adapter_prompt_length=2, adapter_start_layer=0))
    assert [hasattr(block.attn, "adapter_wte") for block in prompted.transformer.h] == [True, True, False, False]
    with pytest.raises(UserError, match="the last of the model's layers with keys and values of its own is 1"):
        adapter.inject(tiny("gemma4"), AdapterArgs(adapter_start_layer=2))


def test_the_table_of_a_layer_and_the_layers_that_take_keys_train():
    """With full finetuning; a table's gradient is that of the tokens that were there."""
    model = tiny("gemma4").train()
    found = gradients(model, loss_sum(model, collate(documents_of((20, 7)))))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert found["transformer.per_layer.wte.weight"].abs().sum(1).count_nonzero() > 10


def test_blocks_that_are_computed_again_find_the_keys_of_earlier_ones():
    model = tiny("gemma4").train()
    results = []
    for model.n_recomputed in (0, 3, 4):
        results.append(gradients(model, loss_sum(model, collate(documents_of((20, 7))))))
    for other in results[1:]:
        assert all(torch.allclose(other[name], g, rtol=1e-5, atol=1e-6) for name, g in results[0].items())


def test_fsdp_hands_on_what_a_pass_takes_along_and_no_copy():
    from torch.distributed.utils import _apply_to_tensors  # what it does to the arguments of a block

    carried = Carried(torch.zeros(1))
    assert _apply_to_tensors(lambda x: x.clone(), {"carried": carried})["carried"] is carried


@pytest.mark.parametrize("n_recomputed", [0, 4])
def test_lora_on_per_layer_inputs_has_the_gradients_of_peft(n_recomputed):
    """Also where blocks are computed again, of which each hands a gradient to what was made before all of them."""
    theirs = tiny_hf("gemma4")
    args = LoRAArgs(lora_r=4, lora_alpha=12, lora_dropout=0.0, lora_query=False, lora_value=False, lora_per_layer=True)
    model = ours_of(theirs, "gemma4")
    lora.inject(model, args)
    move(model)
    model.n_recomputed = n_recomputed
    peft = as_peft(theirs, model, args)
    ((ids, labels),) = documents_of((20,))
    found = gradients(model.train(), loss_sum(model, collate([(ids, labels)])))
    assert len(found) == 2 * (1 + 2 * 4) == len(trainable(peft))
    targets = torch.from_numpy(labels.astype("int64"))[1:]
    logits = peft.train()(torch.from_numpy(ids.astype("int64"))[None]).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORE).backward()
    base = peft.base_model.model.model
    pairs = {"transformer.per_layer.proj": base.per_layer_model_projection}
    for i, layer in enumerate(base.layers):
        pairs[f"transformer.h.{i}.per_layer.gate_proj"] = layer.per_layer_input_gate
        pairs[f"transformer.h.{i}.per_layer.proj"] = layer.per_layer_projection
    for path, layer in pairs.items():
        for matrix in ("lora_A", "lora_B"):
            close(found[f"{path}.{matrix}.0"], getattr(layer, matrix).default.weight.grad, 1e-4)


@torch.no_grad()
def test_lora_on_per_layer_inputs_merges_and_says_where_there_are_none():
    model, ids = tiny("gemma4"), torch.randint(0, 320, (1, 9))
    lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=0.0, lora_query=False, lora_value=False, lora_per_layer=True))
    move(model)
    want = model(ids)
    lora.merge(model)
    torch.testing.assert_close(model(ids), want, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in model.named_parameters())
    with pytest.raises(UserError, match="LoRA adapts nothing: llama has no layers for --lora_per_layer"):
        lora.inject(tiny("llama"), LoRAArgs(lora_query=False, lora_value=False, lora_per_layer=True))


def test_an_update_of_the_models_projection_alone_is_reached_through_all_blocks():
    flags = {"lora_query": False, "lora_value": False, "lora_per_layer": True}
    model = tiny("gemma4")
    lora.inject(model, LoRARunArgs(lora_r=2, lora_dropout=0.0, ranks={"transformer.per_layer.proj": 2}, **flags))
    found = gradients(model, loss_sum(model, collate(documents_of((20, 7)))))
    assert list(found) == ["transformer.per_layer.proj.lora_A.0", "transformer.per_layer.proj.lora_B.0"]
    assert lowest_trained(model) == 0, "what is kept, and counted"


def test_lora_on_per_layer_inputs_of_a_base_in_8_bits_learns():
    model = tiny("gemma4", hidden_size=64, hidden_size_per_layer_input=64)
    for path in quantizable(model):
        model.set_submodule(path, quantized(model.get_submodule(path), "int8"))
    lora.inject(model, LoRAArgs(lora_r=4, lora_dropout=0.0, lora_query=False, lora_value=False, lora_per_layer=True))
    assert isinstance(model.transformer.per_layer.proj.linear, QuantizedLinear)
    losses = losses_of_steps(model, collate(documents_of((20, 7))))
    assert losses[-1] < losses[0], losses


@pytest.mark.parametrize("kind", ["gemma4", "gemma4-moe"])
def test_no_block_keeps_more_than_the_count_says(kind):
    kept, shape = {}, ["sliding_attention", "full_attention"]
    for n in (4, 6):
        model = tiny(kind, num_hidden_layers=n, layer_types=shape * (n // 2)).train()
        lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=0.0, lora_mlp=True, lora_per_layer=True))
        kept[n] = kept_a_token(model)
    counted = kept_values(model.config) + kept_by_wrappers(model)
    assert 0.6 * counted <= (kept[6] - kept[4]) / 2 <= counted + model.config.n_head + 12


def test_a_model_without_its_weights_is_made_in_all_listed_sizes():
    for name in ("gemma-4-E4B", "gemma-4-31B-it"):
        with torch.device("meta"):
            model = GPT(config_for(name))
        full = model.transformer.h[5].attn.qkv.out_features
        c = model.config
        assert full == 512 * (c.n_head + (c.full_query_groups if c.keys_as_values else 2 * c.n_query_groups))
