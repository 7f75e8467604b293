"""What llama.cpp takes where a gguf file does not say, and what we take: the same, for logits and for tokens."""

import json
import shutil

import pytest
import torch
from with_llama_cpp import IDS, LlamaCpp, checkpoint, few_merges, ours_of, vocabulary_file, write

from lit_gpt.convert.gguf import write_tokenizer, writing
from lit_gpt.convert.gguf.splitting import SAMPLE, SPLITTINGS
from lit_gpt.convert.readers import open_source
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

PLAIN = {"rope.scaling.factor": 4.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
LOGITS: dict[str, tuple[str, dict]] = {  # what it is about -> kind of model, and keys; None takes a key out
    "a factor without a kind is linear": ("llama", PLAIN),
    "a factor by its old name": ("llama", {"rope.scale_linear": 4.0}),
    "the new name goes before the old one": ("llama", PLAIN | {"rope.scale_linear": 2.0}),
    "a factor of 0 is none": ("llama", {"rope.scaling.factor": 0.0}),
    "linear without a factor": ("llama", {"rope.scaling.type": "linear"}),
    "the kind none has no factor": ("llama", PLAIN | {"rope.scaling.type": "none"}),
    "longrope without its factors is linear": ("llama", PLAIN | {"rope.scaling.type": "longrope"}),
    "yarn without a factor": ("llama", {"rope.scaling.type": "yarn"}),
    "yarn without an original length": ("llama", YARN),
    "yarn, sharper": ("llama", YARN | {"rope.scaling.attn_factor": 1.3}),
    "linear, sharper": ("llama", PLAIN | {"rope.scaling.attn_factor": 1.3}),
    "sharper without a scaling": ("llama", {"rope.scaling.attn_factor": 1.3}),
    "llama 3's factors, and one for all": ("llama-3", PLAIN),
    "llama 3's factors, sharper": ("llama-3", {"rope.scaling.attn_factor": 1.3}),
    "longrope's factors, and one for all": ("llama-long", PLAIN),
    "no base": ("mixtral", {"rope.freq_base": None}),
    "no base in Gemma 3, nor of its window": ("gemma3", {"rope.freq_base": None, "rope.freq_base_swa": None}),
    "no base in OLMo 3": ("olmo3", {"rope.freq_base": None}),
    "OLMo 3 has one base": ("olmo3", {"rope.freq_base_swa": 3000.0}),
    "all channels rotate": ("neox", {"rope.dimension_count": None}),
    "as many keys as queries": ("llama", {"attention.head_count_kv": None}),
    "a number for each layer": ("llama-gqa", {"attention.head_count_kv": [2, 2], "feed_forward_length": [48, 48]}),
    "Gemma 2's caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "Gemma 2's window": ("gemma2", {"attention.sliding_window": None}),
    "experts share the width": ("qwen3-moe", {"expert_feed_forward_length": None, "feed_forward_length": 48}),
}


def edited(path, to, keys, **how):
    """A copy of a gguf file in the folder `to` with other keys; those that have a dot at the front are the model's.

    Args:
        how: the package's writer is to split it.
    """
    reader = gguf.GGUFReader(path)
    kind = reader.fields["general.architecture"].contents()
    keys = {f"{kind}{key}" if key.startswith(".") else key: value for key, value in keys.items()}
    to.mkdir()
    writer = gguf.GGUFWriter(to / "x.gguf", kind, **how)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in {*keys, "general.architecture"}:
            types = field.types
            writer.add_key_value(key, field.contents(), types[0], types[1] if len(types) > 1 else None)
    for key, value in keys.items():
        if value is not None:
            writing.add(writer, key, value)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to / "x.gguf"


def in_fp32(kind, folder, monkeypatch, **overrides):
    monkeypatch.setitem(writing.FILE_TYPES, "F32", 0)
    _, config, state = checkpoint(kind, folder / "there", **overrides)
    return write(config, state, folder / "there", folder / "out", "F32")


@pytest.mark.parametrize("what", LOGITS)
@torch.no_grad()
def test_a_file_that_leaves_something_out_is_computed_as_llama_cpp_does(what, tmp_path, monkeypatch):
    kind, keys = LOGITS[what]
    path = in_fp32(kind, tmp_path, monkeypatch)
    again = edited(path, tmp_path / "again", {f".{key}": value for key, value in keys.items()})
    n = 7 if kind == "gemma2" else 40
    got = ours_of(again.parent)(IDS[:, :n])[0, -1].log_softmax(-1)
    want = LlamaCpp(again).log_probabilities(IDS[0, :n].tolist())
    torch.testing.assert_close(got, want, rtol=0, atol=2e-2 if kind.startswith(("gemma", "neox")) else 1e-4)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({".rope.scaling.type": "su"}, "'type': 'su'"),
        ({".rope.scaling.type": "yarn", ".rope.scaling.factor": 2.0, ".rope.scaling.yarn_log_multiplier": 0.1}, "log_"),
        ({".attention.head_count": [4, 2]}, r"llama.attention.head_count differs between layers \(\[4, 2\]\)"),
    ],
)
def test_what_a_model_of_ours_cannot_be_is_named(keys, message, tmp_path, monkeypatch):
    path = edited(in_fp32("llama", tmp_path, monkeypatch), tmp_path / "again", keys)
    with pytest.raises(UserError, match=message):
        ours_of(path.parent)


