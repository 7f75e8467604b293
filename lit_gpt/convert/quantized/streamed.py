"""Makes our tensors from a Hugging Face checkpoint, in which weights in bitsandbytes' 4 bits may stay as they are."""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from lit_gpt.checkpoints.four_bits import scales_name
from lit_gpt.config import Config
from lit_gpt.convert.names import hf_sources, pack, plan_from_hf, stored_names, stream_from_hf
from lit_gpt.convert.quantized.parts import Kept
from lit_gpt.convert.readers import Source
from lit_gpt.errors import UserError
from lit_gpt.families.family import Interleaved, Part, Separate
from lit_gpt.files import Spec
from lit_gpt.layers.quantize import quantizable
from lit_gpt.model import GPT

_OF_ROWS = (str, Separate, Interleaved, Part)
"""Rules by which whole rows are put together, which may be of codes and scales as well as of weights."""


def stream_from_source(
    config: Config, source: Source, dtype: torch.dtype | None, rows: int | None
) -> tuple[dict[str, Spec], Iterator[tuple[str, Tensor]], list[str]]:
    """Returns the specs of our tensors, the tensors one by one, and lines that say in which precision they are.

    Weights in 4 bits stay in them if `dtype` is None and all that one of ours is made of is in 4 bits of the same kind.

    Args:
        dtype: dtype to convert to; None keeps that of the checkpoint.
        rows: number of rows of the vocabulary's tensors in the checkpoint.

    Raises:
        UserError: a tensor is missing.
    """
    plan = plan_from_hf(config, source.specs, dtype)
    kept = _kept(config, source) if dtype is None else {}
    others = stream_from_hf(config, source.names, source.get, dtype=dtype, rows=rows, left_out=kept)
    specs = {}
    for name, spec in plan.items():
        specs[name] = spec
        if name in kept:
            n_rows, n_columns = spec.shape
            like = kept[name][0]
            specs[name] = Spec((n_rows, n_columns // 2), torch.uint8)
            specs[scales_name(name, like.values)] = Spec((n_rows, n_columns // like.block), torch.float32)
    tensors = chain(others, _streamed(config, plan, kept))
    return specs, tensors, _lines(source, kept)


def _kept(config: Config, source: Source) -> dict[str, list[Kept]]:
    """Returns our weights that may stay in 4 bits, each with what it is made of: those that --quantize quantizes."""
    theirs = stored_names(source.quantized, config)
    with torch.device("meta"):
        names = [f"{path}.weight" for path in quantizable(GPT(config))]
    found = {}
    for name in sorted(names):
        rule, sources = hf_sources(name, config)
        if not isinstance(rule, _OF_ROWS):
            continue
        parts = [source.quantized[theirs[n]].kept for n in sources if n in theirs]
        kept = [part for part in parts if part is not None]
        same = len({(part.values, part.block) for part in kept}) == 1
        if same and len(kept) == len(sources):
            found[name] = kept
    return found


def _streamed(config: Config, plan: dict[str, Spec], kept: dict[str, list[Kept]]) -> Iterator[tuple[str, Tensor]]:
    """Yields codes and scales of our weights in 4 bits: rows are put together as those of the weights would be.

    Raises:
        UserError: a weight has another shape than the model's, or scales that are NaN or infinite.
    """
    for name, parts in kept.items():
        found = [part.read() for part in parts]
        rule = hf_sources(name, config)[0]
        n_rows, n_columns = plan[name].shape
        codes = pack(rule, [x.codes for x in found], [n_rows, n_columns // 2], config)
        scales = pack(rule, [x.scales for x in found], [n_rows, n_columns // found[0].block], config)
        if codes is None or scales is None or list(codes.shape) != [n_rows, n_columns // 2]:
            shapes = " + ".join(str([len(x.codes), 2 * x.codes.size(1)]) for x in found)
            raise UserError(f"{config.name}: {name} is {shapes}, not {[n_rows, n_columns]} as in its configuration")
        if not scales.isfinite().all():
            raise UserError(f"{config.name}: {name} has scales that are NaN or infinite; get the file again")
        yield name, codes
        yield scales_name(name, parts[0].values), scales


def _lines(source: Source, kept: dict[str, list[Kept]]) -> list[str]:
    """Returns what becomes of the quantized weights; no line if there are none."""
    n_kept = len({id(part) for parts in kept.values() for part in parts})
    lines = []
    if kept:
        kind = f"bnb.{next(iter(kept.values()))[0].values}"
        lines = [
            f"{n_kept} weights stay in the 4 bits that they have; --quantize {kind} computes with these as they are"
        ]
    if n := len(source.quantized) - n_kept:
        dtypes = {source.specs[name].dtype for name in source.quantized}
        to = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        lines.append(f"{n} weights are quantized ({source.quantization}), and are dequantized to {to}")
    return lines
