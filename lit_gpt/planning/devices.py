"""The device that a run is planned for: one of a name, or the one of this machine."""

import re
from dataclasses import replace
from difflib import get_close_matches

import torch

from lit_gpt.errors import UserError
from lit_gpt.planning.cards import DEVICES, GIB, Device
from lit_gpt.resources import total_memory

CONTEXT = 0.55e9
"""Bytes that CUDA and the libraries' workspaces take before the first tensor."""
_MAKERS = ("nvidia", "amd", "geforce", "tesla", "instinct", "gpu", "generation", "graphics")
"""Words of a name that tell no card from another."""


def named(name: str) -> Device:
    """Returns the device of a name, in any spelling; `24gb` is any GPU with 24 GB on the box, `cpu` this machine's CPU.

    Raises:
        UserError: no such device.
    """
    if name.strip().lower() == "cpu":
        return this_machine(torch.device("cpu"))
    if device := _known(name):
        return device
    key = _key(name)
    if re.fullmatch(r"\d+gb?", key):
        gb = key.rstrip("gb")
        return Device(f"{gb}gb", 0.983 * int(gb), 0.0)  # what an A100 of 40 GB leaves of them
    close = get_close_matches(key, _BY_KEY, n=3, cutoff=0.75)
    names = dict.fromkeys(_BY_KEY[key].name for key in close)
    hint = f"close matches: {', '.join(names)}; " if names else ""
    raise UserError(
        f"--device {name!r} is no device we know; {hint}"
        f"24gb and the like stand for any GPU with so much memory; known are {', '.join(DEVICES)} and cpu"
    )


def _known(name: str) -> Device | None:
    """Returns the device of a complete name, also without `rtx`, and with the gigabytes on its box at the end."""
    key = _key(name)
    for candidate in (key, f"rtx{key}"):
        if candidate in _BY_KEY:
            return _BY_KEY[candidate]
    *words, last = _words(name) or [""]
    if not words or not re.fullmatch(r"\d+gb?", last):
        return None
    device = _known(" ".join(words))
    return device if device and 0.9 < device.gib / int(last.rstrip("gb")) < 1 else None


def _words(name: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in _MAKERS]


def _key(name: str) -> str:
    return "".join(_words(name))


_BY_KEY = {_key(name): device for device in DEVICES.values() for name in (device.name, *device.also)}


def this_machine(device: torch.device) -> Device:
    """Returns the GPU or CPU of this machine, with the table's rate if the table has the GPU."""
    if device.type != "cuda":
        return Device("cpu", total_memory() / GIB, 0.0, fp8=True, kind="cpu")
    properties = torch.cuda.get_device_properties(device)
    there = Device(properties.name, properties.total_memory / GIB, 0.0)
    if known := _BY_KEY.get(_key(properties.name)):
        return replace(known, name=there.name, gib=there.gib)
    if torch.version.hip:  # whose numbers of architectures are not NVIDIA's compute capability
        return there
    capability = (properties.major, properties.minor)
    return replace(there, bf16=capability >= (8, 0), fp8=capability >= (8, 9))
