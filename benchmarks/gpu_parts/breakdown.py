"""Where the time of one optimizer step goes, by kind of kernel, as the profiler saw it."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ours
import torch
from gpu_parts.context import Context
from gpu_parts.training import LABELS, TARGETS, adapted, data
from torch.profiler import ProfilerActivity, profile

BY_NAME = (
    ("head and loss", "log_softmax|nll|cross_entropy|logsumexp"),
    ("attention", "flash|fmha|attention|mem_eff"),
    ("matrix products", "gemm|cutlass|nvjet|xmma|cublas|matmul|::mm|addmm|bmm|_mm|splitk"),
    ("norms", "rms|norm|rsqrt"),
    ("activation", "silu|sigmoid|gelu|swiglu|gate"),
    ("rotary embedding", "rope|rotat|cos|sin"),
    ("dropout", "dropout|bernoulli|philox|random|distribution"),
    ("optimizer", "adam|foreach|multi_tensor|lerp"),
    ("copies and casts", "copy|memcpy|memset|cast|cat|fill|clone|transpose"),
)
"""Kind -> names of kernels and operators, the first that fits; what fits none is `other`."""


def run(context: Context) -> None:
    for targets, name, kind in (("qv", "full", None), ("all", "instructions", None), ("qv", "full", "fp8")):
        row = context, targets, name, kind
        context.attempt(f"profile {kind or 'bf16'} {LABELS[targets]} {name}", one_step, *row, needs_s=15)


def one_step(context: Context, targets: str, name: str, quantize: str | None) -> None:
    ours.set_compile(context.on_gpu)
    batches = ours.batches_of(data(context, name), context.rows)[:1]
    step = ours.step_runner(adapted(context, targets, quantize), batches, context.device, recorded=False)
    for _ in range(2):
        step()
    layers = LABELS[targets]
    print(f"\n  {quantize or 'bf16'}, {layers}, {name}, {context.rows} tokens, kernels called one by one")
    describe(context, *record(context, step), TARGETS[targets].lora_r)


Kernel = tuple[str, float, float]
"""name, start and duration in microseconds."""
Launch = tuple[str, Sequence[Sequence[int]], str, float]
"""operator, shapes of its inputs, kernel, duration in microseconds."""


def record(context: Context, step: Callable[[], object]) -> tuple[list[Kernel], list[Launch]]:
    """What ran in one step: each kernel, and those whose operator is known. On a CPU operators stand for kernels."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if context.on_gpu else [])
    with profile(activities=activities, record_shapes=True) as recorded:
        step()
        if context.on_gpu:
            torch.cuda.synchronize()
    events: Any = recorded.events()
    if not context.on_gpu:
        own = [(e.name, e.input_shapes, e.name, e.self_cpu_time_total) for e in events]
        return [(e.name, e.time_range.start, e.self_cpu_time_total) for e in events], own
    kernels = [
        (e.name, e.time_range.start, e.time_range.elapsed_us())
        for e in events
        if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation
    ]
    launches = [(e.name, e.input_shapes, k.name, k.duration) for e in events for k in e.kernels]
    return kernels, launches


def describe(context: Context, kernels: list[Kernel], launches: list[Launch], r: int) -> None:
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for name, _, duration in kernels:
        total[name] += duration
        count[name] += 1
    shares: dict[str, float] = defaultdict(float)
    known: dict[str, float] = defaultdict(float)
    for operator, shapes, kernel, duration in launches:
        shares[kind(kernel, operator, shapes, r=r, vocab_size=context.config.padded_vocab_size)] += duration
        known[kernel] += duration
    for name, duration in total.items():
        shares[kind(name, "", (), r=r, vocab_size=0)] += max(0.0, duration - known[name])
    span = max(start + duration for _, start, duration in kernels) - min(start for _, start, _ in kernels)
    whole = sum(shares.values()) or 1.0
    busy = covered((start, start + duration) for _, start, duration in kernels)
    print(
        f"  {span / 1e3:.1f} ms from the first kernel to the last under the profiler, {busy / 1e3:.1f} ms of them busy"
    )
    for name, duration in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"    {name:24}{duration / whole:7.1%}{duration / 1e3:10.2f} ms")
        context.figures[f"share.{name}"] = duration / whole
    print(f"  {'the longest kernels':98}{'share':>8}{'ms':>10}{'calls':>8}")
    for name in sorted(total, key=lambda n: -total[n])[:24]:
        print(f"    {name[:96]:96}{total[name] / whole:8.1%}{total[name] / 1e3:10.2f}{count[name]:8}")


def kind(kernel: str, operator: str, shapes: Sequence[Sequence[int]], r: int, vocab_size: int) -> str:
    """Of a kernel: by its own name, else by that of the operator that launched it.

    Args:
        operator: empty if that is not known.
        shapes: of the operator's inputs; they tell a matrix product of the head or of LoRA from the others.
    """
    found = by_name(kernel)
    if found in ("other", "copies and casts"):
        found = by_name(operator) if by_name(operator) != "other" else found
    if found == "matrix products":
        sizes = {n for shape in shapes or () if isinstance(shape, (list, tuple)) and len(shape) == 2 for n in shape}
        if vocab_size in sizes:
            return "head and loss"
        if sizes & {r, 2 * r, 3 * r}:
            return "LoRA's products"
    return found


def by_name(name: str) -> str:
    return next((kind for kind, pattern in BY_NAME if re.search(pattern, name.lower())), "other")


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of the spans."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
