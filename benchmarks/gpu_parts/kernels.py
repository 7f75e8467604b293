"""The small functions of a step, forward and backward: eager, ours (compiled on a GPU), and liger-kernel's.

At the widths of several families, the copies that each call needs included. What liger-kernel does faster than the
compiler is to be taken from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import ours
import torch
import torch.nn.functional as F
from gpu_parts.context import Context, Skip
from gpu_parts.timing import measure
from torch import Tensor

from lit_gpt.layers.attention import rotated, rotated_back
from lit_gpt.layers.mlp import GATED
from lit_gpt.layers.recompute import GatedFunction, RMSNormFunction
from lit_gpt.training.loss import cross_entropy

Work = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A function of tensors, forward and backward."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    """Of what it is given."""
    mine: Work
    plain: Work
    """In eager torch."""
    liger: Callable[[], Work]
    """Imports it and returns it."""
    n_frozen: int = 0
    """Of what it is given, so many last ones want no gradient: weights."""


def run(context: Context) -> None:
    print(f"  {'forward and backward, ms':44}{'eager':>9}{'ours':>9}{'liger':>9}   relative errors of ours, liger")
    for case in cases(context):
        context.attempt(case.name, compare, context, case, needs_s=5)


def cases(context: Context) -> list[Case]:
    T = context.rows
    widths = {"Llama 7B": (4096, 11008, 32), "Qwen 3 8B": (4096, 12288, 40), "Gemma 7B": (3072, 24576, 32)}
    if context.tiny:
        widths = {"toy": (128, 352, 4)}
    found = []
    for name, (C, inner, n_heads) in widths.items():
        activation = "gelu_tanh" if name.startswith("Gemma") else "silu"
        found += [
            Case(f"RMS norm, {name}", ((T, C), (C,)), rms, plain=plain_rms, liger=liger_rms, n_frozen=1),
            Case(f"{activation}(gate) * up, {name}", ((T, inner), (T, inner)), *gated(activation)),
            Case(f"rotation, {name}", ((T, n_heads * 128),), *rotation(T, n_heads, context.device)),
        ]
    C, V = (128, 512) if context.tiny else (4096, 32000)
    targets = torch.randint(V, (T // 3,), device=context.device)
    found.append(Case(f"head and loss, {T // 3} targets of {V:,}", ((T // 3, C), (V, C)), *head(targets), n_frozen=1))
    return found


def compare(context: Context, case: Case) -> None:
    """Print the row of a case."""
    dtype = torch.bfloat16 if context.on_gpu else torch.float32
    generator = torch.Generator(context.device).manual_seed(0)
    given = [torch.randn(s, device=context.device, dtype=dtype, generator=generator) for s in case.shapes]
    wanted = results(case.plain, [x.double() for x in given], case.n_frozen)
    shown, errors = "", []
    for kind in ("eager", "ours", "liger"):
        ours.set_compile(context.on_gpu and kind == "ours")
        try:
            seconds, error = cell(context, case, kind, given=given, wanted=wanted)
        except Skip:
            shown += f"{'-':>9}"
        except Exception as e:  # one that fails takes no other along
            shown += f"{'FAILED':>9}"
            errors.append(f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
        else:
            shown += f"{seconds * 1e3:9.3f}"
            errors += [] if kind == "eager" else [f"{error:.1e}"]
            context.figures[f"kernel.{case.name}.{kind}"] = seconds
    print(f"  {case.name:44}{shown}   {', '.join(errors)}", flush=True)


def cell(context: Context, case: Case, kind: str, given: Sequence[Tensor], wanted: list[Tensor]) -> tuple[float, float]:
    """Seconds of one way to do it, and how far off it is.

    Raises:
        Skip: it is not installed, or not for this device.
    """
    try:
        work = {"eager": lambda: case.plain, "ours": lambda: case.mine, "liger": case.liger}[kind]()
    except ImportError as e:
        raise Skip(str(e)) from e
    if kind == "liger" and not context.on_gpu:
        raise Skip("needs a GPU")
    error = off(results(work, given, case.n_frozen), wanted)
    again = partial(results, work, given, case.n_frozen)
    return measure(again, context.device, context.repeats, inner=10).seconds, error


def results(work: Work, given: Sequence[Tensor], n_frozen: int) -> list[Tensor]:
    """What `work` returns and the gradients of what is not frozen, by copies of what is given.

    Ours and liger's write gradients where activations were, so that each call needs fresh ones.
    """
    leaves = [x.clone().requires_grad_(i < len(given) - n_frozen) for i, x in enumerate(given)]
    y = work(*(x.view_as(x) if x.requires_grad else x for x in leaves))  # a leaf is not written into
    dy = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=torch.float32).to(y.dtype).view_as(y)
    return [y.detach().clone(), *torch.autograd.grad(y, [x for x in leaves if x.requires_grad], dy)]


def off(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative error of them."""
    return max(float((a.double() - b).detach().norm() / b.detach().norm()) for a, b in zip(found, wanted, strict=True))


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return RMSNormFunction.apply(x, weight, 1e-5, False)


