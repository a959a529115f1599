"""The exact truth about a rendered scene: boxes, masks and a semantic layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gesso.data.scenes.font import word_dots
from gesso.data.scenes.graph import SHAPES, Scene
from gesso.data.scenes.render import local_coverage, pixel_box

WORD_CLASS = len(SHAPES) + 1


@dataclass(slots=True)
class Truth:
    """What a picture of a scene shows, pixel by pixel.

    Attributes:
        boxes: [N, 4] float32, x0, y0, x1, y1 in pixels, one row per object.
        masks: [N, H, W] bool, pixels that the object covers by more than half.
        layout: [H, W] uint8, 0 for background, 1 + index in `SHAPES` for an object,
            `WORD_CLASS` for a rendered word.
    """

    boxes: np.ndarray
    masks: np.ndarray
    layout: np.ndarray


def truth(scene: Scene, height: int = 64, width: int = 64) -> Truth:
    """The truth about `render(scene, height, width)`."""
    count = len(scene.objects)
    boxes = np.array([pixel_box(o, height, width) for o in scene.objects], np.float32)
    masks = np.zeros((count, height, width), bool)
    layout = np.zeros((height, width), np.uint8)
    for mask, item in zip(masks, scene.objects, strict=True):
        (top, left), alpha = local_coverage(item, height, width)
        mask[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha > 0.5
        layout[mask] = 1 + SHAPES.index(item.shape)
    if scene.word:
        dots = word_dots(scene.word, height, width)
        layout[dots[:, 0], dots[:, 1]] = WORD_CLASS
    return Truth(boxes.reshape(count, 4), masks, layout)
