"""What the device can do at best: matrix products of a large and of the model's shapes, 16 and 8 bits, and copying.

Rates are counted as 2 * M * N * K operations, on random data.
"""

from collections.abc import Callable

import torch
from gpu_parts.context import Context
from gpu_parts.timing import measure
from torch import Tensor

from lit_gpt.config import Config

Product = Callable[[Tensor, Tensor], Tensor]
LAYOUTS = ("x W'", "g W")


def run(context: Context) -> None:
    context.attempt("bf16 matmul", square, context)
    context.attempt("copy", copy, context)
    print(f"  TFLOP/s at the model's shapes, {context.rows} rows; x W' is the forward pass, g W the input's gradient")
    print(f"  {'':26}" + "".join(f"{f'{k}x{n}':>14}" for k, n in shapes(context.config)))
    for name, product in PRODUCTS.items():
        for layout in LAYOUTS:
            context.attempt(f"{name} {layout}", table_row, context, name, layout, product, needs_s=3)
    for name in PRODUCTS:
        limit(context, name)


def square(context: Context) -> None:
    size = 256 if context.tiny else 8192
    a, b = (random(size, size, context).bfloat16() for _ in range(2))
    rate = tflops(context, torch.matmul, a, b)
    context.figures["matmul_tflops"] = rate
    print(f"  bf16 matrix product {size}^3: {rate:.1f} TFLOP/s", flush=True)


def copy(context: Context) -> None:
    n = 1_000_000 if context.tiny else 4_000_000_000
    source = torch.randint(0, 255, (n,), dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    seconds = measure(lambda: target.copy_(source), context.device, context.repeats, inner=5).seconds
    context.figures["copy_gb_s"] = 2 * n / seconds / 1e9
    print(f"  copy of {n / 1e9:g} GB: {2 * n / seconds / 1e9:.0f} GB/s, read plus written", flush=True)


def table_row(context: Context, name: str, layout: str, product: Callable[[Context, Tensor, Tensor], float]) -> None:
    cells = []
    for k, n in shapes(context.config):
        weight = random(n, k, context)  # as nn.Linear holds it
        x = random(context.rows, k if layout == "x W'" else n, context)
        try:
            rate = product(context, x, weight.mT if layout == "x W'" else weight)
            context.figures[f"{name}.{layout}.{k}x{n}"] = rate
            cells.append(f"{rate:.1f}")
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as e:
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            cells.append("none")
    print(f"  {name + ' ' + layout:26}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    if "none" in cells:
        print(f"    none: {reason[:150]}")


def shapes(config: Config) -> list[tuple[int, int]]:
    """(in, out) channels of the model's different linear layers: qkv as one, and each of its three parts."""
    c, ff = config.n_embd, config.intermediate_size
    found = [(c, c), (c, sum(config.qkv_sizes)), (c, ff), (ff, c), (c, config.padded_vocab_size)]
    return list(dict.fromkeys(found))


def limit(context: Context, name: str) -> None:
    """Print tokens a second if nothing but the model's matrix products took time, those of the blocks being `name`."""
    c = context.config
    body = {
        (c.n_embd, sum(c.qkv_sizes)): c.n_layer,
        (c.n_head * c.head_size, c.n_embd): c.n_layer,
        (c.n_embd, c.intermediate_size): 2 * c.n_layer,
        (c.intermediate_size, c.n_embd): c.n_layer,
    }
    products = [(name, k, n, count) for (k, n), count in body.items()]
    products.append(("bf16", c.n_embd, c.padded_vocab_size, 1))
    seconds = 0.0
    for kind, k, n, count in products:
        rates = [context.figures.get(f"{kind}.{layout}.{k}x{n}") for layout in LAYOUTS]
        known = [rate for rate in rates if rate is not None]
        if len(known) < len(rates):
            return
        seconds += sum(count * 2 * k * n / rate / 1e12 for rate in known)
    context.figures[f"{name}.limit_tokens_per_sec"] = 1 / seconds
    print(f"  products of all layers in {name}, of the head in bf16, nothing else: {1 / seconds:.0f} tokens/s")


def random(rows: int, columns: int, context: Context) -> Tensor:
    return torch.randn(rows, columns, device=context.device)


def tflops(context: Context, product: Product, a: Tensor, b: Tensor) -> float:
    inner = 2 if context.tiny else 10
    seconds = measure(lambda: product(a, b), context.device, context.repeats, inner=inner).seconds
    return 2 * a.size(0) * a.size(1) * b.size(1) / seconds / 1e12


def bf16(context: Context, x: Tensor, w: Tensor) -> float:
    return tflops(context, torch.matmul, x.bfloat16(), w.bfloat16())


def int8(context: Context, x: Tensor, w: Tensor) -> float:
    """Without the scales that turn the int32 results into numbers."""
    return tflops(context, torch._int_mm, to_int8(x), to_int8(w))


def fp8(context: Context, x: Tensor, w: Tensor) -> float:
    """One scale a tensor."""
    scale = torch.ones((), device=x.device)
    return fp8_product(context, x, w, scale_x=scale, scale_w=scale)


def fp8_rows(context: Context, x: Tensor, w: Tensor) -> float:
    """A scale for each row of the input and for each column of the result."""
    scales = torch.ones(x.size(0), 1, device=x.device), torch.ones(1, w.size(1), device=x.device)
    return fp8_product(context, x, w, *scales)


def fp8_product(context: Context, x: Tensor, w: Tensor, scale_x: Tensor, scale_w: Tensor) -> float:
    if not context.on_gpu:
        raise NotImplementedError("8-bit floats are measured on a GPU only")

    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch._scaled_mm(a, b, scale_x, scale_w, out_dtype=torch.bfloat16, use_fast_accum=True)

    return tflops(context, product, x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn))


def to_int8(x: Tensor) -> Tensor:
    """Rounded to -127 .. 127, with the strides of `x`."""
    return (x * (127 / x.abs().max())).round().to(torch.int8)


PRODUCTS = {"bf16": bf16, "int8": int8, "fp8": fp8, "fp8-rows": fp8_rows}