def plain_rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))


def liger_rms() -> Work:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # pyright: ignore[reportMissingImports] measured where it is installed

    return lambda x, weight: LigerRMSNormFunction.apply(x, weight, 1e-5, 0.0, "llama", False)


def gated(activation: str) -> tuple[Work, Work, Callable[[], Work]]:
    forward, backward, *settings = GATED[activation]

    def plain(gate: Tensor, up: Tensor) -> Tensor:
        return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up

    def liger() -> Work:
        if activation == "silu":
            from liger_kernel.ops.swiglu import LigerSiLUMulFunction as Function  # pyright: ignore[reportMissingImports]
        else:
            from liger_kernel.ops.geglu import LigerGELUMulFunction as Function  # pyright: ignore[reportMissingImports]
        return Function.apply

    return lambda gate, up: GatedFunction.apply(gate, up, forward, backward, *settings), plain, liger


class Rotation(torch.autograd.Function):
    """Our rotation as `PackedAttention` has it, without the attention between both directions."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(x, cos, sin, head_size=128, n_heads=x.size(1) // 128)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None, None]:
        heads = dy.unflatten(-1, (-1, 128))
        return rotated_back(heads[:, :-1], heads[:, -1:], heads[:, :0], *ctx.saved_tensors), None, None


def rotation(T: int, n_heads: int, device: torch.device) -> tuple[Work, Work, Callable[[], Work]]:
    """Of n_heads heads of queries and keys together; liger's takes the last one for a head of keys."""
    angle = torch.arange(T, device=device)[:, None] * 10000 ** -(torch.arange(0, 128, 2, device=device) / 128)
    angle = torch.cat((angle, angle), 1)
    cos, sin = angle.cos(), angle.sin()

    def plain(x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (-1, 128))
        a, b = heads.chunk(2, -1)
        half = torch.cat((-b, a), -1)
        return (heads * cos[:, None] + half * sin[:, None]).to(x.dtype).flatten(1)

    def liger() -> Work:
        from liger_kernel.ops.rope import LigerRopeFunction  # pyright: ignore[reportMissingImports]

        def rotate(x: Tensor) -> Tensor:
            heads = x.unflatten(-1, (-1, 128)).transpose(0, 1)[None]  # (1, heads, T, 128)
            q, k = LigerRopeFunction.apply(heads[:, :-1], heads[:, -1:], cos[None], sin[None])
            return torch.cat((q, k), 1)[0].transpose(0, 1).flatten(1)

        return rotate

    return lambda x: Rotation.apply(x, cos, sin), plain, liger


class OurLoss(torch.autograd.Function):
    """Head and loss as `HeadLoss` computes them for rows that fit at once."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        loss, d_logits = cross_entropy(x @ weight.T, targets)
        ctx.save_for_backward(d_logits @ weight)
        return loss

    @staticmethod
    def backward(ctx, d_loss: Tensor) -> tuple[Tensor, None, None]:
        (dx,) = ctx.saved_tensors
        return dx * d_loss.to(dx.dtype), None, None


def head(targets: Tensor) -> tuple[Work, Work, Callable[[], Work]]:
    def plain(x: Tensor, weight: Tensor) -> Tensor:
        logits = x @ weight.T
        return F.cross_entropy(logits if logits.dtype == torch.double else logits.float(), targets, reduction="sum")

    def liger() -> Work:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Function  # pyright: ignore[reportMissingImports]

        def loss(x: Tensor, weight: Tensor) -> Tensor:
            return Function.apply(x, weight, targets, None, None, -100, 0.0, 0.0, "sum")[0]

        return loss

    return lambda x, weight: OurLoss.apply(x, weight, targets), plain, liger
