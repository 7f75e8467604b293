"""Files of weights that come from outside, damaged at random, are read or refused in one line, in bounded time."""

import io
import json
import shutil
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from random import Random

import pytest
import torch
from campaigns import Case, campaign_of
from conftest import ROOT, tiny_hf, write_tokenizer
from damage import flipped, mutated
from safetensors.torch import load_file, save_file

from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.files import spec_of


def script(name: str):
    """A script of the repository as a module."""
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


convert = script("convert_hf_checkpoint").main


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A tiny checkpoint as it comes from the hub, in two shards."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    tiny_hf("llama-gqa").save_pretrained(folder, max_shard_size="40KB")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def state(hub) -> dict[str, torch.Tensor]:
    return {name: x for path in sorted(hub.glob("*.safetensors")) for name, x in load_file(path).items()}


def saved(state: object, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **how)
    return buffer.getvalue()


def beside_weights(hub: Path, folder: Path) -> None:
    """The files of a checkpoint without its weights."""
    for path in hub.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)


def converting(hub: Path, name: str, damage) -> Case:
    """Cases of converting a checkpoint whose weights, in a file called `name`, `damage(random)` makes."""

    def make(random: Random, folder: Path):
        beside_weights(hub, folder)
        (folder / name).write_bytes(damage(random))
        return lambda: convert(folder)

    return make


def rezipped(content: bytes, change) -> bytes:
    """A torch archive with its pickle replaced by what `change` makes of it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as again:
        for entry in archive.infolist():
            record = archive.read(entry)
            again.writestr(entry.filename, change(record) if entry.filename.endswith("data.pkl") else record)
    return buffer.getvalue()


def assert_no_faults(make: Case, place: Path, file_bytes: int = 2**20) -> None:
    found = campaign_of(make, place, file_bytes)
    print(found)
    assert not found.faults, next(iter(found.faults.items()))
    assert found.n_cases > 50 and 0 < found.n_refused < found.n_cases


def test_safetensors_headers(hub, state, tmp_path):
    save_file(state, tmp_path / "x", {"format": "pt"})
    whole = (tmp_path / "x").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])

    def damage(random: Random) -> bytes:
        if random.random() < 0.5:
            return flipped(whole, random, 8 + size)
        text = mutated(header, random).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    assert_no_faults(converting(hub, "model.safetensors", damage), tmp_path)


def test_shards_and_their_index(hub, tmp_path):
    index = json.loads((hub / "model.safetensors.index.json").read_text())

    def make(random: Random, folder: Path):
        beside_weights(hub, folder)
        for path in hub.glob("*.safetensors"):
            name = path.name
            if random.random() < 0.3:
                name = name.replace(
                    *random.choice((("00001", "99999999"), ("0000", "00"), ("of-", "of-9"), ("-", "_")))
                )
            (folder / name).symlink_to(path)
        if random.random() < 0.8:
            (folder / "model.safetensors.index.json").write_text(mutated(index, random))
        return lambda: convert(folder)

    assert_no_faults(make, tmp_path)


@pytest.mark.parametrize("part", ["archive", "pickle", "old"])
def test_torch_files(part, hub, state, tmp_path):
    whole = saved(state)
    old = saved(state, _use_new_zipfile_serialization=False)
    head = old.rindex(b"lm_head.weight") + 2_000

    def damage(random: Random) -> bytes:
        if part == "old":
            return flipped(old, random, head)
        if part == "pickle":
            content = whole if random.random() < 0.7 else saved(state, pickle_protocol=random.choice((3, 4, 5)))
            return rezipped(content, lambda record: flipped(record, random))
        table = whole.index(b"PK\1\2")
        if random.random() < 0.5:
            return whole[:table] + flipped(whole[table:], random)
        return flipped(whole, random, 2_000)

    assert_no_faults(converting(hub, "pytorch_model.bin", damage), tmp_path)


def test_our_own_weights(hub, state, tmp_path):
    source = open_source(hub)
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    ours = from_hf(config, source.names, source.get)
    whole = saved(ours)
    start = whole.index(b"PK\1\2")

    def make(random: Random, folder: Path):
        config.to_json(folder / "lit_config.json")
        damaged = whole[:start] + flipped(whole[start:], random)
        if random.random() < 0.5:
            damaged = rezipped(whole, lambda record: flipped(record, random))
        (folder / "lit_model.pth").write_bytes(damaged)

        def read():
            _, specs, get = open_lit(folder)
            assert all(spec_of(get(name)) == spec for name, spec in specs.items())

        return read

    assert_no_faults(make, tmp_path)


def gguf_of(hub: Path, folder: Path, is_scored: bool) -> bytes:
    """A gguf file of a checkpoint, with a byte-level tokenizer or with one of SentencePiece."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    from lit_gpt.convert.gguf import write_gguf
    from lit_gpt.convert.gguf.writing import add

    source = open_source(hub)
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    state = from_hf(config, source.names, source.get)
    folder.mkdir()
    path = write_gguf(config, {n: spec_of(x) for n, x in state.items()}, state.__getitem__, hub, folder, "F16")
    if not is_scored:
        return path.read_bytes()
    written = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(folder / "again.gguf", "llama")
    for key, value in written.fields.items():
        if not key.startswith(("GGUF.", "tokenizer.")) and key != "general.architecture":
            writer.add_key_value(key, value.contents(), value.types[0])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(f"\u2581t{i}" for i in range(61))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 61]
    values = {"model": "llama", "tokens": tokens, "scores": [-1.0 * i for i in range(320)], "token_type": kinds}
    for key, value in {**values, "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True}.items():
        add(writer, f"tokenizer.ggml.{key}", value)
    add(writer, "tokenizer.chat_template", "{{ messages }}")
    for t in written.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "again.gguf").read_bytes()


