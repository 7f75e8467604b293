"""Checkpoint folders as users have them; transformers is the oracle of what is read.

Leftovers of older saves, older tokenizer files, tokens without rows, keys without effect, quantized weights.
"""

import json
import shutil

import pytest
import torch
from conftest import SHARED, ours_of, tiny_hf, write_tokenizer
from safetensors.torch import save_file

from lit_gpt.checkpoints.configs import read_config
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.convert.vocab_merges import join_vocabulary_and_merges
from lit_gpt.convert.vocabulary import check_vocabulary, pad_vocabulary
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer


@pytest.fixture
def folder(downloaded, tmp_path):
    """A folder as it is downloaded, to be changed."""
    return shutil.copytree(downloaded["llama-gqa"], tmp_path / "tiny", ignore=shutil.ignore_patterns("lit_*"))


def convert(folder, **kwargs):
    """scripts/convert_hf_checkpoint.py in this process."""
    import importlib.util

    from conftest import ROOT

    spec = importlib.util.spec_from_file_location("convert_script", ROOT / "scripts" / "convert_hf_checkpoint.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(folder, **kwargs)


def theirs(folder):
    """The weights that transformers loads."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_one_file_wins_over_what_an_older_save_in_shards_left(folder, name, has_index):
    """`save_pretrained` of an older version into the folder leaves the shards that were there before."""
    model = tiny_hf("llama-gqa")
    stem, suffix = name.split(".")
    new = {n: w.clone() for n, w in model.state_dict().items()}
    old = {n: w + 1 for n, w in new.items()}
    (folder / "model.safetensors").unlink()
    save = save_file if suffix == "safetensors" else torch.save
    if suffix == "safetensors":
        save_file(new, folder / name, {"format": "pt"})
        save_file(old, folder / f"{stem}-00001-of-00001.{suffix}", {"format": "pt"})
    else:
        save(new, folder / name)
        save(old, folder / f"{stem}-00001-of-00001.{suffix}")
    if has_index:
        table = dict.fromkeys(old, f"{stem}-00001-of-00001.{suffix}")
        (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    source = open_source(folder)
    assert [f.name for f in source.files] == [name]
    for n, w in theirs(folder).items():
        torch.testing.assert_close(source.get(n), w, rtol=0, atol=0)
        torch.testing.assert_close(source.get(n), new[n], rtol=0, atol=0)


def test_keys_that_are_off_or_only_about_generation_are_no_obstacle(folder):
    """Of dumps of older versions of transformers, which wrote every key of every model."""
    hf = json.loads((folder / "config.json").read_text())
    plain = config_from_hf(hf, "tiny", "config.json")
    off = {"sliding_window": None, "gradient_checkpointing": False, "add_cross_attention": False, "pruned_heads": {}}
    off |= {
        "num_beams": 1,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "bad_words_ids": None,
        "some_switch": False,
    }
    assert config_from_hf(hf | off, "tiny", "config.json") == plain


@pytest.mark.parametrize(
    "key, value", [("some_switch", True), ("sliding_window", 8), ("alibi", 1), ("is_causal", False)]
)
def test_keys_that_would_change_the_computation_are_still_refused(folder, key, value):
    hf = json.loads((folder / "config.json").read_text())
    with pytest.raises(UserError, match=f"{key}={value}"):
        config_from_hf(hf | {key: value}, "tiny", "config.json")


@pytest.mark.parametrize(
    "kind", ["llama", "neox", "falcon", "mistral", "phi", "phi3", "gemma2", "qwen2", "qwen3", "olmo2"]
)
def test_a_switch_that_transformers_has_on_by_itself_is_in_a_table(kind):
    """So that `false`, which is taken as `not there`, never turns one off unseen."""
    from lit_gpt.convert.configs import NEEDED_ON, ROPE, WITHOUT_EFFECT
    from lit_gpt.families import ARCHITECTURES

    theirs = type(tiny_hf(kind).config)()
    name = ours_of(tiny_hf(kind), kind).config.architecture
    known = {*ARCHITECTURES[name].config_keys, *ARCHITECTURES[name].config_values, *WITHOUT_EFFECT, *ROPE, *NEEDED_ON}
    on = {key for key, value in theirs.to_dict().items() if value is True}
    assert on - known <= {"multi_query"}  # which Falcon's `adapt` reads


QUANTIZED = {
    "GPTQ in 3 bits": {"quant_method": "gptq", "bits": 3, "group_size": 128},
    "GPTQ in 4 bits), .*='marlin'": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
    "AWQ in 4 bits), .* gemv": {"quant_method": "awq", "bits": 4, "version": "GEMV"},
    "HQQ": {"quant_method": "hqq", "quant_config": {}},
    "ModelOpt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "MLX in 4 bits": {"group_size": 64, "bits": 4},
    "compressed-tensors.*nvfp4": {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float"}}},
    },
    "compressed-tensors.*bits=3": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 3, "type": "int", "strategy": "channel"}}},
    },
    "compressed-tensors.*transform_config": {"quant_method": "compressed-tensors", "transform_config": {"a": {}}},
    "something_new": {"quant_method": "something_new"},
}


@pytest.mark.parametrize("said", QUANTIZED)
def test_a_folder_quantized_in_another_way_is_refused_by_name_before_its_weights_are_opened(folder, said):
    hf = json.loads((folder / "config.json").read_text()) | {"quantization_config": QUANTIZED[said]}
    hf |= {"quantization": QUANTIZED[said]} if "MLX" in said else {}
    (folder / "config.json").write_text(json.dumps(hf))
    (folder / "model.safetensors").write_bytes(b"PK, no weights at all")
    with pytest.raises(UserError, match=rf"quantized \({said.replace(')', '.')}.*or the 16-bit model"):
        convert(folder)
    assert not (folder / "lit_model.pth").exists()


def test_quantized_weights_whose_settings_have_a_file_of_their_own_are_named(folder):
    state = {"model.layers.0.mlp.down_proj.qweight": torch.zeros(4, 4, dtype=torch.int32)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 3, "group_size": 128}))
    with pytest.raises(UserError, match=r"quantized \(GPTQ in 3 bits"):
        convert(folder)


def add_tokens(folder, *tokens):
    """Tokens in the tokenizer that the model has no rows for: its table ends with the last one of before."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(folder / "tokenizer.json"))
    rows = config_from_hf(json.loads((folder / "config.json").read_text()), "tiny", "config.json").padded_vocab_size
    filler = [f"<filler_{i}>" for i in range(rows - backend.get_vocab_size())]
    backend.add_special_tokens([AddedToken(t, special=True) for t in (*filler, *tokens)])
    backend.save(str(folder / "tokenizer.json"))
    return rows


def test_a_pad_token_beyond_the_rows_is_refused_with_a_way_out_that_works(folder, capsys):
    rows = add_tokens(folder, "<pad>")
    with pytest.raises(
        UserError, match=r"321 tokens and the model 320 rows, none for '<pad>'.*--pad_vocab_multiple 64"
    ):
        convert(folder)
    convert(folder, pad_vocab_multiple=64)
    assert "Rows of zeros for '<pad>'" in capsys.readouterr().out

    config = read_config(folder)
    assert config.padded_vocab_size == 384  # the next multiple that has a row for the token
    check_vocabulary(config, folder)
    table = open_lit(folder)[2]("transformer.wte.weight")
    assert table.shape[0] == 384 and not table[rows:].any() and table[:rows].any(dim=1).all()


def test_a_tokenizer_of_another_model_is_refused_however_many_rows_are_padded(folder):
    from dataclasses import replace

    config = config_from_hf(json.loads((folder / "config.json").read_text()), "tiny", "config.json")
    with pytest.raises(UserError, match="do not belong together"):
        pad_vocabulary(replace(config, padded_vocab_size=200), 64, folder)


REAL = {"gpt-2": "GPT2Tokenizer", "smollm2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}
TEXTS = [
    "Hello world",
    "  two spaces\n\nand lines",
    "I've 12345 DON'T",
    "caf\u00e9 cafe\u0301 \U0001f999",
    "<|endoftext|>a",
    "x<extra>y z",
]


@pytest.mark.parametrize("kind", REAL)
def test_vocab_and_merges_become_the_tokenizer_that_transformers_makes_of_them(kind, tmp_path):
    from transformers import AutoTokenizer

    name = "gpt-2" if kind == "qwen2" else kind
    if not (SHARED / "tokenizers" / name).is_dir():
        pytest.skip("needs the tokenizers of the shared data")
    saved = json.loads((SHARED / "tokenizers" / name / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [m if isinstance(m, str) else " ".join(m) for m in saved["model"]["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(saved["model"]["vocab"]), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    n = len(saved["model"]["vocab"])
    added = {"<extra>": n, "<|note|>": n + 3}  # a gap, as a removed token leaves one
    decoder = {str(i): {"content": t, "special": t == "<|note|>"} for t, i in added.items()}
    settings = {"tokenizer_class": REAL[kind], "eos_token": "<|endoftext|>", "bos_token": None}
    settings |= {
        "unk_token": "<|endoftext|>",
        "added_tokens_decoder": decoder
        | {str(saved["model"]["vocab"]["<|endoftext|>"]): {"content": "<|endoftext|>", "special": True}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    reference = AutoTokenizer.from_pretrained(tmp_path)
    join_vocabulary_and_merges(tmp_path)
    ours = Tokenizer(tmp_path)
    assert ours.token_to_id("<|note|>") == n + 3 and ours.vocab_size == n + 4
    for text in TEXTS:
        assert ours.encode(text, bos=False) == reference.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text, bos=False)).replace("e\u0301", "\u00e9") == reference.decode(
            reference.encode(text, add_special_tokens=False), skip_special_tokens=True
        ).replace("e\u0301", "\u00e9")


def test_a_converted_folder_with_vocab_and_merges_is_whole(folder, capsys):
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    before = Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    names = {t["content"]: t["id"] for t in saved["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in saved["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(saved["model"]["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(names))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    with pytest.raises(UserError, match=r"do not say how PreTrainedTokenizerFast splits.*tokenizer\.json of the model"):
        convert(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "GPT2Tokenizer"}))
    convert(folder)
    assert "Made tokenizer.json of vocab.json and merges.txt" in capsys.readouterr().out
    for text in ("the thing in the end", "<s>another</s>"):
        assert Tokenizer(folder).encode(text) == before.encode(text)


def test_a_vocabulary_and_merges_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    (tmp_path / "merges.txt").write_text("x y\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(UserError, match=r"vocab\.json and merges\.txt do not fit together"):
        join_vocabulary_and_merges(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_without_any_tokenizer_the_message_names_all_files_that_would_do(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json and no tokenizer\.model"):
        Tokenizer(tmp_path)
