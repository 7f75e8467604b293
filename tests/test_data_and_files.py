"""Every row and every file is accounted for: what cannot be used is named, with its place, and nothing is written."""

import json

import numpy as np
import pytest
import torch
from conftest import SHARED, tiny_hf, write_tokenizer

from lit_gpt.args import PrepareArgs
from lit_gpt.cli import parse
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.data import store
from lit_gpt.data.prepare.download import locate
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.run import Files, prepare, tokenize
from lit_gpt.data.prepare.sources import read_alpaca
from lit_gpt.errors import UserError
from lit_gpt.tokenizer import StreamDecoder, Tokenizer


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", ["is empty"]),
        ("[]", ["no rows"]),
        ('[{"instruction": "a", "output": "b"', ["not valid JSON"]),
        ('{"instruction": "a", "output": "b"}\n{"instruction"', ["line 2"]),
        ('[{"prompt": "a", "completion": "b"}]', ["entry 1", "'instruction'", "'prompt'"]),
        ('[{"instruction": "a", "output": 5}]', ["entry 1", "'output'", "the number 5"]),
        ('["a"]', ["entry 1", "expected an object"]),
    ],
)
def test_a_bad_data_file_is_named_with_place_and_key(tmp_path, text, parts):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError) as e:
        read_alpaca(tmp_path / "rows.json")
    assert all(p in str(e.value) for p in ("rows.json", *parts)), e.value
    assert "\n" not in str(e.value)


def test_latin_1_is_named_and_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.json").write_bytes('[{"instruction": "é", "output": "b"}]'.encode("latin-1"))
    with pytest.raises(UserError, match="line 1: byte 0xe9 is not UTF-8"):
        read_alpaca(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + b'[{"instruction": "a", "output": "b"}]')
    assert read_alpaca(tmp_path / "b.json") == [Row.single("a", "", "b")]


def test_targets_are_the_response_and_one_end_of_sequence(checkpoint):
    tokenizer = Tokenizer(checkpoint)
    ((ids, labels),), counts = tokenize([Row.single("the and", "in", "there")], tokenizer, PrepareArgs(), 500)
    response = tokenizer.encode("there", eos=True)
    assert counts.kept == 1 and not counts.dropped and ids[-len(response) :] == response == labels[-len(response) :]
    assert set(labels[: -len(response)]) == {store.IGNORE} and ids.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(ids).endswith("### Input:\nin\n\n### Response:\nthere")
    ((_, labels),), _ = tokenize([Row.single("the", "", "there")], tokenizer, PrepareArgs(mask_inputs=False), 500)
    assert store.IGNORE not in labels


def test_what_is_dropped_or_cut_is_counted_and_the_end_of_sequence_stays(checkpoint):
    tokenizer = Tokenizer(checkpoint)
    rows = [Row.single("a", "", "b" * 50), Row.single("a", "", "b"), Row.single("a", "", " ")]
    plain = {"prompt_style": "plain"}
    kept, counts = tokenize(rows, tokenizer, PrepareArgs(**plain), 20)
    assert len(kept) == counts.kept == 1 and counts.dropped == {"longer than 20 tokens": 1, "empty response": 1}
    kept, counts = tokenize(rows, tokenizer, PrepareArgs(**plain, truncation="cut_end"), 20)
    assert [len(ids) for ids, _ in kept] == [20, 3] and counts.cut == {"at the end": 1}
    assert kept[0][1][-1] == tokenizer.eos_id
    with pytest.raises(UserError, match="52 tokens"):
        tokenize(rows, tokenizer, PrepareArgs(**plain, truncation="error"), 20)


def write_rows(path, rows):
    """`rows` of one turn as a file of Alpaca's schema."""
    path.write_text(json.dumps([{"instruction": r.instruction, "output": r.response} for r in rows]))
    return Files((path,))


def test_rows_that_leave_nothing_write_nothing(checkpoint, tmp_path):
    files = write_rows(tmp_path / "x.json", [Row.single(f"a{i}", "", "") for i in range(4)])
    with pytest.raises(UserError, match="empty response"):
        prepare(files, None, tmp_path / "d", checkpoint, PrepareArgs())
    assert not (tmp_path / "d").exists()


def test_a_prepared_set_is_read_back_and_a_damaged_one_refused(checkpoint, tmp_path):
    rows = [Row.single(str(i) * 9, "", f"and {i}") for i in range(30)]
    files = write_rows(tmp_path / "x.json", rows)
    prepare(files, None, tmp_path, checkpoint, PrepareArgs(test_split_fraction=0.2))
    train, val, meta = store.load(tmp_path)
    assert (len(train), len(val)) == (24, 6) and meta["prompt_style"] == "alpaca"
    want = {tuple(tokenize([r], Tokenizer(checkpoint), PrepareArgs(), 500)[0][0][0]) for r in rows}
    assert {tuple(split[i][0].tolist()) for split in (train, val) for i in range(len(split))} == want
    ids = tmp_path / "train.ids.npy"
    ids.write_bytes(ids.read_bytes()[:-8])
    with pytest.raises(UserError, match="prepare it again"):
        store.load(tmp_path)


