"""The model that a training starts from: a gesso model, or a published class-conditional DiT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gesso.config import Spec
from gesso.convert.checkpoint import WEIGHT_SUFFIXES
from gesso.convert.dit import read_dit
from gesso.model import WEIGHTS, Description, read_description, read_tensors

# Options that decide shapes or the meaning of tensors, in the order in which they are compared.
SHAPING = (
    *("hidden_size", "depth", "num_heads", "patch_size", "mlp_ratio", "in_channels"),
    *("learn_sigma", "text_dim", "num_classes", "vocabulary", "scales"),
)


@dataclass
class Origin:
    """What there is to start from.

    Attributes:
        where: for messages.
        backbone: its name and options; None: it is an image encoder alone.
        tensors: `part.tensor` -> weights, as in `model.safetensors`.
        text_encoder: its name and options, or None.
        adapter: that stays on the backbone, likewise.
        description: all that its `gesso.json` says; None for a DiT's file.
    """

    where: str
    backbone: Spec | None
    tensors: dict[str, Tensor]
    text_encoder: Spec | None = None
    adapter: Spec | None = None
    description: Description | None = None

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part, without its name in front."""
        start = f"{name}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def read_origin(found: Path) -> Origin:
    """Read a checkpoint folder, or a file of a class-conditional DiT.

    Raises:
        GessoError: it is neither, or broken.
    """
    if found.suffix in WEIGHT_SUFFIXES:
        spec, state = read_dit(found)
        return Origin(str(found), spec, {f"backbone.{k}": v for k, v in state.items()})
    described = read_description(found)
    tensors = read_tensors(found / WEIGHTS)
    return Origin(
        str(found),
        described.backbone,
        tensors,
        described.text_encoder,
        described.adapter,
        described,
    )


def first_difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first option that decides shapes and has two values; None if there is none."""
    both = (key for key in SHAPING if key in one and key in other)
    return next((key for key in both if one[key] != other[key]), None)
