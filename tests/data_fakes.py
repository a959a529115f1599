"""Tiny encoders and pictures for the tests of gesso.data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gesso.draws import Draws
from gesso.types import Bad, Caption, Cond, Sample

SHARED = Path(__file__).parents[2] / "shared" / "data"


class FakeImageEncoder:
    """Averages over 4x4 cells; raw is mean and std, as for a KL posterior."""

    factor = 4

    def __init__(self, std: float = 0.5, name: str = "fake-image") -> None:
        self.std = std
        self.name = name
        self.encoded = 0

    def encode(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        mean = F.avg_pool2d(pixels, self.factor)  # [B, 3, h, w]
        return torch.cat([mean, torch.full_like(mean, self.std)], 1)  # [B, 6, h, w]

    def sample(self, raw: Tensor, generator: Draws | None = None) -> Tensor:
        mean, std = raw.chunk(2, 1)
        if generator is None:
            return mean
        return mean + std * generator.randn(*mean.shape)

    def fingerprint(self) -> str:
        return self.name


class FakeTextEncoder:
    """One token per word. Frozen: width 2, word length and position; trainable: word lengths."""

    def __init__(self, trainable: bool = False, name: str = "fake-text") -> None:
        self.trainable = trainable
        self.name = name

    def prepare(self, prompts: list[str]) -> Cond:
        words = [[len(w) for w in p.split()] for p in prompts]
        ids = torch.zeros(len(words), max(map(len, words)), dtype=torch.int64)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(words):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        if self.trainable:
            return Cond(ids=ids, mask=mask)
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        return Cond(tokens=torch.stack([ids, positions], -1).float(), mask=mask)

    def fingerprint(self) -> str:
        return self.name


class ListSource:
    """Samples and Bads from a list."""

    def __init__(self, items: list[Sample | Bad], name: str = "list") -> None:
        self.items = items
        self.name = name

    def __iter__(self) -> Iterator[Sample | Bad]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def fingerprint(self) -> str:
        return self.name


def sample(
    i: int, size: tuple[int, int] = (16, 16), captions: list[Caption] | None = None
) -> Sample:
    """Picture i: one grey level, and captions with i + 1 and 2 words."""
    captions = captions or [Caption("w " * (i % 5 + 1), "dense"), Caption("a cat", "short")]
    return Sample(f"k{i:03d}", np.full((*size, 3), i % 256, dtype=np.uint8), captions)


def save_picture(path: Path, value: int = 100, size: tuple[int, int] = (16, 12)) -> None:
    """A grey picture file; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
