"""Whether the fast path computes what it should, on fresh random input, before anything is timed.

The reference goes one document at a time, nothing compiled, in fp32, over the same weights; its loss in turn is
compared with transformers' Llama. The path in 16 bits is judged by how far off the plain path in 16 bits is.
"""

import copy
from dataclasses import replace
from importlib.util import find_spec

import ours
import torch
from gpu_parts import documents as make
from gpu_parts.context import Context, Skip, toy
from gpu_parts.documents import Document
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_to_hf
from lit_gpt.convert.names import to_hf
from lit_gpt.model import GPT

Result = tuple[float, list[Tensor]]
"""Loss per target, and the gradients of what is trained."""


def run(context: Context) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    config = shape(context)
    seed = int(torch.seed() % 2**31)
    documents = make.styled(12, config.vocab_size, seed, longest=config.block_size // 2)
    print(f"  seed {seed}, {len(documents)} documents, {make.n_tokens(documents)} tokens, LoRA r 16 on all layers")
    base = ours.build(config, context.device, torch.bfloat16, seed=seed).float()
    context.attempt("transformers", compare_with_transformers, context, base, documents)
    right = [
        context.attempt(f"gradients {targets}", compare_paths, context, base, documents, targets)
        for targets in ("qv", "all")
    ]
    context.figures["wrong_paths"] = right.count(None)


def shape(context: Context) -> Config:
    if context.tiny:
        return toy()
    like = copy.deepcopy(context.config)
    sizes = {"n_layer": 3, "n_head": 8, "n_query_groups": 4, "n_embd": 1024, "intermediate_size": 2752}
    return replace(like, **sizes, head_size=128, block_size=1024, vocab_size=2000, padded_vocab_size=2048)


def randomize_updates(model: GPT) -> None:
    """B starts at zero, which would hide half of the gradients."""
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.02)


def compare_paths(context: Context, base: GPT, documents: list[Document], targets: str) -> bool:
    """True; prints errors of the losses and gradients of LoRA on `base` against the plain path in fp32.

    Raises:
        ArithmeticError: one is larger than rounding explains.
    """
    model = copy.deepcopy(base)
    ours.adapt(model, replace({"qv": ours.QV, "all": ours.ALL}[targets], lora_dropout=0.0))
    randomize_updates(model)
    n = make.n_targets(documents)
    one_by_one = [batch for d in documents for batch in ours.batches_of([d], len(d[0]))]
    packed = ours.batches_of(documents, make.n_tokens(documents) // 2 + 1)
    shared = ours.batches_of(documents, make.n_tokens(documents) // 2 + 1, shared=True)
    plain = result(context, model, one_by_one, n, compiled=False)
    half = in_bf16(model)
    yardstick = errors(result(context, half, one_by_one, n, compiled=False), plain)
    rows = {
        "fp32 packed": (errors(result(context, model, packed, n, compiled=False), plain), (1e-5, 1e-4)),
        "bf16 packed": (errors(result(context, half, packed, n, compiled=False), plain), limits(yardstick)),
        "bf16 sharing prefixes": (errors(result(context, half, shared, n, compiled=False), plain), limits(yardstick)),
    }
    try:
        ours.set_compile(True)
        rows["fp32 packed, compiled"] = (
            errors(result(context, model, packed, n_targets=n, compiled=True), plain),
            (1e-5, 1e-4),
        )
        rows["bf16 packed, compiled"] = (
            errors(result(context, half, packed, n_targets=n, compiled=True), plain),
            limits(yardstick),
        )
        rows["bf16 sharing, compiled"] = (
            errors(result(context, half, shared, n_targets=n, compiled=True), plain),
            limits(yardstick),
        )
    except Skip as e:
        print(f"  compiled: skipped, {e}")
    print(f"  {targets}: loss {plain[0]:.6f}; relative errors of loss and gradients")
    print(f"    {'bf16, one document at a time':32}{yardstick[0]:10.2e}{yardstick[1]:10.2e}")
    failed = []
    for name, (error, limit) in rows.items():
        good = all(e <= most for e, most in zip(error, limit, strict=True))
        print(f"    {name:32}{error[0]:10.2e}{error[1]:10.2e}  {'ok' if good else f'MORE THAN {limit}'}", flush=True)
        if not good:
            failed.append(name)
    if failed:
        raise ArithmeticError(f"{targets}: {', '.join(failed)}")
    return True


def limits(yardstick: tuple[float, float]) -> tuple[float, float]:
    return max(2 * yardstick[0], 2e-3), max(1.5 * yardstick[1], 5e-3)


def in_bf16(model: GPT) -> GPT:
    """A copy with the frozen weights, which are bf16 numbers already, as such; the updates stay in fp32."""
    half = copy.deepcopy(model)
    for module in half.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if not p.requires_grad:
                setattr(module, name, torch.nn.Parameter(p.bfloat16(), requires_grad=False))
    return half


def result(context: Context, model: GPT, batches: list, n_targets: int, compiled: bool) -> Result:
    ours.set_compile(compiled)
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = ours.batch_loss(model, batch, context.device)
        (loss / n_targets).backward()
        total += loss.item()
    return total / n_targets, [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]


def errors(found: Result, reference: Result) -> tuple[float, float]:
    """Relative error of the loss, and of all gradients as one vector; infinite where something is no number."""
    difference = sum((a - b).double().square().sum() for a, b in zip(found[1], reference[1], strict=True)) ** 0.5
    norm = sum(b.double().square().sum() for b in reference[1]) ** 0.5
    of_loss, of_gradients = abs(found[0] - reference[0]) / abs(reference[0]), float(difference / norm)
    return finite_or_inf(of_loss), finite_or_inf(of_gradients)


def finite_or_inf(error: float) -> float:
    """Returns the error, or infinity if it is not a number."""
    return error if error == error else float("inf")


@torch.no_grad()
def compare_with_transformers(context: Context, model: GPT, documents: list[Document]) -> None:
    """Print how far our plain loss is from that of the reference implementation.

    Raises:
        ArithmeticError: more than rounding explains.
    """
    if find_spec("transformers") is None:
        raise Skip("transformers is not installed")
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(LlamaConfig(**config_to_hf(model.config))).eval()
    theirs.to(context.device)  # pyright: ignore[reportArgumentType] its decorator hides `self`
    theirs.load_state_dict(to_hf(model.config, model.state_dict()))
    total = mine = 0.0
    ours.set_compile(False)
    for ids, labels in documents:
        ids_, labels_ = (torch.from_numpy(x).long()[None].to(context.device) for x in (ids, labels))
        total += theirs(ids_, labels=labels_).loss.item() * make.n_targets([(ids, labels)])
        (batch,) = ours.batches_of([(ids, labels)], len(ids))
        mine += ours.batch_loss(model, batch, context.device).item()
    error = abs(mine - total) / total
    print(f"  loss in fp32, relative to transformers' Llama: {error:.1e} off")
    if not error < 1e-5:
        raise ArithmeticError("the plain path differs from transformers")
