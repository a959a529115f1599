"""Soft edges: how much the picture changes at each pixel, after a blur. Needs no network's weights.

It stands where the released weights had HED, a network; their weights want HED's own pictures.

adapter: {name: controlnet, condition: {name: soft_edges, sigma: 1}}
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from pydantic import Field

from gesso import config
from gesso.controls import FromPixels

TAPS = 3 + 10 + 3  # of Scharr's filter, along the edge


class Config(config.Config):
    """Options of soft edges.

    Attributes:
        sigma: of the blur, in pixels; 0: none.
    """

    sigma: float = Field(default=1.0, ge=0)


def soft_edges(image: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """The gradient of a picture [H, W, 3] uint8, of the channel that changes most.

    Returns:
        [H, W] uint8; about 255 where a channel steps from 0 to 255.
    """
    import cv2

    smooth: np.ndarray = image.astype(np.float32)
    if sigma > 0:
        smooth = cv2.GaussianBlur(smooth, (0, 0), sigma)
    dx, dy = (cv2.Scharr(smooth, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
    slope = np.hypot(dx, dy).max(axis=2) / _full(sigma)  # [H, W]
    return np.rint(slope.clip(0, 255)).astype(np.uint8)


def _full(sigma: float) -> float:
    """What Scharr's filter answers beside a blurred step of 1, between two pixels."""
    if sigma == 0:
        return TAPS
    a, b = (0.5 * math.erf(d / sigma / math.sqrt(2)) for d in (0.5, 1.5))
    return TAPS * (a + b)


def build(options: Config) -> FromPixels:
    """The condition for validated options."""
    return FromPixels("soft_edges", options, partial(soft_edges, sigma=options.sigma))
