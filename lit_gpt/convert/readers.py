"""Reads the tensors of a checkpoint folder lazily: safetensors, `.bin` or gguf, in one file or in shards."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_gpt.convert.gguf import open_gguf, parts_of
from lit_gpt.convert.quantized import dequantized, read_settings, without_settings
from lit_gpt.convert.quantized.parts import Weight
from lit_gpt.errors import UserError, one_line, shown
from lit_gpt.families.wrappers import text_names, unwrapped
from lit_gpt.files import OneFileOpen, Opened, Spec, spec_of
from lit_gpt.files.headers import FROM_SAFETENSORS, read_header
from lit_gpt.files.pickles import RefusedError, load_weights
from lit_gpt.files.tensors import DTYPES, check_names, first_line
from lit_gpt.records import is_file_name, read_object

_AGAIN = "delete it and download it again"
_SETTINGS_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files in which AutoGPTQ and AutoAWQ describe the quantization, where config.json does not: name -> method."""


@dataclass(frozen=True)
class Source:
    """A checkpoint with Hugging Face's names and configuration, whatever the format of its files."""

    hf_config: dict[str, Any]
    config_file: Path
    """File from which `hf_config` was read, for messages."""
    names: list[str]
    """Names of the tensors, in the order of the files."""
    get: Callable[[str], Tensor]
    """Reader of one tensor by name, which may be a view that keeps a mapped file in memory."""
    files: list[Path]
    specs: dict[str, Spec]
    """Shape and dtype of each of `names`."""
    quantized: dict[str, Weight] = field(default_factory=dict)
    """The weights of `names` that are quantized in the files, which `get` dequantizes."""
    quantization: str = ""
    """What their quantization is called."""


