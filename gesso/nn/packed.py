"""Linear layers laid out once as a CPU's bfloat16 kernels read them, while many steps run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gesso.nn.linear import Linear

ROWS = 512  # of the products that the layout is chosen for; others run with it, too
BREAK_EVEN = 2048  # rows from which on packing and unpacking take less time than they save


@contextmanager
def packed(network: nn.Module, rows: int = BREAK_EVEN) -> Iterator[None]:
    """Run a network's `Linear` layers in bfloat16 from packed weights, for inference on a CPU.

    oneDNN otherwise lays every weight out again in every step, and has no kernel that applies an
    MLP's GELU with the product. A layer's bfloat16 weight is given up meanwhile, so no memory is
    added, and comes back bit for bit in the same parameter at the end, also after an error.
    float32 weights are packed under bfloat16 autocast only; they are kept beside their packed
    copies, half of their size.

    Other layers stay as they are: those whose weight is quantised or on another device, and all of
    them where gradients are recorded, blocks are compiled or the processor lacks these kernels.

    Args:
        network: the backbone.
        rows: about how many rows (pictures x tokens x steps) its layers will see; below
            `BREAK_EVEN` nothing is packed.
    """
    layers: list[Linear] = []
    compiled = any("forward" in vars(m) for m in network.modules())  # see gesso.nn.compile
    if rows >= BREAK_EVEN and not (compiled or torch.is_grad_enabled()) and _supported():
        layers = [m for m in network.modules() if isinstance(m, Linear) and _fits(m)]
    try:
        for layer in layers:
            _pack(layer)
        yield
    finally:
        for layer in layers:
            _unpack(layer)


def _pack(layer: Linear) -> None:
    # Weights that were no inference tensors must not become some: they could not be trained on.
    with torch.no_grad(), torch.inference_mode(layer.weight.is_inference()):
        weight = layer.weight.data
        layer.packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), ROWS)
        if weight.dtype == torch.bfloat16:
            layer.weight.data = weight.new_empty(0)


def _unpack(layer: Linear) -> None:
    with torch.no_grad(), torch.inference_mode(layer.weight.is_inference()):
        if layer.packed is not None and layer.weight.numel() == 0:
            layer.weight.data = layer.packed.to_dense()
        layer.packed = None


def _fits(layer: Linear) -> bool:
    data = layer.weight.data
    if type(data) is not Tensor or data.device.type != "cpu" or layer.packed is not None:
        return False
    if data.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return data.dtype == torch.bfloat16


def _supported() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
