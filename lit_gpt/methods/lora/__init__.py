"""Low-rank adaptation (LoRA), https://arxiv.org/abs/2106.09685: y = W x + s B A x with W frozen.

`inject` wraps linear layers of a loaded model in place; `merge` adds the updates to the weights and unwraps them.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn as nn

from lit_gpt.args import LoRAArgs
from lit_gpt.args.methods import LORA_TARGETS
from lit_gpt.config import Config
from lit_gpt.errors import UserError, shown
from lit_gpt.layer_heads import stacked_sizes
from lit_gpt.layers.linear import Linear, LinearLayer
from lit_gpt.layers.past import Mixing
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.methods.parts import within
from lit_gpt.model import GPT

BLOCKS = ("query", "key", "value")
"""Names of the blocks of output channels of `attn.qkv`, each of which has an update of its own."""


def inject(model: GPT, args: LoRAArgs, init: bool = True, part: str | None = None) -> None:
    """Wraps the layers of `model` that the flags select, in place, and freezes everything else.

    Args:
        init: False if the updates of a run are loaded next, so that PiSSA's first values need not be computed.
        part: the only part of the model that is changed, of `parts_of`; None is all of it.

    Raises:
        UserError: PiSSA is requested for quantized weights, or the flags select nothing that the model has.
    """
    selected = list(_adapted_layers(model, args))
    if not selected:
        flags = ", ".join(f"--lora_{name}" for name in LORA_TARGETS if getattr(args, f"lora_{name}"))
        raise UserError(f"LoRA adapts nothing: {model.config.name} has no layers for {flags}")
    for path, names in [(path, names) for path, names in selected if within(path, part)]:
        ranks = {name: args.lora_r for name in names}
        if args.ranks is not None:
            ranks = {n: r for n in names if (r := args.ranks.get(update_name(path, n)))}
        if ranks:  # one matmul computes all updates of a layer: lower ranks are padded with zeros
            blocks = None if names == [""] else [rows_of(model.config, path)[n] for n in ranks]
            linear = model.get_submodule(path)
            assert isinstance(linear, LinearLayer), path
            mine = args.with_rank(max(ranks.values()))
            model.set_submodule(path, LoRALinear(linear, mine, blocks, init, draws=model.draws))
    for name in args.whole:
        if within(name, part):
            _make_own(model, name)
    for name, parameter in model.named_parameters():
        if within(name, part):
            parameter.requires_grad = trainable(name) or name in args.whole


def rows_of(config: Config, path: str) -> dict[str, tuple[int, int]]:
    """Returns the first output channel of each of the BLOCKS that an `attn.qkv` has, and the one after its last."""
    sizes = stacked_sizes(config, int(path.split(".")[2]))
    return {name: (sum(sizes[:i]), sum(sizes[: i + 1])) for i, name in enumerate(BLOCKS) if sizes[i]}


def _adapted_layers(model: GPT, args: LoRAArgs) -> Iterator[tuple[str, list[str]]]:
    """Yields the path of each selected layer and its BLOCKS that get an update; [""] means the whole layer."""
    blocks = [name for name in BLOCKS if getattr(args, f"lora_{name}")]
    for i, block in enumerate(model.transformer.h):
        if block.attn is None:
            pass
        elif blocks and isinstance(block.attn, Mixing):
            yield from ((f"transformer.h.{i}.attn.{name}", [""]) for name in block.attn.inputs)
        elif blocks:
            has = rows_of(model.config, f"transformer.h.{i}.attn.qkv")
            if mine := [name for name in blocks if name in has]:
                yield f"transformer.h.{i}.attn.qkv", mine
            if args.lora_query and block.attn.out_gate is not None:
                yield f"transformer.h.{i}.attn.out_gate", [""]
        if args.lora_projection and block.attn is not None:
            yield f"transformer.h.{i}.attn.{'out_proj' if isinstance(block.attn, Mixing) else 'proj'}", [""]
        if args.lora_mlp and block.mlp is not None:
            for name, module in block.mlp.named_modules():
                if isinstance(module, LinearLayer):
                    yield f"transformer.h.{i}.mlp.{name}", [""]
        if args.lora_per_layer and block.per_layer is not None:
            yield from ((f"transformer.h.{i}.per_layer.{name}", [""]) for name in ("gate_proj", "proj"))
    if args.lora_per_layer and "per_layer" in model.transformer:
        yield "transformer.per_layer.proj", [""]
    if args.lora_head:
        yield "lm_head", [""]


def update_name(path: str, block: str) -> str:
    """Returns the name of an update, as in `LoRARunArgs.ranks`.

    Args:
        path: path of the layer in the model.
        block: one of BLOCKS, or "".
    """
    return f"{path}.{block}" if block else path


def trainable(name: str) -> bool:
    """Returns whether the parameter of this name belongs to the method, and is therefore trained and saved."""
    return ".lora_" in name


@torch.no_grad()
def merge(model: GPT) -> None:
    """Merges every update into its frozen weight, in fp32, and unwraps the layers: the state dict has the base's names.

    Adapted layers of a quantized base model are replaced by ones in the dtype of the embeddings.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, LoRALinear):
                continue
            linear = child.linear
            merged = child.merged().to(model.transformer.wte.weight.dtype)
            if not isinstance(linear, Linear):  # 4 or 8 bits are too coarse for an update: the layer is dequantized
                linear = _with_weight(linear, merged)
            elif linear.weight is model.transformer.wte.weight:  # a tied head is untied: the embeddings have no update
                linear.weight = nn.Parameter(merged, requires_grad=False)
                model.config.tie_embeddings = False
            else:
                linear.weight.copy_(merged)
            setattr(parent, name, linear)


@torch.no_grad()
def _make_own(model: GPT, name: str) -> None:
    """Gives a parameter memory of its own: dequantizes, creates or unties it where needed, and keeps its values.

    Raises:
        UserError: the model has no such parameter.
    """
    path, _, leaf = name.rpartition(".")
    module, like = dict(model.named_modules()).get(path), model.transformer.wte.weight
    is_missing = module is None or leaf not in module._parameters
    if is_missing and not (leaf == "weight" and isinstance(module, LinearLayer)):
        raise UserError(f"the run replaces {shown(name)}, which is no parameter of {model.config.name}")
    assert module is not None
    if leaf == "weight" and isinstance(module, LinearLayer) and not isinstance(module, Linear):
        module = _with_weight(module, module.dequantize().to(like.dtype))
        model.set_submodule(path, module)
    before = getattr(module, leaf)
    if before is None:  # the base model has no such bias
        assert isinstance(module, LinearLayer), path
        before = torch.zeros(module.out_features, dtype=like.dtype, device=module.weight.device)
    if model.config.tie_embeddings and before is like:
        model.config = replace(model.config, tie_embeddings=False)
    setattr(module, leaf, nn.Parameter(before.detach().clone()))


def _with_weight(linear: LinearLayer, weight: torch.Tensor) -> Linear:
    """Returns an unquantized linear layer with this weight and the bias of `linear`."""
    made = Linear(linear.in_features, linear.out_features, device="meta")
    made.weight, made.bias = nn.Parameter(weight, requires_grad=False), linear.bias
    return made
