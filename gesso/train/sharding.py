"""Weights spread over processes: FSDP2, a unit for each block and one for what is left of a role.

Every parameter is cut along its first dimension, as `torch.chunk` cuts: process r of n holds rows
r c to (r + 1) c of D, with c = ceil(D / n). Its gradient, moments and average are cut alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

METHODS = ("null", "encode", "decode", "quantise", "distribution")
"""What objectives call of a role besides `forward`; it needs whole weights, too."""


def shard(roles: Iterable[nn.Module], size: int, device: torch.device, bfloat16: bool) -> None:
    """Spread the parameters of some networks over all processes, in place.

    Args:
        roles: on their device; the blocks in their `nn.ModuleList`s are gathered one at a time.
        size: processes.
        device: of the roles.
        bfloat16: the blocks' weights are sent and used as bfloat16; pieces, gradients and moments
            stay float32. What is outside the blocks, the timesteps among it, stays float32 under
            autocast.
    """
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # Objectives change no prediction in place, which is what the warning is about.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (size,))
    mixed = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    for role in roles:
        if not any(True for _ in role.parameters()):
            continue
        lists = [m for m in role.modules() if isinstance(m, nn.ModuleList)]
        for block in [b for members in lists for b in members]:
            fully_shard(block, mesh=mesh, mp_policy=mixed)
        fully_shard(role, mesh=mesh, mp_policy=plain)
        for name in METHODS:
            if hasattr(role, name):
                register_fsdp_forward_method(role, name)


def local(value: Tensor) -> Tensor:
    """This process's piece of a sharded tensor, sharing its memory; any other is itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def offset(value: Tensor) -> tuple[int, ...]:
    """Where this process's piece begins in the whole tensor."""
    start = [0] * value.dim()
    if isinstance(value, DTensor) and start:
        mesh = value.device_mesh
        chunk = -(-value.shape[0] // mesh.size())
        start[0] = min(mesh.get_local_rank() * chunk, value.shape[0])
    return tuple(start)


def like(piece: Tensor, model: Tensor) -> Tensor:
    """A piece as a sharded tensor, if `model` is one, with its shape and places."""
    if not isinstance(model, DTensor):
        return piece
    return DTensor.from_local(
        piece,
        model.device_mesh,
        model.placements,
        shape=model.shape,
        stride=model.stride(),
    )


def whole(value: Tensor) -> Tensor:
    """The whole of a sharded tensor; every process must come. Any other is itself."""
    return value.full_tensor() if isinstance(value, DTensor) else value
