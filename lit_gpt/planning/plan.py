"""A plan: the memory and the time that a run will take, as far as they can be known before it starts."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from lit_gpt.data.answers import repeated
from lit_gpt.data.store import Samples
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.model import GPT
from lit_gpt.planning.answering import answering_items
from lit_gpt.planning.job import Job
from lit_gpt.planning.memory_items import blocks_recomputed, host_bytes, memory_items, peak_of
from lit_gpt.planning.seconds import Rates, Times, rates_of_device, times_of
from lit_gpt.planning.several import Shared, divided_memory, numbers, shared
from lit_gpt.planning.work import Work, work_of
from lit_gpt.training.flops import training_flops
from lit_gpt.training.length import Length, length_of

Data = tuple[Samples, Samples]


@dataclass(frozen=True)
class Plan:
    """The memory and the time that a run will take."""

    job: Job
    work: Work
    memory: dict[str, int]
    """Item -> bytes of the device."""
    host: dict[str, int]
    """Item -> bytes of the host's memory."""
    n_recomputed: int
    """Blocks that recompute their forward pass."""
    flops: float
    """Operations of all training steps."""
    rates: Rates | None
    """None where nothing is known about the device's speed."""
    times: Times | None
    steps: tuple[Shared, ...] = ()
    """A step on growing numbers of devices; none for one device."""
    by_strategy: tuple[int, int] = (0, 0)
    """Bytes of a device that has all of the model (ddp), and of one that has a part of it (fsdp)."""

    @property
    def needed(self) -> int:
        """Bytes of the device that are needed."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.job.device.n_bytes

    @property
    def peak(self) -> int:
        """Bytes that the run will report as its peak."""
        return peak_of(self.memory, self.job.device.kind)

    @property
    def seconds(self) -> float | None:
        """Seconds from the command to its end."""
        return self.times and self.times.total

    @property
    def length(self) -> Length:
        """The run's steps and the limit that ends it, by the planned times if that is --max_time."""
        length, times, limit = length_of(self.job.train, self.work.n_rows), self.times, self.job.train.max_seconds
        if times is None or limit is None:
            return length
        # of validations and saves, the first and the last one are there however long the run is
        pauses = ((times.validating, self.work.n_validations), (times.saving, self.work.n_saves))
        between = sum(seconds * max(0, n - 2) / n for seconds, n in pauses)
        a_step = (times.training + between) / length.n_steps
        fitting = int((limit - times.total) / a_step + length.n_steps)
        return length if fitting >= length.n_steps else length.cut(max(1, fitting), "max_time")

    def record(self) -> dict[str, Any]:
        """Returns the plan as plan.json holds it."""
        return {
            "device": self.job.device.name,
            "memory": self.memory,
            "host_memory": self.host,
            "peak_bytes": self.peak,
            "blocks_recomputed": self.n_recomputed,
            "work": asdict(self.work),
            "rates": self.rates and asdict(self.rates),
            "seconds": self.times and {**asdict(self.times), "total": self.times.total},
        }


def make_plan(job: Job, data: Data, rates: Rates | None = None) -> Plan:
    """Returns the plan of a job on its data.

    Args:
        data: training and validation samples.
        rates: measured ones; the table's if not given.
    """
    rows = data
    if job.grpo:  # as if the answers were as long as those of the data
        data = repeated(data[0], job.grpo.group_size), data[1]
    model, chosen = job.model()
    work = work_of(*data, job.train, job.validation, job.packing, job.seed)
    n_again = blocks_recomputed(job, model, chosen, work)
    given, rates = rates, rates or rates_of_device(job, model, work, n_again)
    memory = memory_items(job, model, chosen, work=work, n_again=n_again)
    plan = Plan(
        job=job,
        work=work,
        memory=memory | answering_items(job, model, rows, training_items=memory),
        host=host_bytes(job, model),
        n_recomputed=n_again,
        flops=training_flops(model, work.n_computed, work.n_targets, squares=work.squares, n_recomputed=n_again),
        rates=rates,
        times=rates and times_of(job, model, work, rates=rates, n_again=n_again),
    )
    return plan if job.n_devices == 1 else _of_several(plan, model, chosen, data=data, given=given)


def _of_several(plan: Plan, model: GPT, chosen: dict[str, LinearLayer], data: Data, given: Rates | None) -> Plan:
    """Returns the plan of a job on several devices, given that of its first one.

    Args:
        chosen: layers that are quantized.
        data: training and validation samples.
        given: measured rates, if there are some.
    """
    job, times, n_steps = plan.job, plan.times, plan.work.n_steps
    divided = divided_memory(plan.memory, job, model, chosen)
    if job.strategy == "auto" and not plan.fits and not job.sharded:
        return make_plan(replace(job, sharded=True), data, given)
    seconds = times and times.training / n_steps
    steps = tuple(
        shared(job, model, plan.work, data=data[0], n=n, sharded=job.sharded, seconds=seconds)
        for n in numbers(job.n_devices)
    )
    if times is not None:
        dealt = {name: getattr(times, name) / job.n_devices for name in ("validating", "reference", "rollouts")}
        times = replace(times, training=times.training / steps[-1].speedup, **dealt)
    return replace(
        plan,
        job=job,
        memory=divided if job.sharded else plan.memory,
        times=times,
        steps=steps,
        by_strategy=(plan.needed, sum(divided.values())),
    )
