"""Depth from one picture, by networks of transformers: DPT (MiDaS), Depth Anything, DepthPro, ...

Some predict how near a place is and some how far; here more is nearer, and the farthest place of a
picture is 0 and its nearest 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.evals.networks import Network, NetworkConfig, in_batches, quiet
from gesso.evals.types import Box, Image, Judge

ABILITIES = ("depth",)
NEAR = ("DPTForDepthEstimation", "DepthAnythingForDepthEstimation")  # they tell disparity
FAR = ("DepthProForDepthEstimation", "GLPNForDepthEstimation", "ZoeDepthForDepthEstimation")


class Config(NetworkConfig):
    """Options of the judge `hf-depth`."""

    batch_size: int = 4


class HFDepth(Judge):
    """See the module. Pictures of one size share a batch."""

    def __init__(self, options: Config, device: str | None) -> None:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        kinds: dict[str, Any] = dict.fromkeys((*NEAR, *FAR), AutoModelForDepthEstimation)
        self.net = Network(__name__, kinds, options, device, processor=AutoImageProcessor)
        metric = getattr(self.net.config, "depth_estimation_type", "") == "metric"
        self.far = self.net.architecture in FAR or metric
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self.name = f"hf-depth:{options.path}"
        self.fingerprint, self.versions = self.net.fingerprint, self.net.versions

    def depth(self, images: Sequence[Image], boxes: Sequence[tuple[Box, ...]]) -> list[list[float]]:
        """How near the inside of each box is, in [0, 1]; of a flat picture 0 everywhere."""
        maps = in_batches(
            lambda some: self._maps([images[i] for i in some]),
            [image.shape for image in images],
            self.batch_size,
        )
        return [
            [_mean(nearness, box) for box in wanted]
            for nearness, wanted in zip(maps, boxes, strict=True)
        ]

    @torch.no_grad()
    def _maps(self, images: list[Image]) -> list[Tensor]:
        """[H, W] in [0, 1] of each picture, all of one size."""
        with quiet():
            batch = self.net.processor(images=images, return_tensors="pt")
        depth = self.net.model(**self.net.to(batch)).predicted_depth.float()  # [B, h, w]
        depth = -depth if self.far else depth
        low, high = (depth.flatten(1).aminmax(dim=1)[i][:, None, None] for i in (0, 1))
        depth = (depth - low) / (high - low).clip(min=torch.finfo(torch.float32).tiny)
        size = images[0].shape[:2]
        whole = F.interpolate(depth[:, None], size, mode="bilinear", align_corners=True)
        return list(whole[:, 0].cpu())


def _mean(nearness: Tensor, box: Box) -> float:
    """Of a box's pixels, one at least."""
    height, width = nearness.shape
    left, top = (
        min(max(int(v), 0), size - 1) for v, size in zip(box[:2], (width, height), strict=True)
    )
    right, bottom = max(left + 1, int(box[2])), max(top + 1, int(box[3]))
    return float(nearness[top:bottom, left:right].mean())


def build(options: Config, device: str | None) -> HFDepth:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return HFDepth(options, device)
