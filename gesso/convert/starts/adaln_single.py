"""A class-conditional DiT as the start of a PixArt (Chen et al. 2023, section 2.3).

DiT modulates block i by its own MLP f_i of time and class, PixArt by S_i(t) = f(t) + E_i, one MLP f
for all and a table E_i a block. The table is chosen such that at one time, t = 500 in the paper,

    S_i(500) = f_i(500, no class),    E_i = f_i(500, no class) - f(500)

holds exactly; the final layer, whose S(t) = E + t_emb(t), likewise. The paper leaves f open. Here
it is the mean of all f_i, which comes nearest to the blocks at every other time, too: the f_i are
linear in one and the same SiLU(t_emb), so the mean of their layers is the least-squares solution.
The vector that DiT adds for "no class" goes into the bias of the time embedding, so that f has
DiT's input at any t.

Patches, self-attention and MLPs carry over. Cross-attention and the caption's projection keep their
fresh weights: the output of cross-attention starts at zero, so text changes nothing at first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from gesso import config
from gesso.nn.timestep import sinusoid
from gesso.types import GessoError

if TYPE_CHECKING:
    from torch import nn

    from gesso.convert.origin import Origin

CARRIED = ("x_embedder.", "t_embedder.", "final_layer.linear.")
CARRIED_OF_BLOCKS = ("attn.", "mlp.")


class Config(config.Config):
    """Options of the conversion.

    Attributes:
        time: the t, in 0..1000, at which both networks are equal.
    """

    time: float = Field(default=500.0, ge=0, le=1000)


def start(options: Config, origin: Origin, backbone: nn.Module) -> None:
    """Fill a PixArt's weights from a DiT's, in place.

    Raises:
        GessoError: one of the two is of another kind, or a tensor does not fit.
    """
    state = origin.part("backbone")
    own = backbone.state_dict()
    if "t_block.1.weight" not in own or "y_embedder.embedding_table.weight" not in state:
        raise GessoError(
            f"The conversion adaln-single makes a PixArt of a class-conditional DiT, and "
            f"{origin.where} is {(origin.backbone or {}).get('name', 'none')}: leave out `convert` "
            "or start from a DiT."
        )
    carried = {k: v for k, v in state.items() if _carried(k)}
    for key, value in reparametrised(state, options.time).items():
        carried[key] = value
    for key, value in carried.items():
        if key not in own or own[key].shape != value.shape:
            found = tuple(own[key].shape) if key in own else "no such tensor"
            raise GessoError(
                f"{origin.where}: {key} has shape {tuple(value.shape)} where the PixArt has"
                f" {found}: make their options equal."
            )
    backbone.load_state_dict(own | carried)


def reparametrised(dit: dict[str, Tensor], time: float) -> dict[str, Tensor]:
    """The tensors of adaLN-single: time embedding, t_block and every table, in float32.

    Args:
        dit: a DiT's state: its L blocks' adaLN_modulation.1 [6D, D], and so on.
        time: where the modulation is equal.
    """
    state: dict[str, Any] = {k: v.float() for k, v in dit.items()}
    no_class = state["y_embedder.embedding_table.weight"][-1]  # [D]
    bias = state["t_embedder.mlp.2.bias"] + no_class
    first = F.linear(
        sinusoid(torch.tensor([time])),
        state["t_embedder.mlp.0.weight"],
        state["t_embedder.mlp.0.bias"],
    )
    embedded = F.linear(F.silu(first), state["t_embedder.mlp.2.weight"], bias)[0]  # [D]

    def modulation(prefix: str) -> tuple[Tensor, Tensor]:
        name = f"{prefix}.adaLN_modulation.1"
        return state[f"{name}.weight"], state[f"{name}.bias"]

    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    layers = [modulation(f"blocks.{i}") for i in range(depth)]
    weight, offset = (torch.stack(parts).mean(0) for parts in zip(*layers, strict=True))
    shared = F.linear(F.silu(embedded), weight, offset)  # [6D], f(time)
    width = len(no_class)
    new: dict[str, Tensor] = {
        "t_embedder.mlp.2.bias": bias,
        "t_block.1.weight": weight,
        "t_block.1.bias": offset,
    }
    for i, layer in enumerate(layers):
        own = F.linear(F.silu(embedded), *layer)  # [6D], f_i(time, no class)
        new[f"blocks.{i}.scale_shift_table"] = (own - shared).view(6, width)
    final = F.linear(F.silu(embedded), *modulation("final_layer")).view(2, width)
    new["final_layer.scale_shift_table"] = final - embedded
    return new


def _carried(key: str) -> bool:
    if key.startswith("blocks."):
        return key.split(".", 2)[2].startswith(CARRIED_OF_BLOCKS)
    return key.startswith(CARRIED)
