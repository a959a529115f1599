"""The reader: picture -> scene graph, with confidences. The world's exact judge.

It knows the palette and the outlines and nothing about any model: colours are told apart in
CIELAB, each region is compared with every shape placed so that area and centroid agree (blur and
noise change neither), and the best overlap decides. Its own error is measured in docs/scenes.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from gesso.data.scenes.graph import SIZES, Box, get_level
from gesso.data.scenes.segment import (
    PALETTE_LAB,
    Ground,
    Region,
    find_regions,
    fit_ground,
    to_lab,
)
from gesso.data.scenes.shapes import coverage, extent, moments
from gesso.types import GessoError

WORKING_SIDE = 96  # larger pictures are read at this shorter side


@dataclass(slots=True)
class Detection:
    """One object that the reader found.

    Attributes:
        shape, color, size, texture: names of the scene world.
        box: x0, y0, x1, y1 in pixels.
        mask: [H, W] bool.
        confidence: in [0, 1]; how often such a reading has shape and colour right.
        overlap: soft IoU of the region with the shape it was read as.
    """

    shape: str
    color: str
    size: str
    texture: str
    box: Box
    mask: np.ndarray
    confidence: float
    overlap: float


@dataclass(slots=True)
class Reading:
    """What a picture shows: objects by falling confidence, background name, rendered word."""

    objects: list[Detection]
    background: str
    word: str = ""


def read(picture: np.ndarray, level: int = 3) -> Reading:
    """Read a picture of the scene world.

    Args:
        picture: [H, W, 3] uint8 RGB, sides from 16 pixels.
        level: whose shapes, textures and words are looked for.

    Raises:
        GessoError: not such an array, or no such level.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise GessoError(
            f"The reader needs a [H, W, 3] uint8 picture, not {picture.dtype} "
            f"{list(picture.shape)}: convert it to RGB bytes first."
        )
    world = get_level(level)
    height, width = picture.shape[:2]
    scale = min(1.0, WORKING_SIDE / min(height, width))
    if scale < 1:
        shrunk = (round(width * scale), round(height * scale))
        picture = cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA)
    pixels = picture.astype(np.float32)
    ground = fit_ground(pixels)
    side = min(pixels.shape[:2])
    found = []
    for region in find_regions(pixels, ground):
        fit = fit_shape(region, world.shapes)
        if fit is not None:
            found.append(_detection(region, fit, side, (height, width), pixels.shape[:2]))
    found.sort(key=lambda d: -d.confidence)
    return Reading(found, "grey")


@dataclass(slots=True)
class Fit:
    """The best shape for a region: centre and nominal radius in window pixels."""

    shape: str
    cx: float
    cy: float
    radius: float
    overlap: float
    margin: float  # by how much the overlap exceeds the second best shape's


def fit_shape(region: Region, shapes: tuple[str, ...]) -> Fit | None:
    """Place every shape by area and centroid, and take the one that overlaps best."""
    alpha = region.alpha
    height, width = alpha.shape
    area = float(alpha.sum())
    if area < 4:
        return None
    x = float(alpha.sum(0) @ (np.arange(width) + 0.5)) / area
    y = float(alpha.sum(1) @ (np.arange(height) + 0.5)) / area
    fits = []
    for shape in shapes:
        unit_area, unit_x, unit_y = moments(shape)
        radius = (area / unit_area) ** 0.5
        cx, cy = x - unit_x * radius, y - unit_y * radius
        model = coverage(shape, cx, cy, radius, height, width)
        common = float(np.minimum(alpha, model).sum())
        fits.append((common / (area + float(model.sum()) - common), shape, cx, cy, radius))
    fits.sort(reverse=True)
    overlap, shape, cx, cy, radius = fits[0]
    return Fit(shape, cx, cy, radius, overlap, overlap - fits[1][0])


def _detection(
    region: Region, fit: Fit, side: int, full: tuple[int, int], working: tuple[int, int]
) -> Detection:
    ratio_y, ratio_x = full[0] / working[0], full[1] / working[1]
    half_x, half_y = (fit.radius * e for e in extent(fit.shape))
    cx, cy = region.left + fit.cx, region.top + fit.cy
    box = (
        (cx - half_x) * ratio_x,
        (cy - half_y) * ratio_y,
        (cx + half_x) * ratio_x,
        (cy + half_y) * ratio_y,
    )
    alpha = np.zeros(working, np.float32)
    window = np.s_[
        region.top : region.top + region.alpha.shape[0],
        region.left : region.left + region.alpha.shape[1],
    ]
    alpha[window] = region.alpha
    if full != working:
        alpha = cv2.resize(alpha, full[::-1], interpolation=cv2.INTER_LINEAR)
    nominal = fit.radius / side
    size = min(SIZES, key=lambda s: abs(np.log(nominal / np.mean(SIZES[s]))))
    return Detection(
        fit.shape, region.color, size, "solid", box, alpha > 0.5, fit.overlap, fit.overlap
    )
