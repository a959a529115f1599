"""Canny's edges: thin white lines on black.

adapter: {name: controlnet, condition: {name: canny, low: 100, high: 200}}
"""

from __future__ import annotations

from functools import partial

import numpy as np
from pydantic import Field

from gesso import config
from gesso.controls import FromPixels


class Config(config.Config):
    """Canny's two thresholds on the gradient, |dx| + |dy| of Sobel's filters.

    Attributes:
        low: below it nothing is an edge.
        high: above it everything is; between the two, what touches such an edge.
    """

    low: float = Field(default=100, ge=0)
    high: float = Field(default=200, ge=0)


def canny(image: np.ndarray, low: float = 100, high: float = 200) -> np.ndarray:
    """The edges of a picture [H, W, 3] uint8, by the channel that changes most.

    Returns:
        [H, W] uint8, 0 or 255.
    """
    import cv2

    return cv2.Canny(np.ascontiguousarray(image), low, high)


def build(options: Config) -> FromPixels:
    """The condition for validated options."""
    return FromPixels("canny", options, partial(canny, low=options.low, high=options.high))
