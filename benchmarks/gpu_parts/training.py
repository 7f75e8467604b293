"""Our LoRA step: real tokens a second and peak memory, by targets, data, size of the micro-batch and base weights."""

import ours
import torch
from gpu_parts import documents as make
from gpu_parts.context import Context
from gpu_parts.documents import Document, n_tokens
from gpu_parts.operations import lora_step
from gpu_parts.timing import measure

from lit_gpt.model import GPT

CALLED = [("bf16 called", "full", 1), ("bf16 called", "instructions", 1), ("bf16 eager", "instructions", 1)]
TARGETS = {"qv": ours.QV, "all": ours.ALL}
LABELS = {"qv": "r 8 q,v", "all": "r 16 all"}


def data(context: Context, name: str) -> list[Document]:
    """Documents of one optimizer step: `full` 8 of 2,048 tokens, `long` 4 of 4,096, `instructions` 128 short ones,
    `styled` the same with a prompt style's tokens in front."""
    vocab_size, scale = context.config.vocab_size, 32 if context.tiny else 1
    if name in ("instructions", "styled"):
        return getattr(make, name)(128 // min(scale, 8), vocab_size, seed=1)
    n, length = {"full": (8, 2048), "long": (4, 4096)}[name]
    return make.full(n, length // scale, vocab_size, seed=2)


def run(context: Context) -> None:
    flops = lora_step(context.config, ours.QV, data(context, "full")) / n_tokens(data(context, "full")) / 1e9
    print(f"  {flops:.2f} GFLOP a token in full documents, r 8; `of rate` is of the large matrix product's")
    header()
    for targets in TARGETS:
        model = context.attempt(f"bf16 {LABELS[targets]}", adapted, context, targets, None, needs_s=20)
        if model is None:
            continue
        for base, name, size in (
            ("bf16", "full", 1),
            ("bf16", "instructions", 1),
            *([("bf16", "styled", 1), ("bf16 sharing", "styled", 1)] if targets == "qv" else []),
            ("bf16", "full", 2),
            *(CALLED if targets == "qv" else []),
        ):
            row = context, model, base, targets, name, size
            context.attempt(f"{base} {LABELS[targets]} {name} {size * context.rows}", step, *row, needs_s=10)
        del model, row


def quantized(context: Context) -> None:
    """The same with frozen weights in 8 and in 4 bits."""
    header()
    jobs = {
        "fp8": (("fp8", "long", 2), ("fp8", "full", 1), ("fp8", "long", 1)),
        "bnb.nf4": (("bnb.nf4", "full", 1), ("bnb.nf4 called", "full", 1), ("bnb.nf4 called", "full", 0.5, True)),
        "int8": (("int8", "full", 1), ("int8", "instructions", 1)),
    }
    for kind, cases in jobs.items():
        model = context.attempt(kind, adapted, context, "qv", kind, needs_s=20)
        if model is None:
            continue
        for base, name, size, *recompute in cases:
            row = context, model, base, "qv", name, size, *recompute
            context.attempt(f"{base} {name} {size * context.rows:g}", step, *row, needs_s=10)
        del model, row


def adapted(context: Context, targets: str, quantize: str | None) -> GPT:
    """Our model with LoRA on."""
    model = ours.build(context.config, context.device, torch.bfloat16, quantize)
    ours.adapt(model, TARGETS[targets])
    return model


def header() -> None:
    print(
        f"  {'base':15}{'LoRA':9}{'documents':13}{'batch':>7}{'real tok/s':>11}{'samples/s':>10}"
        f"{'TFLOP/s':>9}{'of rate':>8}{'+-':>6}{'GB peak':>9}{'reserved':>9}  loss   (* recomputing)"
    )


def step(
    context: Context,
    model: GPT,
    base: str,
    targets: str,
    name: str,
    size: float,
    recompute: bool = False,
) -> None:
    """Measure one optimizer step and print its row.

    Args:
        base: what the frozen weights are; `called` replays no graphs, `eager` compiles nothing either, `sharing`
            computes the prefixes that documents share once (its rates of operations are as if it did not).
        size: of the micro-batch, in units of `context.rows` tokens.
        recompute: the blocks compute their forward pass again in the backward pass.
    """
    ours.set_compile(context.on_gpu and "eager" not in base)
    ours.set_recompute(model, recompute)
    samples = data(context, name)
    rows = int(size * context.rows)
    recorded = "eager" not in base and "called" not in base
    run_step = ours.step_runner(model, ours.batches_of(samples, rows, "sharing" in base), context.device, recorded)
    measured = measure(run_step, context.device, context.repeats)
    tokens, flops = n_tokens(samples), lora_step(context.config, TARGETS[targets], samples)
    rate = flops / measured.seconds / 1e12
    ceiling = context.figures.get("matmul_tflops", float("nan"))
    key = f"{base.replace(' ', '_')}.{targets}.{name}.{size:g}" + (".lean" if recompute else "")
    context.figures |= {
        f"{key}.tokens_per_sec": tokens / measured.seconds,
        f"{key}.samples_per_sec": len(samples) / measured.seconds,
        f"{key}.of_rate": rate / ceiling,
        f"{key}.peak_gb": measured.allocated_gb,
        f"{key}.reserved_gb": measured.reserved_gb,
    }
    print(
        f"  {base + ('*' if recompute else ''):15}{LABELS[targets]:9}{name:13}{rows:7}{tokens / measured.seconds:11.0f}"
        f"{len(samples) / measured.seconds:10.2f}{rate:9.1f}{rate / ceiling:8.1%}{measured.spread:6.1%}"
        f"{measured.allocated_gb:9.2f}{measured.reserved_gb:9.2f}  {run_step():.3f}",
        flush=True,
    )