@pytest.mark.parametrize("is_scored", [False, True])
def test_gguf_headers_and_tokenizers(is_scored, hub, tmp_path):
    from lit_gpt.convert.gguf.header import read_header

    whole = gguf_of(hub, tmp_path / "made", is_scored)
    (tmp_path / "x.gguf").write_bytes(whole)
    header = read_header(tmp_path / "x.gguf")
    end = min(t.start for t in header.tensors.values())
    model_keys = whole.index(b"tokenizer.ggml")

    def make(random: Random, folder: Path):
        # half of the damage is where the model is described, which is a small part of the header
        damaged = flipped(whole, random, end if random.random() < 0.5 else model_keys)
        (folder / "x.gguf").write_bytes(damaged)
        return lambda: convert(folder)

    assert_no_faults(make, tmp_path)


def test_adapters_of_peft(hub, tmp_path):
    from lit_gpt.convert.peft.runs import read_adapter

    base = tmp_path / "base"
    shutil.copytree(hub, base)
    convert(base)
    layers = [f"base_model.model.model.layers.{i}.self_attn.{q}_proj" for i in (0, 1) for q in "qv"]
    rows = {"q": 32, "v": 16}
    adapter = {f"{name}.lora_A.weight": torch.randn(4, 32) for name in layers}
    adapter |= {f"{name}.lora_B.weight": torch.randn(rows[name[-6]], 4) for name in layers}
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    save_file(adapter, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])

    def make(random: Random, folder: Path):
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        if random.random() < 0.4:
            (folder / "adapter_model.safetensors").write_bytes(flipped(whole, random, 8 + size))
        elif random.random() < 0.5:
            text = mutated(header, random).encode()
            content = len(text).to_bytes(8, "little") + text + whole[8 + size :]
            (folder / "adapter_model.safetensors").write_bytes(content)
        else:
            content = rezipped(saved(adapter), lambda record: flipped(record, random))
            (folder / "adapter_model.bin").write_bytes(content)
        return lambda: read_adapter(base, folder, folder / "run", None, overwrite=False)

    assert_no_faults(make, tmp_path)
