"""What makes a run fit: smaller micro-batches, activation checkpointing, fewer answers, quantized weights, epochs."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.quantize import QUANTIZATIONS
from lit_gpt.planning.job import Job
from lit_gpt.planning.plan import Data, Plan, make_plan
from lit_gpt.planning.seconds import Rates
from lit_gpt.training.offload import SCALED
from lit_gpt.training.run.gauges import clock

_FEWEST_TOKENS = 256
"""Fewest tokens of a forward pass: with fewer, time is lost and no memory saved."""
_FEWEST_ANSWERS = 4
"""Fewest answers that are written at once: with fewer, GRPO takes long."""
MOST_EPOCHS = 3.0
"""Most epochs of a run whose length is not given: more of them over instruction data seldom help."""
_OF_THE_TIME = 0.95
"""Share of --max_time that is planned for."""
_PLANNING = ("dry_run", "fit", "device", "probe")
_LENGTHS = ("epochs", "max_iters", "max_steps")
_TYPICAL = Linear(4096, 4096, device="meta")


def fitted(plan: Plan, data: Data) -> Plan:
    """Returns a plan that fits the memory and then the time, as close as possible to what was asked for.

    Raises:
        UserError: nothing makes it fit.
    """
    return in_time(_in_memory(plan, data), data)


def _in_memory(plan: Plan, data: Data) -> Plan:
    """Returns the plan itself if it fits; else the fastest that fits.

    Plans that leave the weights as they are come first, then those with weights, or an optimizer state, in 8 bits, then
    in 4 bits.

    Raises:
        UserError: nothing makes it fit.
    """
    if plan.fits:
        return plan
    least = plan
    for base in lighter(plan.job):
        plans = [make_plan(job, data, _rates_for(plan, job)) for job in _leaner(base)]
        fitting = [p for p in plans if p.fits]
        if fitting:
            return min(fitting, key=lambda p: (p.seconds or p.n_recomputed, -p.job.room))
        least = min([least, *plans], key=lambda p: p.needed)
    raise UserError(
        f"{plan.job.config.name} does not fit {plan.job.device.name} by any of our ways: the least is "
        f"{least.needed / 1e9:.1f} GB of {plan.job.device.n_bytes / 1e9:.1f}; take a smaller model or a larger --device"
    )


def lighter(job: Job) -> Iterator[Job]:
    """Yields the job, then jobs with less and less memory for weights or, where these train, for the optimizer."""
    yield job
    precision = job.precision.replace("mixed", "true")
    if job.method == "full":
        for optimizer in ("adamw8bit", "paged_adamw8bit"):
            yield replace(job, train=replace(job.train, optimizer=optimizer))
        paged = replace(job.train, optimizer="paged_adamw8bit")
        away = replace(paged, offload_gradients=True)
        if job.mixed and job.precision != SCALED:
            yield replace(job, train=away)
        if job.mixed:
            yield replace(job, precision=precision, train=paged)
        yield replace(job, precision=precision, train=away)
        return
    for kind in ("fp8" if job.device.fp8 and job.device.kind == "cuda" else "int8", "bnb.nf4", "bnb.nf4-dq"):
        if job.quantize is None or _size(kind) < _size(job.quantize):
            yield replace(job, quantize=kind, precision=precision)


def _size(quantize: str) -> int:
    """Returns the bytes of a typical weight matrix of this kind, to compare kinds with."""
    return QUANTIZATIONS[quantize].n_bytes(_TYPICAL)


def _speed(quantize: str | None) -> float:
    """Returns the speed of a training step with weights of this kind, relative to bf16."""
    return QUANTIZATIONS[quantize].speed if quantize else 1.0


def _leaner(job: Job) -> Iterator[Job]:
    """Yields the job with smaller and smaller forward passes, each without and with all blocks recomputed.

    With GRPO, so again for fewer and fewer answers at once.
    """
    sizes = list(_halved(job.room, _FEWEST_TOKENS))
    n_answers = _halved(job.grpo.rollout_rows, _FEWEST_ANSWERS) if job.grpo else (0,)
    for n in n_answers:
        grpo = replace(job.grpo, rollout_rows=n) if job.grpo else None
        for tokens in sizes:
            for recompute in dict.fromkeys((job.train.recompute, "all")):
                train = replace(job.train, micro_batch_tokens=tokens, recompute=recompute)
                yield replace(job, train=train, grpo=grpo)


def _halved(n: int, least: int) -> Iterator[int]:
    """Yields n, and its halves down to `least`."""
    while True:
        yield n
        if n // 2 < least:
            return
        n //= 2


def _rates_for(plan: Plan, job: Job) -> Rates | None:
    """Returns the measured rates of `plan` for other weights; None leaves them to the table of devices."""
    if plan.rates is None or plan.job.device.rate:
        return None
    speed = _speed(job.quantize) / _speed(plan.job.quantize)
    return replace(plan.rates, training=plan.rates.training * speed, validation=plan.rates.validation * speed)


def in_time(plan: Plan, data: Data) -> Plan:
    """Returns the plan with as many epochs as fit --max_time, at most those asked for, or MOST_EPOCHS.

    Raises:
        UserError: not even a hundredth of an epoch does.
    """
    train, limit = plan.job.train, plan.job.train.max_seconds
    times = plan.times
    if limit is None or times is None:
        return plan
    has_length = any(getattr(train, name) is not None for name in _LENGTHS)
    epochs = plan.work.epochs if has_length else MOST_EPOCHS
    if has_length and times.total <= limit * _OF_THE_TIME:
        return plan
    for _ in range(4):
        fixed = times.starting + times.validating / plan.work.n_validations + times.merging + times.ending
        per_epoch = (times.total - fixed) / plan.work.epochs
        possible = (limit * _OF_THE_TIME - fixed) / per_epoch
        epochs = min(epochs, int(100 * possible) / 100)
        if epochs < 0.01:
            raise UserError(
                f"--max_time {clock(limit)} is too little: it starts in {clock(fixed)}, and an epoch takes "
                f"{clock(per_epoch)}; give it more time, or take a smaller model"
            )
        shorter = replace(plan.job, train=replace(train, epochs=epochs, max_iters=None, max_steps=None))
        plan = make_plan(shorter, data, plan.rates)
        times = plan.times
        if times is None or times.total <= limit * _OF_THE_TIME:
            break
    return plan


def ways_out(plan: Plan, data: Data) -> Iterator[str]:
    """Yields the changes that would make a plan fit that does not, one at a time."""
    if not plan.fits:
        yield "To make it fit (--fit true chooses)"
        yield from (
            f"  {flags_of(plan.job, p.job)}: {p.needed / 1e9:.2f} GB{_verdict(p)}" for p in _smaller(plan, data)
        )
    limit = plan.job.train.max_seconds
    if limit and plan.times and plan.times.total > limit:
        yield f"It takes longer than --max_time {clock(limit)}, which will end it early"
        with_fewer = in_time(plan, data)
        yield f"  --epochs {with_fewer.job.train.epochs}: {clock(with_fewer.seconds or 0)}"
    if plan.times and plan.times.validating > 0.25 * plan.times.training:
        yield "Much of the time goes into validation: raise --eval_interval, or pass --eval_iters"


def _smaller(plan: Plan, data: Data) -> Iterator[Plan]:
    """Yields plans with one change each that take less memory."""
    single = [job for job in _leaner(plan.job) if len(_changes(plan.job, job)) == 1]
    jobs = [job for job in single if job.grpo == plan.job.grpo][:4]
    jobs += [job for job in single if job.grpo != plan.job.grpo][:3]
    jobs += list(lighter(plan.job))[1:]
    yield from (p for p in (make_plan(job, data, _rates_for(plan, job)) for job in jobs) if p.needed < plan.needed)


def _verdict(plan: Plan) -> str:
    return (", fits" if plan.fits else ", too much still") + (f", {clock(plan.seconds)}" if plan.seconds else "")


def _changes(before: Job, after: Job) -> dict[str, Any]:
    """Returns the flags of the second job that differ from the first one's, by name."""
    found: dict[str, Any] = {}
    for name in ("quantize", "precision"):
        if getattr(after, name) != getattr(before, name):
            found[name] = getattr(after, name)
    if after.room != before.room:
        found["micro_batch_tokens"] = after.room
    if after.grpo and before.grpo and after.grpo.rollout_rows != before.grpo.rollout_rows:
        found["rollout_rows"] = after.grpo.rollout_rows
    for name in ("recompute", "optimizer", "offload_gradients", *_LENGTHS):
        if getattr(after.train, name) != getattr(before.train, name):
            found[name] = getattr(after.train, name)
    return found


def flags_of(before: Job, after: Job) -> str:
    found = {name: str(value).lower() if value is True else value for name, value in _changes(before, after).items()}
    return " ".join(f"--{name} {value}" for name, value in found.items() if value is not None)


def command_line(plan: Plan, before: Job, argv: list[str]) -> str:
    """Returns the command of the planned run: what was typed, without planning's flags, and what was chosen.

    Args:
        before: the job before anything was chosen.
        argv: the script and its arguments.
    """
    found = _changes(before, plan.job)
    left_out = {*_PLANNING, *found}
    words, skipped = [], False
    for word in argv[1:]:
        name, equals, _ = word.partition("=")
        if name.startswith("--"):
            skipped = name[2:] in left_out
        if not skipped:
            words.append(word)
        skipped = skipped and not equals
    chosen = flags_of(before, plan.job)
    script = "/".join(argv[0].replace("\\", "/").split("/")[-2:])
    return f"python {script} {shlex.join(words)} {chosen}".rstrip()
