"""Inception-v3 as FID uses it: the network of 2015, with TensorFlow's pooling.

Szegedy et al., arXiv 1512.00567. Parameter names are those of the published conversion of the
TensorFlow weights (`pt_inception-2015-12-05-6726825d.pth`), which it loads.

Dims: B pictures; every `Mixed_*` block joins the outputs of its branches along the channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 2048  # features
SIDE = 299  # pixels
CLASSES = 1008

Kernel = int | tuple[int, int]
Step = tuple[str, int, Kernel] | tuple[str, int, Kernel, int]
"""A convolution: name, channels, kernel, and 2 if it halves the size (then without padding)."""


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Kernel, stride: int, padding: Any
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side.

    Args:
        inputs: channels.
        branches: chains of convolutions; the last entry of a chain may be two convolutions that
            both see the one before.
        pool: before the last branch: "avg", "max", or "halve" (max with stride 2, no convolution).
    """

    def __init__(self, inputs: int, branches: list[list[Any]], pool: str) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        self.outputs = inputs if pool == "halve" else 0
        for branch in branches:
            channels = inputs
            for entry in branch:
                steps = entry if isinstance(entry, list) else [entry]
                for name, width, kernel, *stride in steps:
                    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
                    padding = 0 if stride else tuple(side // 2 for side in sides)
                    self.add_module(name, Conv(channels, width, kernel, (*stride, 1)[0], padding))
                channels = sum(width for _, width, *_ in steps)
            self.outputs += channels

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch in self.branches:
            out = x
            if branch[0][0] == "branch_pool":
                out = self._pooled(x)
            for entry in branch:
                steps = entry if isinstance(entry, list) else [entry]
                out = torch.cat([getattr(self, name)(out) for name, *_ in steps], 1)
            outputs.append(out)
        if self.pool == "halve":
            outputs.append(F.max_pool2d(x, 3, 2))
        return torch.cat(outputs, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "max":
            return F.max_pool2d(x, 3, 1, 1)
        # TensorFlow's mean does not count the padding.
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _a(inputs: int, pooled: int) -> Mixed:
    """35 x 35."""
    return Mixed(
        inputs,
        [
            [("branch1x1", 64, 1)],
            [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
            [("branch_pool", pooled, 1)],
        ],
        "avg",
    )


def _b(inputs: int) -> Mixed:
    """35 x 35 -> 17 x 17."""
    return Mixed(
        inputs,
        [
            [("branch3x3", 384, 3, 2)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
        ],
        "halve",
    )


def _c(inputs: int, inner: int) -> Mixed:
    """17 x 17."""
    wide, tall = (1, 7), (7, 1)
    return Mixed(
        inputs,
        [
            [("branch1x1", 192, 1)],
            [("branch7x7_1", inner, 1), ("branch7x7_2", inner, wide), ("branch7x7_3", 192, tall)],
            [
                ("branch7x7dbl_1", inner, 1),
                ("branch7x7dbl_2", inner, tall),
                ("branch7x7dbl_3", inner, wide),
                ("branch7x7dbl_4", inner, tall),
                ("branch7x7dbl_5", 192, wide),
            ],
            [("branch_pool", 192, 1)],
        ],
        "avg",
    )


def _d(inputs: int) -> Mixed:
    """17 x 17 -> 8 x 8."""
    return Mixed(
        inputs,
        [
            [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
            [
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, 3, 2),
            ],
        ],
        "halve",
    )


def _e(inputs: int, pool: str) -> Mixed:
    """8 x 8."""
    wide, tall = (1, 3), (3, 1)
    return Mixed(
        inputs,
        [
            [("branch1x1", 320, 1)],
            [
                ("branch3x3_1", 384, 1),
                [("branch3x3_2a", 384, wide), ("branch3x3_2b", 384, tall)],
            ],
            [
                ("branch3x3dbl_1", 448, 1),
                ("branch3x3dbl_2", 384, 3),
                [("branch3x3dbl_3a", 384, wide), ("branch3x3dbl_3b", 384, tall)],
            ],
            [("branch_pool", 192, 1)],
        ],
        pool,
    )


class Inception(nn.Module):
    """Pictures [B, 3, 299, 299] in [-1, 1] -> pool features [B, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1, 1, 0)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, 1, 0)
        self.Mixed_5b = _a(192, 32)
        self.Mixed_5c = _a(256, 64)
        self.Mixed_5d = _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b = _c(768, 128)
        self.Mixed_6c = _c(768, 160)
        self.Mixed_6d = _c(768, 160)
        self.Mixed_6e = _c(768, 192)
        self.Mixed_7a = _d(768)
        self.Mixed_7b = _e(1280, "avg")
        self.Mixed_7c = _e(2048, "max")  # so it is in the network of 2015
        self.fc = nn.Linear(WIDTH, CLASSES)  # in the weight file, not used

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_1a_3x3(x)  # [B, 32, 149, 149]
        x = self.Conv2d_2a_3x3(x)  # [B, 32, 147, 147]
        x = F.max_pool2d(self.Conv2d_2b_3x3(x), 3, 2)  # [B, 64, 73, 73]
        x = self.Conv2d_3b_1x1(x)  # [B, 80, 73, 73]
        x = F.max_pool2d(self.Conv2d_4a_3x3(x), 3, 2)  # [B, 192, 35, 35]
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))  # [B, 2048]