@pytest.mark.parametrize("how", [{"split_max_tensors": 9}, {"split_max_size": 40_000, "small_first_shard": True}])
@torch.no_grad()
def test_the_parts_of_a_model_load_as_one(how, tmp_path, monkeypatch):
    """As the package's writer cuts it up, with all metadata in the first part and maybe no tensors."""
    edited(in_fp32("llama", tmp_path, monkeypatch), tmp_path / "again", {}, **how)
    parts = sorted((tmp_path / "again").iterdir())
    assert len(parts) > 2
    got = ours_of(tmp_path / "again")(IDS[:, :7])[0, -1].log_softmax(-1)
    want = LlamaCpp(parts[0]).log_probabilities(IDS[0, :7].tolist())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert open_source(tmp_path / "again").files == parts
    assert rebuilt(parts[0], tmp_path / "ours").eos_id == 265
    (tmp_path / "again" / "y.gguf").touch()
    with pytest.raises(UserError, match="leave one of"):
        ours_of(tmp_path / "again")
    (tmp_path / "again" / "y.gguf").unlink()
    parts[1].rename(tmp_path / "aside")
    with pytest.raises(UserError, match=rf"lacks {parts[1].name}, a part"):
        ours_of(tmp_path / "again")
    for part in parts[2:]:
        part.unlink()
    parts[0].rename(tmp_path / "again" / "x.gguf")
    with pytest.raises(UserError, match=rf"x\.gguf is one of {len(parts)} parts"):
        ours_of(tmp_path / "again")


def rebuilt(path, folder):
    """The tokenizer that we make of a gguf file."""
    folder.mkdir()
    write_tokenizer(path, folder)
    return Tokenizer(folder)


TEXTS = [SAMPLE, "", " ", "a  b", "the king<e>", "\n\nthe king"]
LEFT_OUT = {f"tokenizer.ggml.{key}": None for key in ("add_bos_token", "add_eos_token", "add_space_prefix")}


@pytest.mark.parametrize("splitting", SPLITTINGS, ids=lambda s: s.name)
def test_a_byte_level_file_that_does_not_say_begins_with_bos_where_llama_cpp_does(splitting, tmp_path, monkeypatch):
    from lit_gpt.convert.gguf import tokens

    (tmp_path / "there").mkdir()
    few_merges(tmp_path / "there", splitting)
    for name in (splitting.name, *splitting.others):
        monkeypatch.setattr(tokens, "recognize_splitting", lambda backend, where, n=name: splitting._replace(name=n))
        path = vocabulary_file(tmp_path / "there", tmp_path / name)
        path = edited(path, tmp_path / f"{name}-again", LEFT_OUT)
        ours, lcpp = rebuilt(path, tmp_path / f"{name}-ours"), LlamaCpp(path)
        for text in ("the king", "", "1 and 2"):
            assert ours.encode(text) == lcpp.encode(text), (name, text)
        assert ours.use_bos == splitting.adds_bos


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A folder with a small tokenizer.model."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the king and the queen", "one two three a  b"] * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        bos_piece="<b>",
        eos_piece="<e>",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<b>", "eos_token": "<e>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("more", [{}, {"bos_token_id": 5}, {"add_bos_token": False}, {"add_space_prefix": False}])
def test_a_sentencepiece_file_that_does_not_say_has_llama_s_ids_bos_and_space(more, sentencepiece, tmp_path):
    ids = {f"tokenizer.ggml.{role}_token_id": None for role in ("bos", "eos", "unknown", "padding")}
    keys = LEFT_OUT | ids | {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    path = edited(vocabulary_file(sentencepiece, tmp_path / "out"), tmp_path / "again", keys)
    ours, lcpp = rebuilt(path, tmp_path / "ours"), LlamaCpp(path)
    for text in TEXTS:
        assert ours.encode(text) == lcpp.encode(text), text
    assert (ours.bos_id, ours.eos_id) == (more.get("bos_token_id", 1), 2)


def test_chat_templates_come_back_by_name(tmp_path):
    """As transformers reads the folder that they were written to."""
    from transformers import AutoTokenizer

    (tmp_path / "there").mkdir()
    few_merges(tmp_path / "there", SPLITTINGS[0])
    (tmp_path / "there" / "additional_chat_templates").mkdir()
    (tmp_path / "there" / "additional_chat_templates" / "tool-use.jinja").write_text("{{ 'tools' }}")
    settings = json.loads((tmp_path / "there" / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "old"}, {"name": "rag", "template": "{{ 'rag' }}"}]
    (tmp_path / "there" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "there" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    path = vocabulary_file(tmp_path / "there", tmp_path / "out")
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.chat_templates"].contents() == ["rag", "tool_use"]
    assert LlamaCpp(path).template() == "{{ messages[0].content }}"
    rebuilt(path, tmp_path / "ours")
    want = {"default": "{{ messages[0].content }}", "rag": "{{ 'rag' }}", "tool_use": "{{ 'tools' }}"}
    assert AutoTokenizer.from_pretrained(tmp_path / "ours").chat_template == want
    shutil.rmtree(tmp_path / "ours" / "additional_chat_templates")
    (tmp_path / "ours" / "chat_template.jinja").write_text("mine")
    write_tokenizer(path, tmp_path / "ours")
    assert (tmp_path / "ours" / "chat_template.jinja").read_text() == "mine"
