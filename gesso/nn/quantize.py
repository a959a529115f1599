"""Smaller weights for inference: the linear layers inside a network's blocks, in int8 or bfloat16.

Everything outside the blocks (patch and time embeddings, the caption projection, the shared
modulation, the final layer) and the blocks' own tables stay as they are: they are a few percent of
the weights, and their errors reach every token.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Literal

import torch
from torch import Tensor, nn

from gesso.types import GessoError

Kind = Literal["int8", "bfloat16"]
KINDS: tuple[Kind, ...] = ("int8", "bfloat16")


def quantize_blocks(network: nn.Module, kind: Kind) -> list[str]:
    """Quantise the linear layers in every `nn.ModuleList` of a network, in place.

    "int8" keeps one scale an output channel and multiplies in the inputs' precision (torchao's
    weight-only form), so it needs no calibration. "bfloat16" is to be run under autocast.

    Args:
        network: float weights; not to be trained afterwards.
        kind: see above.

    Returns:
        The names of the layers.

    Raises:
        GessoError: an unknown kind, no such layer, or int8 without torchao.
    """
    if kind not in KINDS:
        raise GessoError(f"There is no quantisation {kind!r}: use {' or '.join(KINDS)}.")
    layers = block_linears(network)
    if not layers:
        raise GessoError("This network has no blocks of linear layers to quantise.")
    for layer in layers.values():
        quantize_layer(layer, kind)
    return list(layers)


def block_linears(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside a network's blocks, by name."""
    blocks = tuple(
        f"{name}." for name, m in network.named_modules() if isinstance(m, nn.ModuleList)
    )
    return {
        name: m
        for name, m in network.named_modules()
        if isinstance(m, nn.Linear) and name.startswith(blocks)
    }


def quantize_layer(layer: nn.Linear, kind: Kind) -> None:
    """Quantise one layer in place; see `quantize_blocks`."""
    layer.requires_grad_(False)
    if kind == "bfloat16":
        layer.to(torch.bfloat16)
        return
    if importlib.util.find_spec("torchao") is None:
        raise GessoError("int8 weights need torchao: pip install 'gesso[quant]'.")
    logging.getLogger("torchao").setLevel(logging.ERROR)  # about kernels that are not used here
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layer, Int8WeightOnlyConfig())


def stored_bytes(network: nn.Module) -> int:
    """What a network's weights and buffers take in memory, quantised ones in their true size."""
    return sum(_bytes(t) for t in (*network.parameters(), *network.buffers()))


def _bytes(tensor: Tensor) -> int:
    data = tensor.data
    if hasattr(data, "__tensor_flatten__"):  # a tensor that is made of others
        return sum(_bytes(getattr(data, name)) for name in data.__tensor_flatten__()[0])
    return data.numel() * data.element_size()
