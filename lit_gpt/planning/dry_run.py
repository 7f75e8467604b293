"""--dry_run: everything about a run but the run. Writes nothing."""

import sys
from dataclasses import replace

import torch

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.folders import WEIGHTS
from lit_gpt.data.compatibility import check_compatible, check_lengths, check_vocabulary
from lit_gpt.errors import UserError
from lit_gpt.fabric import default_precision
from lit_gpt.layers.quantize import require_quantizable
from lit_gpt.lightning import Fabric
from lit_gpt.planning.devices import Device, named, this_machine
from lit_gpt.planning.fit import command_line, fitted, in_time, ways_out
from lit_gpt.planning.job import config_of, job_of
from lit_gpt.planning.plan import Data, Plan, make_plan
from lit_gpt.planning.probe import probe
from lit_gpt.planning.seconds import times_of
from lit_gpt.planning.show import lines_of
from lit_gpt.resources import peak_memory_gb
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.training.batching import packing_of
from lit_gpt.training.memory import checkpoint_bytes
from lit_gpt.training.offload import require_offload
from lit_gpt.training.run.budget import process_seconds
from lit_gpt.training.run.describe import description
from lit_gpt.training.run.gauges import clock, matrix_rate
from lit_gpt.training.run.start import load_model, read_data


def dry_run(fabric: Fabric, args: FinetuneArgs) -> None:
    """Prints the memory and the time that the run would take.

    Raises:
        UserError: data, checkpoint or device that are not there, or do not go together.
    """
    options, checkpoint_dir = args.plan, args.checkpoint_dir
    device = named(options.device) if options.device else this_machine(fabric.device)
    is_here = options.device is None or device == this_machine(fabric.device)
    there = (checkpoint_dir / WEIGHTS).is_file()
    config = config_of(checkpoint_dir)
    train_data, val_data, meta = read_data(args)
    if there:
        check_compatible(meta, args.data_dir, Tokenizer(checkpoint_dir), args.run.prompt_style)
        check_vocabulary((train_data, val_data), args.data_dir, config.padded_vocab_size)
    check_lengths((train_data, val_data), args.data_dir, config.block_size)
    if options.probe and not is_here:
        raise UserError(
            f"--probe true times this machine's GPU, and --device {options.device} is another; leave out one"
        )
    if options.probe and not there:
        raise UserError(f"--probe true needs the weights, and {checkpoint_dir} has no {WEIGHTS}; leave it out")
    precision = args.precision or default_precision(device.kind, device.bf16, mixed=args.method == "full")
    _require_possible(args.quantize, precision, device)
    require_offload(args.train, precision)
    job, data = job_of(args, config, precision, device), (train_data, val_data)
    plan = make_plan(job, data)
    if options.fit:
        plan = fitted(plan, data)
    if plan.fits and (there and is_here if options.probe is None else options.probe):
        plan = _probed(plan, fabric, args, data)
        if options.fit:
            plan = in_time(plan, data)
    print(*lines_of(plan), sep="\n")
    for way in ways_out(plan, data):
        print(way)
    if options.fit:
        print(f"Run it with\n  {command_line(plan, job, sys.argv)}")


def _require_possible(quantize: str | None, precision: str, device: Device) -> None:
    """Checks that weights can be quantized so in this precision and on this device.

    Raises:
        UserError: they cannot.
    """
    if quantize is not None:
        require_quantizable(quantize, precision, torch.device("cpu"))
    if quantize == "fp8" and device.kind == "cuda" and not device.fp8:
        raise UserError(
            f"--quantize fp8 needs compute capability 8.9, and {device.name} has less; pass --quantize int8"
        )


def _probed(plan: Plan, fabric: Fabric, args: FinetuneArgs, data: Data) -> Plan:
    """Returns the plan with times from a few steps on this machine; says what these took."""
    job = plan.job
    args = replace(args, quantize=job.quantize, train=job.train)  # --fit may have chosen others
    model, _ = load_model(fabric, args)
    list(description(model, data[0], args, fabric.device))  # takes a run its time, too
    matrix_rate(fabric.device, job.weight_dtype)
    model.n_recomputed = plan.n_recomputed
    counted, _ = job.model()
    with fabric.autocast():
        packing = packing_of(model, job.train, fabric.device)
    rates = probe(
        fabric,
        model,
        counted,
        data=data,
        train=job.train,
        packing=packing,
        starting=process_seconds(),
        saved_bytes=checkpoint_bytes(counted),
    )
    print(f"A few steps on this machine took {clock(process_seconds())} and {peak_memory_gb():.2f} GB at most")
    return replace(plan, rates=rates, times=times_of(job, counted, plan.work, rates=rates, n_again=plan.n_recomputed))
