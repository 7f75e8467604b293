"""What several devices change of a plan: the memory of each, what they tell each other, and when more stop paying."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import log2

from lit_gpt.data.batches import Order
from lit_gpt.data.dealing import balance
from lit_gpt.data.store import Samples
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.model import GPT
from lit_gpt.planning.job import Job
from lit_gpt.planning.memory_items import part_bytes, together_bytes
from lit_gpt.planning.seconds import FEW_TOKENS
from lit_gpt.planning.work import Work
from lit_gpt.training.memory import trained_bytes

_LINKS = {"nvlink": (230e9, 5e-6), "pcie": (12e9, 10e-6), "ib": (22e9, 15e-6), "ethernet": (2.7e9, 50e-6)}
"""Link -> bytes a second that go out and come in at once, and seconds until the first arrives: of a GPU for NVLink 3
and PCIe 4.0, of a machine for InfiniBand HDR (200 Gb/s) and Ethernet (25 Gb/s). Data sheets less a tenth or two; none
of them was measured."""
_DIVIDED = ("frozen weights", "trained weights", "gradients", "optimizer")
"""Items of the memory that fsdp divides."""
_PAYS = 1.6
"""How many times as fast a run must be on twice as many devices for these to pay."""
_DEALT_STEPS = 50
"""Optimizer steps whose samples are dealt to see how evenly that works."""


@dataclass(frozen=True)
class Shared:
    """One optimizer step of a run on several devices."""

    n: int
    """Number of devices."""
    sharded: bool
    """Whether each keeps a part of every weight (fsdp), or all of them (ddp)."""
    sent: float
    """Bytes that each sends, and gets."""
    talking: float
    """Seconds of that."""
    computing: float
    """Seconds that the slowest device computes; of one device, as long as it takes to talk where that is unknown."""
    balance: float
    """Part of the time of the slowest device in which a device computes, on average."""
    speedup: float
    """How many times as fast as one device."""


def divided_memory(items: dict[str, int], job: Job, model: GPT, chosen: dict[str, LinearLayer]) -> dict[str, int]:
    """Returns the bytes of every item of a device that keeps a part of every weight."""
    found = {name: n // job.n_devices if name in _DIVIDED else n for name, n in items.items()}
    return found | {"weights that are together": together_bytes(job, model, chosen)}


def shared(job: Job, model: GPT, work: Work, data: Samples, n: int, sharded: bool, seconds: float | None) -> Shared:
    """Returns what a step is on `n` devices.

    Args:
        data: training samples.
        seconds: of a step of one device; None if unknown.
    """
    rate, delay = _LINKS[job.link]
    order = Order(len(data), work.n_samples, job.seed)
    size = job.train.batch_size
    some = [order.rows(at, at + size) for at in range(0, min(_DEALT_STEPS * size, work.n_samples), size)]
    even = balance(data.lengths, some, n)
    share, trained = (n - 1) / n, trained_bytes(model)
    n_layer = job.config.n_layer
    if sharded:
        passes = -(-work.n_passes // (work.n_steps * n))
        weights = sum(p.numel() * p.element_size() for p in model.parameters()) if not job.quantize else None
        sent = passes * share * (2 * (weights or _quantized_bytes(job, model)) + trained)
        talking = sent / rate + passes * (3 * n_layer + 2) * delay * (n - 1).bit_length()
    else:
        sent = 2 * share * trained
        talking = sent / rate + 2 * (n - 1) * delay * (n > 1)
    one = seconds if seconds is not None else talking
    in_a_pass, of_a_device = work.n_computed / work.n_passes, work.n_computed / work.n_steps / n
    computing = one / (n * even) * _rate(in_a_pass) / _rate(min(in_a_pass, of_a_device))
    together = max(computing, talking) if sharded else computing + talking
    speedup = one / together if together else 1.0
    return Shared(n=n, sharded=sharded, sent=sent, talking=talking, computing=computing, balance=even, speedup=speedup)


def _rate(n_tokens: float) -> float:
    """Returns the share of its speed that a device reaches with forward passes of so many tokens."""
    return n_tokens / (n_tokens + FEW_TOKENS)


def _quantized_bytes(job: Job, model: GPT) -> int:
    """Returns the bytes of all weights of a model whose blocks are quantized; what is replicated is not among them."""
    _, chosen = job.model()
    block, rest = part_bytes(model, chosen, job.quantize)
    return block * job.config.n_layer + rest


def numbers(n: int) -> list[int]:
    """Returns the powers of two below `n`, and `n`."""
    return [2**i for i in range((n - 1).bit_length())] + [n]


def _knee(steps: list[Shared]) -> int:
    """Returns the number of devices from which on twice as many do not pay any more; the last one if all pay."""
    for before, after in pairwise(steps):
        if after.speedup < before.speedup * _PAYS ** log2(after.n / before.n):
            return before.n
    return steps[-1].n


def lines_of_several(job: Job, steps: list[Shared], needed: dict[bool, int]) -> Iterator[str]:
    """Yields the lines of a plan about its devices.

    Args:
        steps: a step on growing numbers of devices.
        needed: sharded or not -> bytes that each device needs.
    """
    name = {True: "fsdp", False: "ddp"}
    yield f"Devices: {job.n_devices} x {job.device.name}, by {job.link} (rates of data sheets, not measured)"
    for sharded in (False, True):
        fits = needed[sharded] <= job.device.n_bytes
        chosen = ", taken" if sharded == job.sharded else ""
        verdict = "fits" if fits else "TOO MUCH"
        yield f"  --strategy {name[sharded]:5}{needed[sharded] / 1e9:9.2f} GB on each: {verdict}{chosen}"
    yield "  devices   sent a step   talking   in balance   times one"
    for step in steps:
        sent, talking = f"{step.sent / 1e6:11,.1f} MB", f"{step.talking:9.3g} s"
        yield f"  {step.n:7,}{sent}{talking}{step.balance:12.0%}{step.speedup:12.1f}"
    if (best := _knee(steps)) < job.n_devices:
        last = next(step for step in steps if step.n > best)
        few = last.talking < last.computing / 2
        why = "a step has too few samples for them" if few else "they wait for each other's bytes"
        yield f"  more than {best} do not pay: {why}"