def open_source(folder: Path, dtype: torch.dtype | None = None) -> Source:
    """Opens the checkpoint in `folder`: safetensors if there are any, else `.bin`, else gguf.

    At most one file of weights is open at a time, and only the tensors that `get` asks for are read.

    Args:
        dtype: dtype to which quantized tensors are dequantized; others keep theirs.

    Raises:
        UserError: no weights, no config.json, a shard that is missing, a file that is damaged or would run code, files
            that do not hold what their index says, weights that are quantized in a way that is not read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; download one with scripts/download.py --repo_id <org>/<name>")
    for name, open_file in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_bin)):
        files, weight_map = _weight_files(folder, name)
        if files:
            index = f"{name}.index.json"
            return _open_files(folder, files, open_file, weight_map=weight_map, index=index, dtype=dtype)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) > 1 and ggufs != parts_of(ggufs[0]):
        raise UserError(f"{folder} has {len(ggufs)} gguf files; leave one of {', '.join(f.name for f in ggufs)}")
    if ggufs:
        hf_config, tensors, specs = open_gguf(ggufs[0], dtype)
        return Source(
            hf_config, ggufs[0], names=list(tensors), get=lambda name: tensors[name](), files=ggufs, specs=specs
        )
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    raise UserError(f"{folder} has no weights (model*.safetensors, pytorch_model*.bin or *.gguf); it holds {held}")


def _weight_files(folder: Path, name: str) -> tuple[list[Path], dict[str, str] | None]:
    """Returns the file called `name`, else its shards, and the table tensor -> file of their index if there is one.

    As in transformers, the single file wins over an index and shards that an earlier save may have left. Without
    either, all files are taken whose names look like shards.

    Raises:
        UserError: the index is damaged, or a file is missing.
    """
    if (folder / name).is_file():
        return [folder / name], None
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return _require_all_shards(sorted(folder.glob(name.replace(".", "*.")))), None
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map, the table of tensors and files; {_AGAIN}")
    for tensor, file in weight_map.items():
        if not is_file_name(file):
            raise UserError(
                f"{index} gives {shown(file)} as the file of {shown(tensor)}, which is no file's name; {_AGAIN}"
            )
    names = sorted(set(weight_map.values()))
    if missing := [n for n in names if not (folder / n).is_file()]:
        raise _missing_shard(folder, missing[0], f"{len(missing)} of {len(names)} files of {index.name}")
    return [folder / n for n in names], weight_map


def _require_all_shards(files: list[Path]) -> list[Path]:
    """Returns `files`; raises UserError if one is named like model-00001-of-00003 and another of the set is missing."""
    sets: dict[tuple[str, int, str, str], set[int]] = {}
    for path in files:
        if match := re.fullmatch(r"(.*-)(\d+)-of-(\d+)(\.\w+)", path.name):
            start, number, total, suffix = match.groups()
            sets.setdefault((start, len(number), total, suffix), set()).add(int(number))
    for (start, width, total, suffix), numbers in sets.items():
        n_missing = int(total) - sum(1 <= i <= int(total) for i in numbers)
        if n_missing > 0:
            first = next(i for i in range(1, int(total) + 1) if i not in numbers)
            name = f"{start}{first:0{width}d}-of-{total}{suffix}"
            raise _missing_shard(files[0].parent, name, f"{n_missing} of {int(total)} shards")
    return files


def _missing_shard(folder: Path, name: str, how_many: str) -> UserError:
    return UserError(f"{folder} lacks {name} ({how_many}); run scripts/download.py again: it fetches what is missing")


def _open_files(
    folder: Path,
    files: list[Path],
    open_file: Callable[[Path], Opened],
    weight_map: dict[str, str] | None,
    index: str,
    dtype: torch.dtype | None,
) -> Source:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"{folder} has weights but no config.json; download it from where the weights came from")
    hf_config = read_object(config_file)
    read_settings(hf_config, str(config_file))  # refuses before the files are opened
    listed: dict[str, set[str]] = {}
    for tensor, name in (weight_map or {}).items():
        listed.setdefault(name, set()).add(tensor)
    specs: dict[str, Spec] = {}
    paths: dict[str, Path] = {}
    for path in files:
        found = open_file(path).specs
        if weight_map is not None:
            _check_index(found, listed[path.name], weight_map, path=path, index=index)
        if twice := sorted(specs.keys() & found.keys()):
            raise UserError(
                f"{path} holds {twice[0]!r}, and so does {paths[twice[0]].name}; delete the file that is not of "
                "this model, or all of them and download it again"
            )
        specs |= found
        paths |= dict.fromkeys(found, path)
    if any(name.endswith(".qweight") for name in specs):
        for stated, method in _SETTINGS_FILES.items():
            if "quantization_config" not in hf_config and (folder / stated).is_file():
                hf_config["quantization_config"] = {"quant_method": method, **read_object(folder / stated)}
    if text := text_names(specs) if unwrapped(hf_config)[1] else None:  # where both say something, the file decides
        hf_config["tie_word_embeddings"] = "lm_head.weight" not in text
    get = OneFileOpen(paths, open_file)
    plain = dequantized(hf_config, specs, get, where=str(config_file), dtype=dtype)
    return Source(
        without_settings(hf_config),
        config_file,
        names=list(plain.specs),
        get=plain.get,
        files=files,
        specs=plain.specs,
        quantized=plain.weights,
        quantization=plain.name,
    )


def _check_index(found: dict[str, Spec], listed: set[str], weight_map: dict[str, str], path: Path, index: str) -> None:
    """Checks that the file holds exactly the tensors that the index lists for it; raises UserError if not."""
    for tensor in sorted(listed - found.keys()):
        missing = shown(tensor)
        raise UserError(f"{path} lacks {missing}, which {index} lists for it; delete both and download them again")
    for tensor in sorted(found.keys() - listed):
        says = f"lists for {weight_map[tensor]}" if tensor in weight_map else "does not list"
        raise UserError(f"{path} holds {tensor!r}, which {index} {says}; delete both and download them again")


def _require_weights(path: Path) -> bytes:
    """Returns the first bytes of a file of weights; raises UserError if it is empty or text."""
    with open(path, "rb") as file:
        head = file.read(32)
    if not head:
        raise UserError(f"{path} is empty; {_AGAIN}")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise UserError(
            f"{path} is text, not weights: a web page or a git-lfs pointer? It begins with {head.decode()!r}; {_AGAIN}"
        )
    return head


def _open_safetensors(path: Path) -> Opened:
    """Opens a safetensors file; raises UserError if it is damaged or holds an unsupported dtype."""
    _require_weights(path)
    try:
        stored = read_header(path)
        file = safe_open(path, framework="pt")
    except (ValueError, SafetensorError) as e:
        raise UserError(f"{path} is truncated or damaged ({first_line(e)}); {_AGAIN}") from e
    specs: dict[str, Spec] = {}
    for name, (dtype, shape) in stored.items():
        if dtype not in FROM_SAFETENSORS:
            raise _unknown_dtype(path, name, one_line(dtype, 100))
        specs[name] = Spec(shape, FROM_SAFETENSORS[dtype])
    return Opened(specs, file.get_tensor)


def _open_bin(path: Path) -> Opened:
    """Opens a `.bin` file; raises UserError if it is damaged or holds anything but supported tensors."""
    is_zip = _require_weights(path).startswith(b"PK")  # values of older files are copied where they are not aligned
    state = _tensors_in(_load(path), path)
    for name, x in state.items():
        if x.dtype not in DTYPES or x.layout != torch.strided:
            raise _unknown_dtype(path, name, f"{x.dtype}, {x.layout} on {x.device}")
    return Opened({name: spec_of(x) for name, x in state.items()}, state.__getitem__, is_zip)


def _unknown_dtype(path: Path, name: str, dtype: str) -> UserError:
    known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
    return UserError(f"{path}: {name!r} is of dtype {dtype}, which is not read; get the model in one of {known}")


def _load(path: Path) -> Any:
    """Loads what torch saved in a file.

    Raises:
        UserError: the file is damaged, or is a pickle that would run code when loaded.
    """
    try:
        return load_weights(path)
    except RefusedError as e:
        raise UserError(
            f"{path} is not a plain file of tensors (it names {first_line(e)}) and is not loaded: "
            "it could run code; get the model as safetensors"
        ) from e
    except (OSError, MemoryError):
        raise
    except Exception as e:  # a damaged pickle may raise anything
        raise UserError(f"{path} is truncated or damaged ({first_line(e)}); {_AGAIN}") from e


def _tensors_in(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Returns `loaded` if it is a dict of tensors, else the one such dict under "model" or "state_dict".

    Raises:
        UserError: there is no such dict, or there are tensors beside it.
    """

    def is_state(x: Any) -> bool:
        return isinstance(x, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in x.items())

    def checked(state: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            check_names(state)
        except ValueError as e:
            raise UserError(f"{path} is damaged ({e}); {_AGAIN}") from e
        return state

    if is_state(loaded):
        return checked(loaded)
    if isinstance(loaded, dict) and not any(isinstance(x, Tensor) for x in loaded.values()):
        inner = [loaded[key] for key in ("model", "state_dict") if is_state(loaded.get(key))]
        if len(inner) == 1:
            return checked(inner[0])
    holds = ", ".join(shown(key) for key in list(loaded)[:3]) if isinstance(loaded, dict) else type(loaded).__name__
    raise UserError(f"{path} holds something else than named tensors ({holds}); get the model as safetensors")
