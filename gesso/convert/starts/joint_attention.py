"""A PixArt as the start of an MMDiT of its size: what paints carries over, what reads is new.

The image stream takes PixArt's patches, time embedding, self-attention and MLPs. Block i has

    S_i(t) = f(t) + E_i = Linear_i(SiLU(t_emb)),    with f's weight, and f's bias plus E_i,

which is exact. The final layer's E + t_emb, without SiLU and layer in PixArt, becomes the linear
layer of SiLU(t_emb) that comes nearest to it over all t (least squares). The pooled text starts at
zero, and so do the values of the text stream: text says nothing at first, as PixArt's own
cross-attention starts. It still takes its share of the softmax.

The position tables are equal where `table_size` and `base_size` are the grid's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gesso import config
from gesso.nn.timestep import sinusoid
from gesso.types import GessoError

if TYPE_CHECKING:
    from torch import nn

    from gesso.convert.origin import Origin

CARRIED = ("x_embedder.", "t_embedder.", "final_layer.linear.")
CARRIED_OF_BLOCKS = ("attn.qkv.", "attn.proj.", "mlp.")
GRID = 256  # times of the least squares


class Config(config.Config):
    """The conversion has no options."""


def start(options: Config, origin: Origin, backbone: nn.Module) -> None:
    """Fill an MMDiT's weights from a PixArt's, in place; it must have no QK-norm and no dual block.

    Raises:
        GessoError: one of the two is of another kind, or a tensor does not fit.
    """
    state, own = origin.part("backbone"), backbone.state_dict()
    if "joint_blocks.0.x_block.attn.qkv.weight" not in own or "t_block.1.weight" not in state:
        raise GessoError(
            "The conversion joint-attention makes an MMDiT of a PixArt with adaLN-single, and "
            f"{origin.where} is {(origin.backbone or {}).get('name', 'none')}: leave out `convert` "
            "or start from a PixArt."
        )
    carried = converted({k: v.float() for k, v in state.items()})
    for key, value in own.items():
        if key.startswith("joint_blocks.") and key.endswith("context_block.attn.qkv.weight"):
            carried[key] = value.clone()
            carried[key].chunk(3)[2].zero_()  # the values
    for end in ("weight", "bias"):
        carried[f"y_embedder.mlp.2.{end}"] = torch.zeros_like(own[f"y_embedder.mlp.2.{end}"])
    stream = {k for k in own if k.startswith(("x_embedder.", "final_layer.")) or ".x_block." in k}
    for key in stream | carried.keys():
        if key not in own or key not in carried or own[key].shape != carried[key].shape:
            shapes = [tuple(s[key].shape) if key in s else "missing" for s in (carried, own)]
            raise GessoError(
                f"{origin.where}: {key} is {shapes[0]} where the MMDiT has {shapes[1]}: make their "
                "options equal, with qk_norm false and dual_blocks 0."
            )
    backbone.load_state_dict(own | carried)


def converted(pixart: dict[str, Tensor]) -> dict[str, Tensor]:
    """A PixArt's tensors as those of an MMDiT's image stream, time embedding and final layer."""
    new = {k: v for k, v in pixart.items() if k.startswith(CARRIED)}
    depth = 1 + max(int(key.split(".")[1]) for key in pixart if key.startswith("blocks."))
    for i in range(depth):
        stream, block = f"joint_blocks.{i}.x_block", f"blocks.{i}."
        for key, value in pixart.items():
            if key.startswith(block) and key.removeprefix(block).startswith(CARRIED_OF_BLOCKS):
                new[f"{stream}.{key.removeprefix(block)}"] = value
        table = pixart[f"{block}scale_shift_table"].flatten()  # [6D]
        new[f"{stream}.adaLN_modulation.1.weight"] = pixart["t_block.1.weight"]
        new[f"{stream}.adaLN_modulation.1.bias"] = pixart["t_block.1.bias"] + table
    weight, bias = _final(pixart)
    new["final_layer.adaLN_modulation.1.weight"] = weight
    new["final_layer.adaLN_modulation.1.bias"] = bias
    return new


def _final(pixart: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """weight [2D, D] and bias [2D] with weight SiLU(t_emb) + bias nearest to E + t_emb."""
    layers = [[pixart[f"t_embedder.mlp.{i}.{end}"] for end in ("weight", "bias")] for i in (0, 2)]
    times = sinusoid(torch.linspace(0, 1000, GRID))  # [GRID, 256]
    embedded = F.linear(F.silu(F.linear(times, *layers[0])), *layers[1])  # [GRID, D]
    wanted = (pixart["final_layer.scale_shift_table"] + embedded[:, None]).flatten(1)  # [GRID, 2D]
    known = torch.cat([F.silu(embedded), torch.ones(GRID, 1)], dim=1)  # [GRID, D + 1]
    found = torch.linalg.lstsq(known.double(), wanted.double(), driver="gelsd").solution.float()
    return found[:-1].T.contiguous(), found[-1]
