"""What we write for other tools, they load as it is: every family, both directions, through the scripts' own steps."""

import json

import pytest
import torch
from conftest import OF_CLASSES, SHAPES, assert_one_line_error, tiny_hf, write_tokenizer
from script_processes import run

from lit_gpt.errors import UserError
from lit_gpt.families.gemma_2 import CAPS
from lit_gpt.tokenizer import Tokenizer

LITGPT_LACKS = {"stablelm-12b": "qk_norm", "qwen2-yarn": "rope_scaling", "phi3-long": "rope_scaling"} | {
    "phi3-short": "rope_scaling",
    "llama-long": "rope_scaling",
    "phi4-mini": "rope_scaling",
    "smollm3": "unrotated_layers",
    "olmo3": "rope_scaling",
    "granite": "embedding_factor",
    "exaone4": "unrotated_layers",
    "hunyuan": "rotates_first",
    "gemma4": "value_norm",
    "nemotron": "activation",
    "apertus": "activation",
    "gpt-oss": "attention_sinks",
    "lfm2": "mixers",
    "qwen3.5": "mixers",
    **dict.fromkeys(("qwen3-next", "qwen3.5-moe", "granite4-moe"), "mixers"),
    **dict.fromkeys(("granite4", "llama4"), "unrotated_layers"),
    **dict.fromkeys(("nemotron-h", "nemotron-h-moe"), "unrotated_layers"),
    "glm4-moe": "router",
}
"""Kind -> the field that litgpt has no such value of."""
OF_LITGPT = [*OF_CLASSES, "llama-gqa", "llama-tied", "llama-3", "llama-linear", "llama-biases", "neox-full-rotary"]
OF_LITGPT += ["falcon-40b", "falcon-11b", "qwen2-yarn", "stablelm-12b"]
"""One of each class, and of what a class has in two ways: its model_config.yaml is made of traits, not of names."""


def loaded(folder):
    """transformers' model of a folder; fails on any missing or unexpected key."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def convert(kind, folder, capsys, shape=None, **options):
    """A tiny model by way of both scripts' `main`, and what the second printed.

    Args:
        shape: what it has otherwise than those of its kind.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    from conftest import ROOT

    def main(name):
        spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main

    theirs = tiny_hf(kind, **shape or {})
    theirs.save_pretrained(folder / "there")
    write_tokenizer(folder / "there")
    main("convert_hf_checkpoint")(folder / "there")
    capsys.readouterr()
    main("convert_lit_checkpoint")(folder / "there", folder / "back", **options)
    return theirs, capsys.readouterr().out


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_transformers_loads_what_we_write(kind, tmp_path, capsys):
    theirs, out = convert(kind, tmp_path, capsys, max_shard_gb=2e-5)
    assert "read back, on" in out and out.strip().endswith(": 0")
    assert (tmp_path / "back" / "model.safetensors.index.json").is_file()
    again, tokenizer = loaded(tmp_path / "back")
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(ids).logits, theirs(ids).logits)
    assert tokenizer.encode("the king", add_special_tokens=False)
    assert again.config.eos_token_id == 265


@torch.no_grad()
def test_a_gemma_without_caps_is_written_without_them(tmp_path, capsys):
    theirs, _ = convert("gemma2", tmp_path, capsys, dict.fromkeys(CAPS))
    again, _ = loaded(tmp_path / "back")
    assert [getattr(again.config, cap) for cap in CAPS] == [None, None]
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize(
    "kind", ["llama-tied", "falcon-40b", "phi", "gemma2", "mixtral", "olmo2", "phi3-long", "smollm3", "gemma4", "olmo3"]
)
@torch.no_grad()
def test_logits_of_one_block_at_a_time_are_those_of_the_whole_model(kind, tmp_path, capsys):
    from lit_gpt.checkpoints.layouts import open_lit
    from lit_gpt.convert.verify import streamed_logits

    theirs, _ = convert(kind, tmp_path, capsys)
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    config, _, get = open_lit(tmp_path / "there")
    want = theirs(ids).logits[0]
    torch.testing.assert_close(streamed_logits(config, get, ids[0].tolist()), want, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_another_dtype_is_written_if_asked(tmp_path, capsys):
    theirs, out = convert("llama", tmp_path, capsys, dtype="bfloat16")
    again, _ = loaded(tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert 0 < float(out.split()[-1]) < 10
    for name, x in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], x.bfloat16().float())


@pytest.mark.parametrize("kind", OF_LITGPT)
@torch.no_grad()
def test_litgpt_computes_the_same_from_what_we_write_for_it(kind, tmp_path, capsys):
    """The reference is litgpt itself where it is installed; our own reading of its layout otherwise."""
    from importlib.util import find_spec

    if kind in LITGPT_LACKS:
        with pytest.raises(UserError, match=LITGPT_LACKS[kind]):
            convert(kind, tmp_path, capsys, format="lit")
        return
    theirs, out = convert(kind, tmp_path, capsys, format="lit")
    assert out.strip().endswith(": 0")
    assert {p.name for p in (tmp_path / "back").iterdir()} >= {"lit_model.pth", "model_config.yaml", "tokenizer.json"}
    if find_spec("litgpt") is None:
        return
    from litgpt.config import Config
    from litgpt.model import GPT

    reference = GPT(Config.from_checkpoint(tmp_path / "back")).eval()
    reference.load_state_dict(torch.load(tmp_path / "back" / "lit_model.pth", weights_only=True))
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(reference(ids), theirs(ids).logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind, least, most", [("F16", 0, 0.05), ("BF16", 1e-4, 0.5), ("Q8_0", 1e-4, 1.0)])
def test_a_gguf_is_read_back_and_the_cost_of_its_type_is_told(kind, least, most, tmp_path, capsys):
    _, out = convert("llama", tmp_path, capsys, format="gguf", gguf_type=kind)
    assert least <= float(out.split()[-1]) < most
    assert {path.name for path in (tmp_path / "back").iterdir()} == {f"there-{kind}.gguf", "Modelfile"}


def test_options_of_another_format_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="--gguf_type"):
        convert("llama", tmp_path, capsys, format="gguf", dtype="float16")


