"""Training whose linear layers multiply in float8, on GPUs that can."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from gesso.types import GessoError

CAPABILITY = (8, 9)  # Ada and Hopper; earlier GPUs have no float8 products
MULTIPLE = 16  # sides of a float8 product on the GPU


def float8_blocks(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Have the linear layers in the members of every `nn.ModuleList` multiply in float8, in place.

    torchao scales each tensor by its largest value, in the forward and the backward pass; weights
    stay as they are. Layers with a side that is no multiple of 16 are left alone.

    Args:
        networks: on `device`, not sharded or compiled yet.
        device: a GPU of compute capability 8.9 or higher.

    Raises:
        GessoError: another device, or no torchao.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        raise GessoError(
            f"train.float8 needs a GPU with float8 products (compute capability 8.9 or higher), "
            f"and this training runs on {device.type}: set train.float8=false."
        )
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError:
        raise GessoError("train.float8 needs torchao: pip install 'gesso[quant]'.") from None

    def fits(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Linear) and not (
            module.in_features % MULTIPLE or module.out_features % MULTIPLE
        )

    for network in networks:
        for members in [m for m in network.modules() if isinstance(m, nn.ModuleList)]:
            for block in members:
                convert_to_float8_training(block, module_filter_fn=fits)
