"""Segmentation of scenes, from their truth: a colour for each shape, whatever colour it has.

adapter: {name: controlnet, condition: {name: segmentation}}
"""

from __future__ import annotations

import colorsys

import numpy as np

from gesso import config
from gesso.data.buckets import Size
from gesso.data.images import cover
from gesso.data.scenes import SHAPES, Scene, truth
from gesso.data.source import digest
from gesso.types import GessoError, Sample

CLASSES = len(SHAPES) + 1  # the last is a rendered word
# [1 + CLASSES, 3] uint8: black for the background, then hues evenly around the circle.
_HUES = [(0, 0, 0), *(colorsys.hsv_to_rgb(i / CLASSES, 1, 1) for i in range(CLASSES))]
PALETTE = np.rint(255 * np.array(_HUES)).astype(np.uint8)


class Config(config.Config):
    """No options."""


class Segmentation:
    """The condition. Only scenes have the truth that it draws."""

    def __call__(self, sample: Sample, size: Size) -> np.ndarray:
        if "scene" not in sample.meta:
            raise GessoError("It is no scene and has no true segmentation.")
        height, width = sample.image.shape[:2]
        layout = truth(Scene.from_dict(sample.meta["scene"]), height, width).layout  # [H, W]
        return cover(PALETTE[layout], size)

    def fingerprint(self) -> str:
        return digest("segmentation", PALETTE.tolist())


def build(options: Config) -> Segmentation:
    """The condition."""
    return Segmentation()
