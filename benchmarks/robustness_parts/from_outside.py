"""Damages checkpoints as downloaded: config.json, shards and their index, safetensors, torch's archives, gguf."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from random import Random

from damage import flipped, mutated, with_content
from robustness_parts.campaign import Case, Section
from robustness_parts.material import Material, calling, copied, kinds

_CONVERT = "scripts/convert_hf_checkpoint.py"
_GGUF_KINDS = ("llama-gqa", "llama-tied", "qwen2", "phi3", "falcon", "neox", "mixtral", "olmo2", "stablelm")
_MANY = (3, 1_000, 99_999, 10**8, 10**12, 10**30)
"""Numbers of shards in a name."""


def sections(material: Material) -> list[Section]:
    """Returns the sections of files that other programs wrote."""
    every = kinds()

    def all_kinds() -> None:
        for kind in every:
            material.hf(kind)

    def ggufs() -> None:
        for kind in _GGUF_KINDS:
            material.gguf(kind)

    return [
        Section("config", lambda random, place: _config(material, every, random=random, place=place), all_kinds),
        Section("index", lambda random, place: _index(material, random, place), lambda: material.hf("llama-gqa")),
        Section(
            "safetensors", lambda random, place: _safetensors(material, random, place), lambda: material.hf("llama-gqa")
        ),
        Section("torch", lambda random, place: _torch(material, random, place), lambda: _archives(material)),
        Section("gguf", lambda random, place: _gguf(material, random, place), ggufs),
    ]


def _case_of(folder: Path, damaged: Path) -> Case:
    """Returns the conversion of a folder."""
    call = calling(_CONVERT, "--checkpoint_dir", folder, cwd=folder.parent)
    return Case(call, damaged.stat().st_size if damaged.is_file() else 0)


def _config(material: Material, every: list[str], random: Random, place: Path) -> Case:
    """Changes values of the config.json of a random architecture."""
    folder = copied(material.hf(random.choice(every)), place / "tiny")
    path = folder / "config.json"
    return _case_of(folder, with_content(path, _changed(path, random)))


def _changed(path: Path, random: Random) -> str | bytes:
    """Returns the content of a JSON file with values changed, or now and then with bits flipped."""
    if random.random() < 0.1:
        return flipped(path.read_bytes(), random)
    return mutated(json.loads(path.read_text(encoding="utf-8")), random)


def _sharded(source: Path, folder: Path) -> dict[str, bytes]:
    """Copies a folder as downloaded with its tensors in two shards and an index; returns the shards by name."""
    from safetensors.torch import load, save

    copied(source, folder, "model.safetensors")
    state = load((source / "model.safetensors").read_bytes())
    names = sorted(state)
    halves = names[::2], names[1::2]
    shards = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    for shard, half in zip(shards, halves, strict=True):
        (folder / shard).write_bytes(save({name: state[name] for name in half}, {"format": "pt"}))
    table = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    index = {"metadata": {"total_size": sum(x.numel() * 4 for x in state.values())}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return {shard: (folder / shard).read_bytes() for shard in shards}


def _index(material: Material, random: Random, place: Path) -> Case:
    """Changes an index, or the names of shards, or removes one."""
    source = material.get("sharded", lambda folder: _sharded(material.hf("llama-gqa"), folder / "tiny")) / "tiny"
    folder = copied(source, place / "tiny")
    index = folder / "model.safetensors.index.json"
    shards = sorted(folder.glob("model-*.safetensors"))
    kind = random.random()
    if kind < 0.7:
        with_content(index, _changed(index, random))
    elif kind < 0.9:  # names that count shards
        index.unlink()
        total = random.choice(_MANY)
        shards[0].rename(
            folder / f"model-{random.choice((0, 1, total)):05d}-of-{total:0{random.choice((1, 5))}d}.safetensors"
        )
    else:
        random.choice(shards).unlink()
    return _case_of(folder, index)


def _safetensors(material: Material, random: Random, place: Path) -> Case:
    """Changes the header of a safetensors file, or any of its bits."""
    folder = copied(material.hf("llama-gqa"), place / "tiny")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    kind = random.random()
    if kind < 0.45:
        header = mutated(json.loads(data[8:end]), random).encode()
        changed = len(header).to_bytes(8, "little") + header + data[end:]
    else:
        changed = flipped(data, random, None if kind < 0.6 else end)
    return _case_of(folder, with_content(path, changed))


def _archives(material: Material) -> None:
    """Makes the files of torch that `_torch` damages."""
    source = material.hf("llama-gqa")

    def make(folder: Path) -> None:
        import torch
        from safetensors.torch import load

        state = load((source / "model.safetensors").read_bytes())
        torch.save(state, folder / "zip.bin")
        torch.save(state, folder / "legacy.bin", _use_new_zipfile_serialization=False)
        torch.save({"model": {"state": state, "step": 3}, "args": [1, "a"]}, folder / "nested.bin")

    material.get("archives", make)
    material.lit()


class _Opens:
    """An object whose pickle opens a file for writing when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return open, ("../../ran", "w")