@torch.no_grad()
def test_rows_without_a_token_can_be_left_out(tmp_path, capsys):
    theirs, _ = convert("llama", tmp_path, capsys, unpad_vocab=True)
    again, _ = loaded(tmp_path / "back")
    ids = torch.tensor([[5, 9, 200]])
    n = again.config.vocab_size
    assert n < 320
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits[..., :n])


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused_with_both_numbers(tmp_path):
    tiny_hf("llama", vocab_size=96).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    process = run("scripts/convert_hf_checkpoint.py", "--checkpoint_dir", tmp_path, cwd=tmp_path)
    assert_one_line_error(process, f"{Tokenizer(tmp_path).vocab_size:,} tokens", "96 rows")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_padded_vocabulary_changes_no_logit(tmp_path):
    from lit_gpt.config import Config
    from lit_gpt.files import load_state
    from lit_gpt.model import GPT

    theirs = tiny_hf("neox")
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    process = run(
        "scripts/convert_hf_checkpoint.py", "--checkpoint_dir", tmp_path, "--pad_vocab_multiple", 256, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    config = Config.from_json(tmp_path / "lit_config.json")
    assert (config.vocab_size, config.padded_vocab_size) == (320, 512)
    ours = GPT(config)
    ours.load_state_dict(load_state(tmp_path / "lit_model.pth", ""))
    ids = torch.tensor([[5, 9, 200]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[..., :320], theirs(ids).logits, rtol=1e-5, atol=1e-4)
        assert not ours(ids)[..., 320:].any()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda state: state["model.layers.1.mlp.up_proj.weight"].view(-1)[7:8].fill_(float("nan")), "holds NaN"),
        (lambda state: state.pop("model.norm.weight"), "no tensor 'model.norm.weight'"),
        (lambda state: state.update({"model.extra.weight": torch.ones(1)}), "model.extra.weight"),
        (lambda state: state.update({"model.norm.weight": torch.ones(7)}), "model.norm.weight [7]"),
        (
            lambda state: state.update({"lm_head.weight": torch.ones(320, 32, dtype=torch.int8)}),
            "lm_head.weight holds int8",
        ),
    ],
)
def test_a_spoilt_tensor_is_named_and_nothing_is_written(spoil, message, tmp_path):
    from safetensors.torch import save_file

    model = tiny_hf("llama")
    state = {n: x.clone() for n, x in model.state_dict().items()}
    spoil(state)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}, default=str)
    )
    write_tokenizer(tmp_path)
    process = run("scripts/convert_hf_checkpoint.py", "--checkpoint_dir", tmp_path, cwd=tmp_path)
    assert_one_line_error(process, message)
    assert not any(p.name.startswith((".lit", "lit")) for p in tmp_path.iterdir())


def test_tensors_of_one_module_in_two_dtypes_are_kept_in_the_wider(checkpoint, tmp_path):
    from lit_gpt.config import Config
    from lit_gpt.convert.names import plan_from_hf, stream_from_hf, to_hf
    from lit_gpt.files import load_state, spec_of

    config = Config.from_json(checkpoint / "lit_config.json")
    theirs = to_hf(config, load_state(checkpoint / "lit_model.pth", ""))
    theirs["model.layers.0.self_attn.q_proj.weight"] = theirs["model.layers.0.self_attn.q_proj.weight"].half()
    plan = plan_from_hf(config, {name: spec_of(x) for name, x in theirs.items()})
    assert {name: spec_of(x) for name, x in stream_from_hf(config, theirs, theirs.__getitem__)} == plan


def test_a_head_of_its_own_where_the_configuration_has_none_is_refused(downloaded):
    from lit_gpt.convert.configs import config_from_hf
    from lit_gpt.convert.names import from_hf
    from lit_gpt.convert.readers import open_source

    source = open_source(downloaded["llama-tied"])
    config = config_from_hf(source.hf_config, "tied", "config.json")
    state = {name: source.get(name) for name in source.names}
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    assert from_hf(config, state, state.__getitem__)["lm_head.weight"] is not None
    state["lm_head.weight"][7, 3] += 1
    with pytest.raises(UserError, match=r"lm_head\.weight is not the embeddings.*tie_word_embeddings"):
        from_hf(config, state, state.__getitem__)


def test_an_existing_folder_is_not_replaced_unasked(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    command = ("scripts/convert_lit_checkpoint.py", "--checkpoint_dir", checkpoint, "--output_dir", tmp_path / "out")
    assert_one_line_error(run(*command, cwd=tmp_path), "overwrite")
    assert (tmp_path / "out" / "mine.txt").is_file()


def test_what_is_no_checkpoint_is_named_with_the_way_out(checkpoint, tmp_path):
    command = ("scripts/convert_lit_checkpoint.py", "--output_dir", "out", "--checkpoint_dir")
    assert_one_line_error(run(*command, "nowhere", cwd=tmp_path), "no folder nowhere", "download.py")
    command = ("scripts/convert_hf_checkpoint.py", "--checkpoint_dir", checkpoint, "--pad_vocab_multiple", 0)
    assert_one_line_error(run(*command, cwd=tmp_path), "--pad_vocab_multiple 0")
