"""A plan as text."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from lit_gpt.planning.plan import Plan
from lit_gpt.planning.several import lines_of_several
from lit_gpt.training.length import outlook
from lit_gpt.training.run.gauges import clock

_NEARLY_FULL = 0.03
"""Part of the memory that a plan should leave: about what it is wrong by (docs/plan_a_run.md)."""


def lines_of(plan: Plan, now: datetime | None = None) -> Iterator[str]:
    """Yields the lines of a plan: memory item by item, work, time.

    Args:
        now: when the run would start.
    """
    yield from _memory_lines(plan)
    yield from (f"  {risk}" for risk in risks(plan))
    if plan.steps:
        yield from lines_of_several(plan.job, list(plan.steps), dict(zip((False, True), plan.by_strategy, strict=True)))
    yield from _work_lines(plan)
    yield from _time_lines(plan, now or datetime.now())


def _memory_lines(plan: Plan) -> Iterator[str]:
    job, device = plan.job, plan.job.device
    yield f"Memory on {device.name}, GB (10^9 bytes)"
    for name, n_bytes in plan.memory.items():
        if n_bytes:
            yield f"  {name:32}{n_bytes / 1e9:9.2f}"
    yield f"  {'sum':32}{plan.needed / 1e9:9.2f} of {device.n_bytes / 1e9:.2f}: {'fits' if plan.fits else 'TOO MUCH'}"
    yield f"  the run will report a peak of    {plan.peak / 1e9:9.2f}"
    if device.kind == "cuda" and any(plan.host.values()):
        there = ", ".join(f"{name} {n / 1e9:.2f}" for name, n in plan.host.items() if n)
        yield f"  in the host's memory, besides: {there}"
    kept = f"{plan.n_recomputed} of {job.config.n_layer} blocks compute their forward pass twice"
    weights = job.quantize or job.precision
    yield f"  weights in {weights}; up to {plan.work.largest:,} tokens a forward pass; {kept}"


def risks(plan: Plan) -> Iterator[str]:
    """Yields what may go wrong with a plan that fits, one sentence each, with the way out."""
    left = 1 - plan.needed / plan.job.device.n_bytes
    if plan.job.device.kind == "cuda" and 0 <= left < _NEARLY_FULL:
        yield (
            f"Risk: {left:.1%} of the memory is left besides the margin, and plans can be wrong by more; what a screen "
            "or another process takes may end the run; --recompute all or a smaller --micro_batch_tokens leaves room"
        )
    if plan.job.precision == "16-true":
        other = "bf16-true, which this device has" if plan.job.device.bf16 else "16-mixed, which scales the loss"
        yield (
            "Risk: 16-true is fp16 without loss scaling: it ends at 65,504 and loses small gradients, so that losses "
            f"can become nan; safer is --precision {other}"
        )


def _work_lines(plan: Plan) -> Iterator[str]:
    work = plan.work
    waste = work.n_padded / work.n_tokens - 1
    filled = f"{work.filled}; " if work.filled else ""
    yield "Work"
    yield f"  {work.n_samples:,} samples = {work.epochs:.2f} epochs in {work.n_steps:,} steps"
    yield f"  {work.n_tokens:,} tokens, of which {work.n_targets:,} are targets, in {work.n_passes:,} forward passes"
    if work.n_computed < work.n_tokens:
        saved = 1 - work.n_computed / work.n_tokens
        where = "in shared prefixes or after the last target"
        yield f"  {work.n_computed:,} of the tokens are computed: {saved:.0%} are {where}"
    yield f"  no padding; {filled}padded by {plan.job.train.micro_batch_size}: {waste:+.0%}"
    yield f"  {work.n_validations} validations of {work.n_val_tokens:,} tokens, {work.n_saves} saves"
    yield from (f"  {line}" for line in outlook(0, plan.length))


def _time_lines(plan: Plan, now: datetime) -> Iterator[str]:
    yield "Time"
    if plan.times is None or plan.rates is None:
        yield f"  unknown: the speed of {plan.job.device.name} is; --probe true measures that of this machine"
        return
    times = plan.times
    rate = plan.work.n_tokens / times.training
    yield f"  {plan.flops / 1e15:.3g} PFLOP; {plan.rates.source}"
    yield f"  {times.training / plan.work.n_steps:.3g} s a step, {rate:,.0f} tokens a second"
    parts = [
        ("start", times.starting),
        ("reference", times.reference),
        ("rollouts", times.rollouts),
        ("training", times.training),
        ("validation", times.validating),
    ]
    parts += [("saves", times.saving), ("merge", times.merging), ("end", times.ending)]
    shown = [(name, seconds) for name, seconds in parts if seconds or name not in ("reference", "rollouts")]
    yield "  " + ", ".join(f"{name} {clock(seconds)}" for name, seconds in shown)
    yield f"  {clock(times.total)} in all; started now, it ends {_when(now, times.total)}"


def _when(now: datetime, seconds: float) -> str:
    """Returns as text when a run of so many seconds ends that starts now."""
    try:
        end = now + timedelta(seconds=seconds)
    except OverflowError:  # after the year 9999
        return f"in {seconds / 86_400 / 365.25:,.0f} years"
    days = (end.date() - now.date()).days
    return f"at {end:%H:%M}" + (f" in {days} day{'s' * (days > 1)}" if days else "")
