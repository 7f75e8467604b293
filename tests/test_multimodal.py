"""The language model of a multimodal checkpoint is taken out, and put back so that the whole loads as its class."""

import json
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from chats import save_run_of
from conftest import DELTAS, ROOT, SHARED_EXPERT, SHARED_KEYS, SLIDING_FULL, write_tokenizer

from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.runs import load_finetuned
from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.families.wrappers import name_in_whole, name_of_text
from lit_gpt.files import load_state, save_state
from lit_gpt.hub.supported import check_supported
from lit_gpt.model import GPT

TEXT = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PIXTRAL = {"spatial_merge_size": 1}
TEXT |= {"max_position_embeddings": 512, "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 264}
SIGLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIGLIP |= {"image_size": 16, "patch_size": 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6, "mscale": 1.0}
YARN |= {"mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1, "beta_fast": 32.0, "beta_slow": 1.0}
GEMMA_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
GEMMA_VISION |= {"num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "position_embedding_size": 8}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
QWEN_VISION |= {"num_position_embeddings": 16}
WHOLES = {
    "gemma3": ("Gemma3", {"mm_tokens_per_image": 4}, {"model_type": "gemma3_text", **SLIDING_FULL}, SIGLIP),
    "gemma4": (
        "Gemma4",
        {"audio_config": None},
        {"model_type": "gemma4_text", **SHARED_KEYS, "head_dim": 8},
        GEMMA_VISION,
    ),
    "mistral3": ("Mistral3", PIXTRAL, {"model_type": "mistral", "sliding_window": None}, SIGLIP),
    "ministral3": (
        "Mistral3",
        {"spatial_merge_size": 1},
        {"model_type": "ministral3", "rope_parameters": YARN},
        SIGLIP,
    ),
    "untied": ("Mistral3", PIXTRAL | {"tie_word_embeddings": False}, {"model_type": "mistral"}, SIGLIP),
    "qwen3.5-moe": ("Qwen3_5Moe", {}, {"model_type": "qwen3_5_moe_text", **DELTAS, **SHARED_EXPERT}, QWEN_VISION),
    "llava": ("Llava", {"image_seq_length": 4}, {"model_type": "llama"}, {"model_type": "clip_vision_model", **SIGLIP}),
}


def main(name):
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def whole(kind, folder):
    """A tiny multimodal model of transformers with random values, in a folder as it comes from the hub."""
    import transformers

    name, more, text, vision = WHOLES[kind]
    if name == "Mistral3":
        vision = {"model_type": "pixtral", "head_dim": 8, **vision}
    config = getattr(transformers, f"{name}Config")(text_config=TEXT | text, vision_config=vision, **more)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.mark.parametrize("kind", WHOLES)
@torch.no_grad()
def test_the_language_model_is_taken_out_and_put_back(kind, tmp_path, capsys):
    theirs = whole(kind, tmp_path / "there")
    check_supported(tmp_path / "there" / "config.json", kind)
    main("convert_hf_checkpoint")(tmp_path / "there")
    out = capsys.readouterr().out
    assert f"Only the language model of {type(theirs).__name__} is converted. Left behind:" in out and "vis" in out
    config = Config.from_json(tmp_path / "there" / CONFIG)
    state = load_state(tmp_path / "there" / WEIGHTS, "")
    ours = GPT(config).eval()
    ours.load_state_dict(state)
    ids = torch.randint(0, 264, (1, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    state[next(n for n in state if ".h.0.mlp." in n and n.endswith("proj.weight"))] += 0.1  # a finetuned one
    ours.load_state_dict(state)
    save_state(state, tmp_path / "there" / WEIGHTS)
    main("convert_lit_checkpoint")(tmp_path / "there", tmp_path / "back")
    assert capsys.readouterr().out.strip().endswith(": 0")
    again, info = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True, dtype=torch.float32)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    torch.testing.assert_close(again.eval()(ids).logits, ours(ids), rtol=1e-4, atol=1e-4)
    for name, x in theirs.state_dict().items():
        assert ("layers.0.mlp." in name and "down_proj" in name and "vision" not in name) or torch.equal(
            x, again.state_dict()[name]
        )


def test_a_folder_of_another_class_is_refused_and_without_one_the_text_is_written(tmp_path, capsys):
    whole("gemma3", tmp_path / "there")
    main("convert_hf_checkpoint")(tmp_path / "there")
    whole("llava", tmp_path / "other")
    with pytest.raises(UserError, match="holds a LlavaForConditionalGeneration, and the decoder is of a Gemma3For"):
        main("convert_lit_checkpoint")(tmp_path / "there", tmp_path / "a", multimodal_dir=tmp_path / "other")
    (tmp_path / "empty").mkdir()
    main("convert_lit_checkpoint")(tmp_path / "there", tmp_path / "b", multimodal_dir=tmp_path / "empty")
    assert "Only the language model is written" in capsys.readouterr().out
    assert json.loads((tmp_path / "b" / "config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]


def test_what_the_hub_leaves_out_of_the_text_is_what_transformers_takes():
    hf = {"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}, "mm_tokens_per_image": 256}
    hf["text_config"] = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    hf["text_config"] |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    from lit_gpt.families import config_for

    found, listed = config_from_hf(hf, "gemma-3-4b-it", "config.json"), config_for("gemma-3-4b-it")
    listed.padding_multiple = found.padding_multiple
    assert found == listed


@pytest.mark.parametrize("kind", WHOLES)
@torch.no_grad()
def test_an_adapter_for_peft_adapts_the_whole_as_transformers_loads_it_and_comes_back(kind, tmp_path):
    """Names of the decoder alone would adapt nothing there, and names of layers the vision tower's as well."""
    import peft

    model, base = whole(kind, tmp_path / "base"), tmp_path / "base"
    main("convert_hf_checkpoint")(base)
    run_dir, adapter = save_run_of("lora", base, tmp_path / "run"), tmp_path / "adapter"
    convert = main("convert_peft_adapter")
    convert(to="peft", checkpoint_dir=base, finetuned_path=run_dir, peft_dir=adapter)
    ids = torch.randint(3, 60, (1, 9), generator=torch.Generator().manual_seed(0))
    ours, _ = load_finetuned(make_fabric("32-true"), base, run_dir)
    wanted, before = ours.eval()(ids), model(ids).logits
    adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
    n = min(wanted.size(-1), before.size(-1))
    assert (before[..., :n] - wanted[..., :n]).abs().max() > 0.1
    torch.testing.assert_close(adapted(ids).logits[..., :n], wanted[..., :n], atol=5e-4, rtol=1e-4)
    assert all("language_model.layers." in name for name, _ in adapted.named_parameters() if "lora" in name)
    adapted.save_pretrained(tmp_path / "saved")
    for folder in (adapter, tmp_path / "saved"):
        convert(to="lit", checkpoint_dir=base, peft_dir=folder, finetuned_path=tmp_path / f"{folder.name}-run")
        back, _ = load_finetuned(make_fabric("32-true"), base, tmp_path / f"{folder.name}-run")
        torch.testing.assert_close(back.eval()(ids), wanted, atol=5e-5, rtol=1e-5)


def test_the_decoder_of_llama_4_has_its_head_within():
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text = TEXT | {"intermediate_size_mlp": 48, "num_local_experts": 2}
    vision = SIGLIP | {"intermediate_size": 64, "vision_output_dim": 16, "projector_input_dim": 16}
    with torch.device("meta"):
        model = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision))
    modules = dict(model.named_modules())
    for name in ("model.layers.1.self_attn.q_proj", "model.embed_tokens", "lm_head"):
        there = name_in_whole(name, "Llama4ForConditionalGeneration")
        assert there in modules and name_of_text(there) == name


def test_an_adapter_that_peft_made_of_a_whole_is_read_unless_it_has_learned_from_images(tmp_path):
    import peft

    model, base = whole("llava", tmp_path / "base"), tmp_path / "base"
    main("convert_hf_checkpoint")(base)
    ranks = {"model.language_model.layers.1.self_attn.v_proj": 2}
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern=ranks)
    adapted = peft.get_peft_model(model, settings)
    for name, p in adapted.named_parameters():
        if "lora_B" in name and "language_model" in name:
            torch.nn.init.normal_(p, std=0.3)
    ids = torch.randint(3, 60, (1, 9), generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(tmp_path / "adapter")
    convert = main("convert_peft_adapter")
    convert(to="lit", checkpoint_dir=base, peft_dir=tmp_path / "adapter", finetuned_path=tmp_path / "run")
    ours, _ = load_finetuned(make_fabric("32-true"), base, tmp_path / "run")
    with torch.no_grad():
        wanted = adapted.eval()(ids).logits
        torch.testing.assert_close(ours.eval()(ids)[..., : wanted.size(-1)], wanted, atol=5e-4, rtol=1e-4)
    config = tmp_path / "adapter" / "adapter_config.json"
    before = json.loads(config.read_text())
    config.write_text(json.dumps(before | {"alpha_pattern": {".*language_model.*v_proj": 3}}))
    with pytest.raises(UserError, match=r"the pattern '.*language_model.*'.*list the names instead"):
        convert(to="lit", checkpoint_dir=base, peft_dir=tmp_path / "adapter", finetuned_path=tmp_path / "other")
    config.write_text(json.dumps(before | {"target_parameters": [7]}))
    convert(to="lit", checkpoint_dir=base, peft_dir=tmp_path / "adapter", finetuned_path=tmp_path / "seven")
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    adapted.save_pretrained(tmp_path / "seen")
    with pytest.raises(UserError, match=r"the adapter changes model\.vision_tower.*has no counterpart"):
        convert(to="lit", checkpoint_dir=base, peft_dir=tmp_path / "seen", finetuned_path=tmp_path / "other")
