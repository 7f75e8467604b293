"""A model of which each device keeps a part of every weight (FSDP2), and a block at a time while that computes.

https://arxiv.org/abs/2304.11277 describes the idea; torch's `fully_shard` is the second of its implementations, which
divides each weight by its rows and leaves it a tensor of its own, whatever its dtype.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_gpt.model import GPT
from lit_gpt.parallel.host import HostGather
from lit_gpt.parallel.team import Team


def shard(model: GPT, part: str, gather: HostGather | None = None) -> None:
    """Divides a part of the model among all devices, in place; the last part, "", goes last.

    Args:
        gather: puts the weights together in the place of the devices' network.

    Raises:
        RuntimeError: the devices are not connected.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    module = model.get_submodule(part)
    factors = {name: vars(p)["lr_factor"] for name, p in module.named_parameters() if hasattr(p, "lr_factor")}
    mesh = init_device_mesh(next(module.parameters()).device.type, (dist.get_world_size(),))
    fully_shard(module, mesh=mesh)
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)  # the loss is divided by the targets of all devices already
    module.set_force_sum_reduction_for_comms(True)  # gloo has no other one
    if gather is not None and hasattr(module, "set_custom_all_gather"):  # torch 2.8 has not
        module.set_custom_all_gather(gather)  # pyright: ignore[reportArgumentType] it has what torch's class asks for
    for name, p in module.named_parameters():
        if name in factors:
            p.lr_factor = factors[name]  # pyright: ignore[reportAttributeAccessIssue] a tensor takes attributes
    if part == "":
        register_fsdp_forward_method(model, "hidden")


def is_sharded(model: GPT) -> bool:
    """Returns whether each device keeps a part of the model."""
    return hasattr(model, "reshard")


def reshard(model: GPT) -> None:
    """Gives back what is together of the model's weights outside of the blocks, as after a validation."""
    if is_sharded(model):
        model.reshard()  # pyright: ignore[reportCallIssue] a method of FSDPModule, which `fully_shard` makes of it


def _here(p: nn.Parameter) -> nn.Parameter:
    """Returns what this device keeps of a parameter as a parameter of its own: always the same one, sharing memory."""
    if not hasattr(p, "to_local"):
        return p
    if not hasattr(p, "here"):
        part = nn.Parameter(p.to_local().detach(), requires_grad=p.requires_grad)  # pyright: ignore
        if hasattr(p, "lr_factor"):
            part.lr_factor = p.lr_factor  # pyright: ignore[reportAttributeAccessIssue]
        p.here = part  # pyright: ignore[reportAttributeAccessIssue]
    return p.here  # pyright: ignore[reportAttributeAccessIssue]


def n_here(p: Tensor) -> int:
    """Returns the number of values that this device keeps of a parameter."""
    return p.to_local().numel() if hasattr(p, "to_local") else p.numel()  # pyright: ignore


def n_rows_here(p: nn.Parameter) -> int:
    """Returns the number of rows that this device keeps of a divided parameter."""
    return len(_here(p))


def trained_here(model: GPT) -> dict[str, nn.Parameter]:
    """Returns what this device keeps of all parameters that train, by name."""
    reshard(model)
    return {name: _here(p) for name, p in model.named_parameters() if p.requires_grad}


def gradients_here(model: GPT) -> None:
    """Gives the parameters of `trained_here` their part of the gradients, which the backward pass has added up."""
    for p in model.parameters():
        if p.requires_grad and hasattr(p, "to_local"):
            _here(p).grad = None if p.grad is None else p.grad.to_local()  # pyright: ignore


def _own_rows(x: Tensor, team: Team) -> Tensor:
    """Returns the rows of a whole tensor that this device keeps."""
    return x[team.rows(len(x))]


def load_weights_here(model: GPT, weights: Mapping[str, Tensor], team: Team) -> None:
    """Loads the rows that this device keeps of whole tensors into the model."""
    reshard(model)
    others = dict(weights)
    with torch.no_grad():
        for name, p in model.named_parameters(remove_duplicate=False):
            if name in others and hasattr(p, "to_local"):
                part = _here(p)
                part.copy_(_own_rows(others.pop(name), team))
    model.load_state_dict(others, strict=False)


def state_here(model: GPT, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], team: Team) -> dict[str, Any]:
    """Returns the part of an optimizer's whole state that belongs to `optimizer`, which is one of `trained_here`."""
    of_part, found = divided(model, optimizer), {}
    for place, values in state["state"].items():
        found[place] = dict(values)
        for name, x in values.items():
            p = of_part.get(place)
            if p is not None and isinstance(x, Tensor) and x.shape == p.shape and x.dim():
                found[place][name] = _own_rows(x, team)
    return {"state": found, "param_groups": state["param_groups"]}


def divided(model: GPT, optimizer: torch.optim.Optimizer) -> dict[int, nn.Parameter]:
    """Returns the parameters of which this device keeps a part, by their places in the optimizer's state."""
    reshard(model)
    by_part = {id(_here(p)): p for p in model.parameters() if p.requires_grad and hasattr(p, "to_local")}
    places = [id(p) for group in optimizer.param_groups for p in group["params"]]
    return {place: by_part[key] for place, key in enumerate(places) if key in by_part}
