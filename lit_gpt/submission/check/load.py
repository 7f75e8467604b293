"""Puts a server under the load of the sample evaluation, and says how long that evaluation takes."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.planning.cards import GIB, Device
from lit_gpt.planning.devices import CONTEXT as CONTEXT_BYTES
from lit_gpt.submission.check.helm import CONTEXT, PROMPTS, Ask, request_of, require_processed

THREADS = 4
"""Requests that helm-run has on their way at once, by default."""
_CANONICAL = 5
"""Times that an instance is asked under data_augmentation=canonical, at most: as it is, and with each perturbation."""
ENTRIES = {"multiple choice": 17 * _CANONICAL + 2, "generation": 9, "arithmetic": 1, "summary": 1}
"""Kind of request -> how many the challenge's sample evaluation has for each instance: 17 subjects of MMLU with
perturbations, TruthfulQA and BBQ; nine tasks of BIG-bench; GSM8K; CNN/DM."""
_BANDWIDTH = {
    "a100-40gb": 1.555e12,
    "a100-80gb": 2.039e12,
    "rtx4090": 1.008e12,
    "rtx3090": 0.936e12,
    "h100-80gb": 3.35e12,
    "h200": 4.8e12,
    "l4": 0.3e12,
    "a10g": 0.6e12,
    "t4": 0.32e12,
}
"""Bytes a second of a GPU's memory, by NVIDIA's data sheets."""
_REACHED = 0.4
"""Share of a device's rates that an answer is taken to reach, none of it shared with the other three: a guess, on the
careful side."""
_STEP = 0.02
"""Least seconds of a forward pass, which the host takes to launch it: a guess, too."""
_BYTES = {"bnb.nf4": 0.7, "bnb.nf4-dq": 0.65, "bnb.int8": 1.1, "int8": 1.1, "fp8": 1.1, None: 2.0}
"""Bytes of a weight by how the served weights are quantized, embeddings included."""


@dataclass(frozen=True)
class Load:
    """What a kind of request took."""

    kind: str
    seconds: float
    """Seconds for a request, where THREADS of them are on their way."""
    median: float
    """Seconds until one is answered."""
    prompt_tokens: int
    new_tokens: float


def measure(ask: Ask, n: int) -> list[Load]:
    """Sends n requests of each kind from THREADS threads, each with a prompt of its own, and returns what they took."""
    found = []
    for kind in PROMPTS:
        bodies = [request_of(kind, i + 2) for i in range(n)]
        began = time.monotonic()
        with ThreadPoolExecutor(THREADS) as threads:
            answers = list(threads.map(lambda body: _timed(ask, body), bodies))
        seconds = (time.monotonic() - began) / n
        for answer, _ in answers:
            require_processed(answer, f"{kind}, {THREADS} at once: /process")
        ids = ask("/tokenize", {"text": bodies[0]["prompt"], "truncation": True, "max_length": CONTEXT})["tokens"]
        new = statistics.mean(len(answer["tokens"]) for answer, _ in answers)
        found.append(
            Load(kind, seconds, statistics.median(s for _, s in answers), prompt_tokens=len(ids), new_tokens=new)
        )
    return found


def _timed(ask: Ask, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Returns an answer and the seconds it took."""
    began = time.monotonic()
    return ask("/process", body), time.monotonic() - began


def evaluation_seconds(loads: list[Load], instances: int) -> float:
    """Returns the seconds of the sample evaluation at the pace that was measured.

    Args:
        instances: those of each entry.
    """
    return sum(ENTRIES[load.kind] * instances * load.seconds for load in loads)


def planned_seconds(loads: list[Load], instances: int, model: dict[str, Any], device: Device) -> float | None:
    """Returns the seconds of the sample evaluation on a device that is not here; None if nobody knows its rates.

    Args:
        model: `parameters` and `serve_quantize` of the manifest.
    """
    bandwidth = _BANDWIDTH.get(device.name)
    if bandwidth is None or not device.rate:
        return None
    n, weight = model["parameters"], _BYTES[model.get("serve_quantize")]
    total = 0.0
    for load in loads:
        prompt = _STEP + 2 * n * load.prompt_tokens / (device.rate * _REACHED)
        answer = load.new_tokens * max(_STEP, n * weight / (bandwidth * _REACHED))
        total += ENTRIES[load.kind] * instances * (prompt + answer)
    return total


def _planned_bytes(model: dict[str, Any]) -> float:
    """Returns the bytes of the GPU's memory that the server takes with THREADS texts of 2,048 tokens."""
    weights = model["parameters"] * _BYTES[model.get("serve_quantize")]
    return weights + THREADS * CONTEXT * model["kv_bytes_per_token"] + CONTEXT_BYTES + 1e9


def require_memory(model: dict[str, Any], device: Device) -> str:
    """Returns what the server takes of a device's memory; raises UserError if that is more than there is."""
    need = _planned_bytes(model)
    if need > device.n_bytes:
        raise UserError(f"the served model takes about {need / GIB:.1f} GiB, and {device.name} has {device.gib:.1f}; "
                        "pass --serve_quantize bnb.nf4 to scripts/prepare_submission.py")  # fmt: skip
    return f"about {need / GIB:.1f} of {device.gib:.1f} GiB of {device.name} (estimate)"
