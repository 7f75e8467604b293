"""What a file of weights claims is compared with what it holds, and named, before anything of that size is made."""

import io
import json
import re
import shutil
import struct
import zipfile
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_hf, write_tokenizer
from damage import Outcome, outcome_of
from safetensors.torch import save_file

from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.sizes import require_weights_for
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.gguf import open_gguf, write_gguf
from lit_gpt.convert.gguf import write_tokenizer as write_tokenizer_of
from lit_gpt.convert.names import from_hf, to_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.errors import UserError
from lit_gpt.files import load_state, save_state, spec_of, unpickling
from lit_gpt.files.pickles import load_weights

STATE = {"a": torch.randn(7, 5), "b": torch.randn(33).bfloat16(), "c": torch.arange(5)}


def saved(state: object, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **how)
    return buffer.getvalue()


def refused(read, *parts: str) -> Outcome:
    """What came of reading in a process of its own: a message of one line with all of `parts`."""
    outcome = outcome_of(read)
    assert outcome.kind == "refused", outcome
    assert all(part in outcome.text for part in parts), outcome.text
    return outcome


def source_of(folder: Path, config: dict | None = None, **files: bytes) -> Path:
    """A folder of a downloaded checkpoint with these files."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {}))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


# ------------------------------------------------------------------------------------------------------ torch's files


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
def test_a_torch_file_that_is_cut_anywhere_is_named_with_the_way_out(is_zip, tmp_path):
    whole = saved(STATE, _use_new_zipfile_serialization=is_zip)
    folder = source_of(tmp_path / "hub", pytorch_model__bin=whole)
    path, ours = folder / "pytorch_model.bin", tmp_path / "lit_model.pth"
    ours.write_bytes(whole)
    assert load_state(ours, "again.py").keys() == STATE.keys() == open_source(folder).specs.keys()
    for twentieth in range(20):
        for place in (path, ours):
            place.write_bytes(whole[: len(whole) * twentieth // 20])
        with pytest.raises(UserError, match=rf"{ours} is truncated or damaged \(.*make it again with again.py"):
            load_state(ours, "again.py")
        with pytest.raises(
            UserError, match=rf"{path} is (empty|truncated or damaged).*delete it and download it again"
        ):
            open_source(folder)


def test_both_formats_of_torch_hold_what_torch_reads_in_them(tmp_path):
    base = torch.randn(6, 4)
    state = {
        "row": base[2],
        "turned": base.t(),
        "base": base,
        "half": torch.randn(3).half(),
        "long": torch.tensor([2**40]),
        "nothing": torch.zeros(0, 3),
        "same": torch.ones(1).expand(8),
    }
    beside = {"step": 3, "rate": 0.5, "big": 2**70, "list": [1, None, True, "x", b"y"], "tuple": (1, (2,)), "set": {1}}
    for is_zip in (True, False):
        path = tmp_path / f"{is_zip}.pth"
        torch.save({"state": state, **beside}, path, _use_new_zipfile_serialization=is_zip)
        ours, theirs = load_weights(path), torch.load(path, weights_only=True)
        assert {k: v for k, v in ours.items() if k != "state"} == beside
        for name, x in theirs["state"].items():
            assert torch.equal(ours["state"][name], x) and ours["state"][name].dtype == x.dtype
            assert ours["state"][name].stride() == x.stride()
        assert len(saved(ours["state"]["half"])) < 2_000  # a storage of its own, and not that of the whole file
        assert ours["state"]["row"].untyped_storage().nbytes() == base.nbytes


def archive_of(path: Path, method: int = zipfile.ZIP_STORED, twice: bool = False, **records: bytes) -> Path:
    """A torch archive with other records than torch wrote."""
    with zipfile.ZipFile(io.BytesIO(saved(STATE))) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content |= {f"archive/{name.replace('__', '.')}": record for name, record in records.items()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, record in [*content.items(), *(list(content.items())[-1:] if twice else [])]:
            archive.writestr(name, record)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_hold_less_than_they_say_are_named(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    for made, says in (
        ({"method": zipfile.ZIP_DEFLATED, "data__pkl": bytes(10**7)}, "'archive/data.pkl' is compressed"),
        ({"twice": True}, "two of its members have the same name"),
        ({"data__pkl": b"\x80\x02" + b"]" * 20}, "pickle exhausted before seeing STOP"),
        ({"data__pkl": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x"}, "expected 1099511627776 bytes"),
        ({"data__pkl": b"\x80\x02(lp0\n."}, "the operation LIST, which no file of tensors needs"),
        ({"byteorder": b"big"}, "byte order 'big'"),
    ):
        archive_of(path, **made)
        refused(lambda: load_state(path, "again.py"), str(path), says, "again.py")
    whole = archive_of(path).read_bytes()
    table = whole.index(b"PK\1\2")
    first, second = (m.start() for m in list(re.finditer(b"PK\1\2", whole))[:2])
    assert first == table
    shared = bytearray(whole)  # the second member begins where the first does
    shared[second + 42 : second + 46] = whole[first + 42 : first + 46]
    large = bytearray(whole)  # the first member is larger than the archive
    large[first + 20 : first + 28] = struct.pack("<2L", 2**31, 2**31)
    for content in (shared, large):
        path.write_bytes(content)
        refused(lambda: load_state(path, "again.py"), "reaches into the next one")
    end = bytearray(whole)  # the table of contents is larger than the archive
    end[-10:-6] = struct.pack("<L", 2**31)
    path.write_bytes(end)
    refused(lambda: load_state(path, "again.py"), "its table of contents, 2,147,483,648 bytes, is not within it")
    path.write_bytes(whole)
    monkeypatch.setattr(unpickling, "_MAX_STEPS", 50)
    with pytest.raises(UserError, match="its pickle has more than 50 operations"):
        load_state(path, "again.py")


def test_tensors_that_are_larger_than_their_values_are_named(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"x": torch.ones(1).expand(2**30)}, path)
    refused(lambda: load_state(path, "again.py"), "a tensor of shape (1073741824,) repeats its 1 values")
    torch.save({"x" * 600: torch.ones(1)}, path)
    refused(lambda: load_state(path, "again.py"), "it has a tensor with the name 'xxx")
    for other in ([torch.ones(1)], {"x": 3}, 7):
        torch.save(other, path)
        refused(lambda: load_state(path, "again.py"), "holds something else than named tensors; make it again")


# --------------------------------------------------------------------------------------------------------- safetensors


def safetensors_of(header: object, n_bytes: int) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + bytes(n_bytes)


def entry(shape: list, start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content, says",
    [
        ((2**63).to_bytes(8, "little") + b"{}", "its header has 9,223,372,036,854,775,808 bytes, and the file 10"),
        (
            safetensors_of({"x": entry([2], 0, 8), "y": entry([2], 4, 12)}, 12),
            "'y' starts at byte 4 of the values instead",
        ),
        (safetensors_of({"x": entry([2], 0, 8)}, 4), "its values have 4 bytes instead of 8"),
        (safetensors_of({"x": entry([2], 0, 8)}, 12), "its values have 12 bytes instead of 8"),
        (safetensors_of({"x": entry([3], 0, 8)}, 8), "'x' has 8 bytes instead of 12"),
        (safetensors_of({"x": entry([2**32, 2**32, 1], 0, 8)}, 8), "'x' has 8 bytes instead of 73,786"),
        (safetensors_of({"x": entry([-2], 0, 8)}, 8), "'x' has the dtype 'F32', shape [-2]"),
        (safetensors_of({"x": entry([2], 8, 0)}, 8), "'x' has the data_offsets [8, 0]"),
        (safetensors_of({"x": entry([10**30], 0, 8)}, 8), "the number 1000000000"),
        (safetensors_of('{"x": 1, "x": 2}', 8), "its header has 'x' twice"),
        (safetensors_of({"x": {"dtype": "F32"}}, 8), "something else than dtype, shape and data_offsets"),
        (safetensors_of("[" * 5_000, 8), "nested too deeply"),
        (safetensors_of([], 0), "its header is not an object"),
        (safetensors_of({"x\n": entry([2], 0, 8)}, 8), "a tensor with the name"),
        (safetensors_of({"__metadata__": {"a": 1}}, 0), "its __metadata__ holds something else than texts"),
    ],
)
def test_a_header_of_safetensors_that_does_not_fit_its_file_is_named(content, says, tmp_path):
    folder = source_of(tmp_path / "hub", model__safetensors=content)
    refused(lambda: open_source(folder), str(folder / "model.safetensors"), says, "download it again")


def test_a_name_that_counts_a_hundred_million_shards_is_not_believed(tmp_path):
    folder = source_of(tmp_path / "hub")
    save_file(STATE, folder / "model-00001-of-99999999.safetensors")
    lacks = "lacks model-00002-of-99999999.safetensors (99999998 of 99999999 shards)"
    assert refused(lambda: open_source(folder), lacks).seconds < 5
    (folder / "model-00001-of-99999999.safetensors").rename(folder / "model-99999999-of-99999999.safetensors")
    refused(lambda: open_source(folder), "lacks model-00000001-of-99999999.safetensors (99999998 of 99999999 shards)")


# ------------------------------------------------------------------------------------- a configuration and its weights


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> dict[str, Path]:
    """Tiny checkpoints as they come from the hub."""
    folders = {}
    for kind in ("llama-gqa", "mixtral"):
        folders[kind] = tmp_path_factory.mktemp("hub") / kind
        tiny_hf(kind).save_pretrained(folders[kind])
        write_tokenizer(folders[kind])
    return folders


@pytest.mark.parametrize(
    "kind, changes, says",
    [
        ("llama-gqa", {"num_hidden_layers": 1000}, "has 21 tensors, and the configuration says 1,000 layers"),
        ("llama-gqa", {"vocab_size": 2**24}, "padded_vocab_size=16777216"),
        ("llama-gqa", {"hidden_size": 2**20, "head_dim": 8}, "n_embd=1048576"),
        ("llama-gqa", {"head_dim": 2**16}, "head_size=65536"),
        ("llama-gqa", {"num_attention_heads": 4096, "head_dim": 8}, "n_head=4096"),
        ("llama-gqa", {"intermediate_size": 2**24}, "intermediate_size=16777216"),
        ("mixtral", {"num_local_experts": 4000}, "8,000 experts in all layers"),
    ],
)
def test_a_configuration_that_needs_more_than_the_files_hold_is_named(kind, changes, says, hub, tmp_path):
    source = open_source(hub[kind])
    config = config_from_hf(source.hf_config | changes, "tiny", "config.json")

    refused(lambda: require_weights_for(config, source.specs, hub[kind]), str(hub[kind]), says, "get both again")
    config.to_json(tmp_path / "lit_config.json")
    save_state({name: source.get(name) for name in source.names}, tmp_path / "lit_model.pth")
    refused(lambda: open_lit(tmp_path), str(tmp_path / "lit_model.pth"), says)


def test_a_configuration_of_other_shapes_is_named_by_the_export(hub):
    source = open_source(hub["llama-gqa"])
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    state = from_hf(config, source.names, source.get)
    changed = replace(config, n_query_groups=config.n_head)
    refused(lambda: to_hf(changed, state), "transformer.h.0.attn.qkv.weight is [64, 32], not [96, 32]")


def test_a_configuration_that_fits_is_taken(hub):
    for folder in hub.values():
        source = open_source(folder)
        config = config_from_hf(source.hf_config, "tiny", "config.json")
        require_weights_for(config, source.specs, folder)


# ---------------------------------------------------------------------------------------------------------------- gguf

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")


@pytest.fixture(scope="module")
def whole(hub, tmp_path_factory) -> bytes:
    folder, source = tmp_path_factory.mktemp("gguf"), open_source(hub["llama-gqa"])
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    state = from_hf(config, source.names, source.get)
    specs = {n: spec_of(x) for n, x in state.items()}
    return write_gguf(config, specs, state.__getitem__, hub["llama-gqa"], folder, "F16").read_bytes()


def changed(whole: bytes, after: bytes, skip: int, new: bytes) -> bytes:
    """A file with other bytes, `skip` bytes after the only place of `after`."""
    assert whole.count(after) == 1, (after, whole.count(after))
    start = whole.index(after) + len(after) + skip
    return whole[:start] + new + whole[start + len(new) :]


U32, U64 = "<L", "<Q"
HEADERS = [  # the key or name before the change, bytes after it, format and number of what is put there, the message
    (b"GGUF", 0, ">L", 3, "the other byte order"),
    (b"GGUF", 0, U32, 9, "it is of version 9"),
    (b"GGUF", 4, U64, 2**60, "1,152,921,504,606,846,976 tensors"),
    (b"GGUF", 12, U64, 2**60, "1,152,921,504,606,846,976 keys"),
    (b"general.architecture", 0, U32, 99, "general.architecture is of the unknown type 99"),
    (b"general.architecture", 4, U64, 2**50, "its header goes on after byte"),
    (b"general.name", 12, "<B", 0xFF, "the value of general.name at byte"),
    (b"tokenizer.ggml.tokens", 8, U64, 2**50, "the list tokenizer.ggml.tokens says that it has 1,125,899,906,842,624"),
    (b"tokenizer.ggml.tokens", 4, U32, 9, "the list tokenizer.ggml.tokens has entries of type 9"),
    (b"output_norm.weight", 0, U32, 2**30, "the tensor 'output_norm.weight' has 1073741824 dimensions"),
    (b"output_norm.weight", 4, U64, 2**62, "'output_norm.weight'"),
    (b"output_norm.weight", 4, U64, 0, "'output_norm.weight' of type F32 has the sizes [0]"),
    (b"output_norm.weight", 4, U64, 31, "'output_norm.weight' has the shape [31] instead of [32]"),
    (b"output_norm.weight", 12, U32, 77, "'output_norm.weight' is of the unknown type 77"),
    (b"output_norm.weight", 16, U64, 7, "'output_norm.weight' starts at byte 7, which is not aligned"),
    (b"output_norm.weight", 16, U64, 0, "share bytes"),
    (b"output_norm.weight", 16, U64, 2**40, "bytes instead of 1,099,511,"),
    (b"llama.block_count", 4, U32, 2**31 - 1, "llama.block_count=2,147,483,647"),
    (b"llama.attention.head_count\x04\0\0\0", 0, U32, 0, "llama.attention.head_count=0 is not a positive whole number"),
    (b"llama.attention.head_count\x04\0\0\0", 0, U32, 2**20, "which are not those of 1048576 heads"),
    (b"llama.embedding_length", 4, U32, 2**30, "n_embd=1073741824"),
    (b"llama.feed_forward_length", 4, U32, 2**30, "intermediate_size=1073741824"),
    (b"llama.feed_forward_length", 4, U32, 49, "instead of [49, 32]"),
    (b"llama.context_length", 0, U32, 6, "llama.context_length="),
    (b"llama.rope.freq_base", 4, "<f", float("nan"), "llama.rope.freq_base=nan is not a number above 1"),
    (b"llama.rope.dimension_count", 4, U32, 7, "rope.dimension_count=7 channels of a head of 8 cannot rotate"),
    (b"layer_norm_rms_epsilon", 4, "<f", float("inf"), "layer_norm_rms_epsilon=inf is not a number"),
]


@pytest.mark.parametrize("after, skip, kind, number, says", HEADERS)
def test_a_gguf_file_that_claims_what_it_does_not_hold_is_named(after, skip, kind, number, says, whole, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(changed(whole, after, skip, struct.pack(kind, number)))
    assert refused(lambda: open_gguf(path), str(path), says, "get").seconds < 5


@pytest.mark.parametrize(
    "old, new, says",
    [
        (b"general.architecture", b"general.architectura", "does not name its architecture"),
        (b"llama.attention.head_count\x04", b"llama.attention.head_kount\x04", "attention.head_kount=4 is not a field"),
        (b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight", "the tensor 'blk.0.ffn_up.weight' comes twice"),
        (b"blk.1.ffn_up.weight", b"blk.1\nffn_up.weight", "the name of a tensor at byte"),
        (b"llama.block_count", b"llama.vocab_size\0", "the key 'llama.vocab_size"),
        (b"GGUF", b"GGUX", "it begins with b'GGUX'"),
    ],
)
def test_names_of_a_gguf_file_are_checked(old, new, says, whole, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(whole.replace(old, new))
    refused(lambda: open_gguf(path), str(path), says)


def test_a_gguf_file_that_is_cut_anywhere_is_named(whole, tmp_path):
    path = tmp_path / "x.gguf"
    for twentieth in range(20):
        path.write_bytes(whole[: len(whole) * twentieth // 20])
        with pytest.raises(UserError, match=rf"{path} is (empty|truncated or damaged).*; get it again"):
            open_gguf(path)


@pytest.mark.parametrize(
    "after, skip, kind, number, says",
    [
        (b"tokenizer.ggml.token_type", 8, U64, 319, ""),
        (b"tokenizer.ggml.token_type", 16, U32, 77, "token_type holds 77, which is no kind of token"),
        (b"tokenizer.ggml.eos_token_id", 4, U32, 2**20, "eos_token_id=1048576 is none of its 320 tokens"),
        (b"tokenizer.ggml.tokens", 24, "<B", 0xFF, "entry 0 of tokenizer.ggml.tokens at byte"),
        (b"tokenizer.ggml.tokens", 24, "<B", ord('"'), "the tokens 0 and 1 are both"),
        (b"tokenizer.ggml.add_bos_token", 4, "<B", 2, "tokenizer.ggml.add_bos_token holds 2 as true or false"),
    ],
)
def test_a_damaged_tokenizer_of_a_gguf_file_is_named_and_nothing_written(
    after, skip, kind, number, says, whole, tmp_path
):
    path = tmp_path / "x.gguf"
    path.write_bytes(changed(whole, after, skip, struct.pack(kind, number)))
    refused(lambda: write_tokenizer_of(path, tmp_path), str(path), says)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    path.write_bytes(whole)
    write_tokenizer_of(path, tmp_path)
    assert {"tokenizer.json", "tokenizer_config.json"} <= {p.name for p in tmp_path.iterdir()}


def test_a_conversion_that_fails_leaves_no_tokenizer_behind(whole, tmp_path):
    """One from a damaged file would otherwise be taken for the model's own when the file is converted again."""
    spec = spec_from_file_location("convert_hf_checkpoint", ROOT / "scripts" / "convert_hf_checkpoint.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "x.gguf"
    path.write_bytes(whole[:-64] + b"\xff" * 64)  # NaN in the last tensor
    refused(lambda: module.main(tmp_path), "holds NaN or infinite values; the file is damaged")
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    path.write_bytes(whole)
    module.main(tmp_path)
    assert {"lit_model.pth", "lit_config.json", "tokenizer.json"} <= {p.name for p in tmp_path.iterdir()}


def test_parts_of_a_gguf_file_that_are_not_there_are_not_counted_up_to(whole, tmp_path):
    path = tmp_path / "x-00001-of-99999.gguf"
    path.write_bytes(whole)
    assert refused(lambda: open_gguf(path), "lacks x-00002-of-99999.gguf and 99997 more").seconds < 5
    shutil.copyfile(path, tmp_path / "y-00001-of-00002.gguf")
    shutil.copyfile(path, tmp_path / "y-00002-of-00002.gguf")
    refused(lambda: open_gguf(tmp_path / "y-00001-of-00002.gguf"), "and so does y-00001-of-00002.gguf")