@pytest.mark.parametrize("layout", ["one safetensors", "sharded safetensors", "one bin", "sharded bin"])
def test_every_layout_of_files_gives_the_same_weights(downloaded, tmp_path, layout):
    model = tiny_hf("neox")
    model.save_pretrained(tmp_path, max_shard_size="20KB" if "sharded" in layout else "1GB")
    if "bin" in layout:
        from safetensors.torch import load_file

        files = sorted(tmp_path.glob("*.safetensors"))
        index = {}
        for n, path in enumerate(files):
            name = "pytorch_model.bin" if len(files) == 1 else f"pytorch_model-{n}.bin"
            state = load_file(path)
            torch.save(state, tmp_path / name)
            index |= dict.fromkeys(state, name)
            path.unlink()
        (tmp_path / "model.safetensors.index.json").unlink(missing_ok=True)
        if len(files) > 1:
            (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    source = open_source(tmp_path)
    assert len(source.files) > 1 or "one" in layout
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    state = from_hf(config, source.names, source.get)
    reference = model.state_dict()
    for name, x in from_hf(config, reference, reference.__getitem__).items():
        assert torch.equal(state[name], x), name


def test_damaged_missing_and_dangerous_weights_are_named(downloaded, tmp_path):
    model = tiny_hf("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:-100])
    with pytest.raises(UserError, match=f"{shards[0].name} is truncated"):
        open_source(tmp_path)
    shards[0].unlink()
    with pytest.raises(UserError, match=f"lacks {shards[0].name}"):
        open_source(tmp_path)
    for path in (*tmp_path.glob("*.safetensors*"),):
        path.unlink()
    torch.save({"x": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("model.norm.weight"), "no tensor 'model.norm.weight'"),
        (lambda s: s.update({"model.extra.weight": torch.ones(2)}), "model.extra.weight"),
        (lambda s: s.update({"model.norm.weight": torch.ones(7)}), r"\[7\].*\[32\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    model = tiny_hf("llama")
    state = dict(model.state_dict())
    change(state)
    config = config_from_hf({**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}, "tiny", "config.json")
    with pytest.raises(UserError, match=message):
        from_hf(config, state, state.__getitem__)


@pytest.mark.parametrize(
    "field, value",
    [
        ("hidden_act", "gelu"),
        ("quantization_config", {"quant_method": "gptq"}),
        ("sliding_window", 64),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 2.0}),
    ],
)
def test_a_field_that_would_compute_something_else_is_refused_by_name(field, value):
    hf = {**tiny_hf("llama").config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    with pytest.raises(UserError, match=value["rope_type"] if field == "rope_scaling" else field):
        config_from_hf({**hf, field: value}, "tiny", "config.json")


def test_streaming_never_shows_half_a_character(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    text = "the naïve 🦙 said 你好 and more"
    decoder = StreamDecoder(tokenizer, tokenizer.encode("the "))
    pieces = [decoder.push(t) for t in tokenizer.encode(text)]
    assert "".join(pieces) + decoder.pending() == text and not any("\ufffd" in p for p in pieces)


@pytest.mark.parametrize(
    "name, bos", [("mistral-v1", True), ("gpt-neox-20b", False), ("falcon", False), ("gpt-2", False)]
)
def test_ids_are_those_of_the_reference(name, bos):
    folder = SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    ours = Tokenizer(folder)
    texts = [
        "Hello world",
        " two  spaces\n\n",
        "naïve 🦙 你好",
        "12,345.6 x",
        (SHARED / "text/alice.txt").read_text()[:20000],
    ]
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer as Backend

        reference = Backend.from_file(str(folder / "tokenizer.json"))
        wanted = [reference.encode(t, add_special_tokens=False).ids for t in texts]
    else:
        from sentencepiece import SentencePieceProcessor

        wanted = SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(texts)
    assert ours.use_bos is bos
    wanted = [[ours.bos_id, *ids] if bos else ids for ids in wanted]
    assert [ours.encode(t) for t in texts] == wanted == ours.encode_batch(texts)
    decoder = StreamDecoder(ours)
    assert "".join(decoder.push(t) for t in wanted[2]) + decoder.pending() == ours.decode(wanted[2])


def test_flags_are_flat_and_a_config_file_gives_them(tmp_path):
    from lit_gpt.args import TrainArgs

    def main(name: str = "x", train: TrainArgs = TrainArgs(epochs=3)) -> None: ...

    assert parse(main, ["--learning_rate", "1e-5"]) == {"name": "x", "train": TrainArgs(epochs=3, learning_rate=1e-5)}
    (tmp_path / "my.yaml").write_text("learning_rate: 0.5\nname: y\n")
    got = parse(main, ["--config", str(tmp_path / "my.yaml"), "--epochs", "null"])
    assert got == {"name": "y", "train": TrainArgs(epochs=None, learning_rate=0.5)}
    assert np.isclose(got["train"].learning_rate, 0.5)


@pytest.fixture
def web():
    """A server on loopback: /good, /half (says more than it sends), /page (HTML) and 404 for the rest."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    body = b'[{"instruction": "a", "output": "b"}]'

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            kinds = {"/good": "application/json", "/half": "application/json", "/page": "text/html"}
            self.send_response(200 if self.path in kinds else 404)
            self.send_header("Content-Type", kinds.get(self.path, "text/plain"))
            self.send_header("Content-Length", str(len(body) * (2 if self.path == "/half" else 1)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_data_file_is_downloaded_whole_once_or_not_at_all(web, tmp_path):
    path = locate(None, f"{web}/good", "rows.json", tmp_path)
    assert read_alpaca(path) == [Row.single("a", "", "b")]
    assert locate(None, f"{web}/gone", "rows.json", tmp_path) == path  # it is there: nothing is fetched
    for place, message in (("half", "half"), ("page", "web page"), ("gone", "HTTP 404")):
        with pytest.raises(UserError, match=message):
            locate(None, f"{web}/{place}", f"{place}.json", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]
    with pytest.raises(UserError, match="ConnectionError"):
        locate(None, "http://127.0.0.1:9/x", "x.json", tmp_path)