def _torch(material: Material, random: Random, place: Path) -> Case:
    """Damages a `.bin` file that is converted, or the lit_model.pth that a script generates from."""
    converts = random.random() < 0.6
    source = material.made["archives"] / random.choice(("zip.bin", "zip.bin", "legacy.bin", "nested.bin"))
    folder = copied(material.hf("llama-gqa") if converts else material.lit(), place / "tiny", "model.safetensors")
    path = folder / ("pytorch_model.bin" if converts else "lit_model.pth")
    data = source.read_bytes() if converts else path.read_bytes()
    kind = random.random()
    if data.startswith(b"PK") and kind < 0.5:
        data = _other_archive(data, random)
    elif kind < 0.55:
        data = pickle.dumps({"a": _Opens()}, random.choice((0, 2, 4)))
    elif kind < 0.7:
        data = data[: random.choice((0, 1, 100, 1_000, len(data) // 2, len(data) - 1))]
    else:
        data = flipped(data, random, None if random.random() < 0.5 else 2_000)
    with_content(path, data)
    if converts:
        return _case_of(folder, path)
    flags = ("--checkpoint_dir", folder, "--prompt", "the king", "--max_new_tokens", 2)
    return Case(calling("generate/base.py", *flags, cwd=place), len(data))


def _other_archive(data: bytes, random: Random) -> bytes:
    """Returns a zip archive, whole as such, with a member that is damaged, gone, doubled or of another name."""
    written, how = (
        io.BytesIO(),
        random.choice(("flip", "flip", "flip", "gone", "doubled", "renamed", "pickle", "packed")),
    )
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(written, "w") as after:
        names = before.namelist()
        pickled = next(name for name in names if name.endswith("data.pkl"))
        chosen = pickled if how == "pickle" or random.random() < 0.6 else random.choice(names)
        for name in names:
            content = before.read(name)
            if name != chosen:
                after.writestr(name, content)
            elif how == "flip":
                after.writestr(name, flipped(content, random))
            elif how == "doubled":
                after.writestr(name, content)
                after.writestr(name + "x", content)
            elif how == "renamed":
                after.writestr(random.choice(("../../ran", name.upper(), "data.pkl", "a/b/c")), content)
            elif how == "pickle":
                after.writestr(name, pickle.dumps({"a": _Opens()}, 2))
            elif how == "packed":
                after.writestr(name, b"\0" * 10**7, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def _gguf(material: Material, random: Random, place: Path) -> Case:
    """Changes bits of a gguf's header, which holds the tokenizer, too."""
    source = material.gguf(random.choice(_GGUF_KINDS))
    folder = copied(source, place / "tiny")
    path, end = folder / "tiny.gguf", int((folder / "header.txt").read_text())
    data = path.read_bytes()
    kind = random.random()
    if kind < 0.85:
        data = flipped(data, random, end if random.random() < 0.7 else 2_000)
    elif kind < 0.95:
        data = _without_a_key(data, random, end)
    else:
        data = data[:4] + data[4:8][::-1] + data[8:]  # the other byte order, as far as a reader looks first
    with_content(path, data)
    return _case_of(folder, path)


def _without_a_key(data: bytes, random: Random, end: int) -> bytes:
    """Returns a gguf in which a key has another name, so that it is missing."""
    at = [i for word in (b"general.", b"tokenizer.", b".block_count", b".attention.", b".embedding_length")
          for i in range(end) if data.startswith(word, i)]  # fmt: skip
    i = random.choice(at)
    return data[:i] + b"z" + data[i + 1 :]
