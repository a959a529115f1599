"""Published class-conditional DiT weights: a `.pt` or `.safetensors` with the authors' names.

gesso's names are the authors', but for the position table `pos_embed`, which gesso computes.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from gesso.backbones.dit import SIZES
from gesso.config import Spec
from gesso.convert import checkpoint
from gesso.convert.families import name_family
from gesso.nn.position import sincos_2d
from gesso.types import GessoError

TABLE = "y_embedder.embedding_table.weight"
POSITIONS = "pos_embed"


def read_dit(file: Path) -> tuple[Spec, dict[str, Tensor]]:
    """Read a DiT; its options follow from the shapes, the heads from its width where published.

    Returns:
        The backbone's name and options (without num_heads for a width that was never published),
        and its tensors.

    Raises:
        GessoError: unreadable, of another model (says of which), or with other positions.
    """
    found = checkpoint.strip_prefix(checkpoint.read([file]), [TABLE])
    state = dict(found.tensors)
    needed = (TABLE, "x_embedder.proj.weight", "blocks.0.mlp.fc1.weight", "final_layer.linear.bias")
    if any(key not in state for key in needed):
        what = f"is {family}" if (family := name_family(state)) else "has none of a DiT's tensors"
        raise GessoError(f"{file} {what}, not the weights of a class-conditional DiT.")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    outputs = len(state["final_layer.linear.bias"]) // patch**2
    options = {
        "depth": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.")),
        "hidden_size": width,
        "patch_size": patch,
        "in_channels": channels,
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / width,
        "num_classes": len(state[TABLE]) - 1,  # the last row stands for no class
        "learn_sigma": outputs == 2 * channels,
    }
    positions = state.pop(POSITIONS, None)
    if positions is not None:
        side = math.isqrt(positions.shape[1])
        if positions.shape != (1, side * side, width) or not torch.allclose(
            positions[0].float(), sincos_2d(side, side, width, side), atol=1e-3
        ):
            raise GessoError(f"{file} has positions of its own, which no DiT of gesso has.")
        options["base_size"] = side
    heads = {size.hidden_size: size.num_heads for size in SIZES.values()}
    if width in heads:
        options["num_heads"] = heads[width]
    return {"name": "dit", **options}, state
