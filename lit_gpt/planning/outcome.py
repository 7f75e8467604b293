"""A run beside its plan: what was expected, what it took, and by how much they differ."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.files import write_text
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.planning.devices import this_machine
from lit_gpt.planning.job import config_of, job_of
from lit_gpt.planning.plan import Data, Plan, make_plan
from lit_gpt.planning.show import risks
from lit_gpt.training.run.budget import Budget, process_seconds
from lit_gpt.training.run.folder import PLAN
from lit_gpt.training.run.gauges import Gauges, clock, matrix_rate, memory_gb


def plan_of_run(fabric: Fabric, args: FinetuneArgs, data: Data) -> Plan:
    """Returns the plan of a run that is about to start, and says in a line or two what the run will take.

    It is made before the model is loaded, so that the memory of the process is that of Python and torch alone.
    """
    device, precision = this_machine(fabric.device), str(fabric._precision.precision)
    if device.kind == "cpu":  # whose memory all processes of the machine share
        device = replace(device, gib=device.gib / (args.cluster.devices or fabric.world_size))
    job = job_of(args, config_of(args.checkpoint_dir), precision, device, n_devices=fabric.world_size)
    plan = make_plan(job, data)
    time = f", {clock(plan.seconds)}" if plan.seconds else ""
    tokens = f"{plan.work.n_tokens:,} tokens{f', {plan.work.filled}' if plan.work.filled else ''}"
    print(f"Plan: {plan.peak / 1e9:.2f} GB at most, {tokens}{time}; --dry_run true says more")
    if not plan.fits:
        print(
            f"That is more than the {device.n_bytes / 1e9:.2f} GB of {device.name}; --dry_run true says what would fit"
        )
    for risk in risks(plan):
        print(risk)
    return plan


def gauges_of(fabric: Fabric, plan: Plan, model: GPT, budget: Budget, n_devices: int = 1) -> Gauges:
    """Returns what the monitor relates this run's figures to, after measuring a large matmul.

    Args:
        n_devices: devices that train together, whose figures are added up.
    """
    dtype = model.transformer.wte.weight.dtype
    if plan.job.mixed:
        dtype = torch.bfloat16 if "bf16" in plan.job.precision else torch.float16
    return Gauges(
        device=fabric.device,
        n_samples=plan.work.n_samples,
        flops_per_token=plan.flops / plan.work.n_tokens,
        peak=n_devices * matrix_rate(fabric.device, dtype),
        n_validations=plan.work.n_validations,
        time_left=budget.deadline_in if budget.max_seconds else None,
        n_saves=plan.work.n_saves,
        max_seconds=budget.max_seconds,
    )


def settle(plan: Plan, gauges: Gauges, out_dir: Path, whole: bool = True) -> None:
    """Prints what the training took beside what was planned, and writes both to plan.json.

    A process that only did the end of a run leaves a plan.json as it is, and writes one without what it took if there
    is none, since the process that trained was killed before it wrote one.

    Args:
        whole: this process did the whole run, so that its time is the run's.
    """
    if not gauges.has_trained:
        if not (out_dir / PLAN).is_file():
            write_text(out_dir / PLAN, _plan_text(plan, []))
        return
    peak, seconds = memory_gb(gauges.device), process_seconds()
    rows = [("peak memory, GB", plan.peak / 1e9, peak, "from the shapes")]
    if whole:
        if plan.times:
            rows.append(("time until trained", plan.times.trained, seconds, "from the table of devices"))
        if gauges.forecast:
            rows.append(
                ("time until trained", gauges.forecast.seconds, seconds, f"from the first {gauges.forecast.step} steps")
            )
    outcome = [
        {"what": what, "planned": planned, "actual": actual, "error": planned / actual - 1, "source": source}
        for what, planned, actual, source in rows
    ]
    for row in outcome:
        values = [clock(row[k]) if "time" in row["what"] else f"{row[k]:.2f}" for k in ("planned", "actual")]
        print(f"Plan: {row['what']} {values[0]} {row['source']}, took {values[1]} ({row['error']:+.1%})")
    write_text(out_dir / PLAN, _plan_text(plan, outcome))


def _plan_text(plan: Plan, outcome: list[dict[str, Any]]) -> str:
    """Returns the text of plan.json."""
    return json.dumps(plan.record() | {"outcome": outcome}, indent=2) + "\n"
