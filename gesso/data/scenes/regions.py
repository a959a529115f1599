"""Regions of one colour: the reader's candidates for objects, and how they are kept apart."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CLAIM = 10  # pixels of core from which a colour keeps its neighbourhood from other colours

_BOX3 = np.ones((3, 3), np.uint8)
_BOX5 = np.ones((5, 5), np.uint8)


@dataclass(slots=True)
class Region:
    """One connected piece of one colour.

    Attributes:
        color: name.
        left, top: the window's place in the picture.
        alpha: [h, w] float32, how much of each pixel the region covers.
        core: [h, w] bool, pixels surely inside.
        rgb: [3] the colour measured inside.
        tones: [h, w] float32, share of the second tone; None for a solid object.
    """

    color: str
    left: int
    top: int
    alpha: np.ndarray
    core: np.ndarray
    rgb: np.ndarray
    tones: np.ndarray | None

    @property
    def area(self) -> float:
        """Covered area in pixels."""
        return float(self.alpha.sum())


def separate(regions: list[Region]) -> None:
    """Take from each region the neighbourhood of other regions' cores."""
    for a in regions:
        for b in regions:
            if a is b or np.count_nonzero(b.core) < CLAIM:
                continue
            top, left = max(a.top, b.top), max(a.left, b.left)
            bottom = min(a.top + a.alpha.shape[0], b.top + b.alpha.shape[0])
            right = min(a.left + a.alpha.shape[1], b.left + b.alpha.shape[1])
            if top < bottom and left < right:
                taken = b.core[top - b.top : bottom - b.top, left - b.left : right - b.left]
                taken = cv2.dilate(taken.astype(np.uint8), _BOX3) > 0
                a.alpha[top - a.top : bottom - a.top, left - a.left : right - a.left][taken] = 0


def near(a: Region, b: Region, gap: int) -> bool:
    """Whether the cores' boxes of two regions are at most `gap` pixels apart on both axes."""
    return all(
        start_a - gap <= stop_b and start_b - gap <= stop_a
        for (start_a, stop_a), (start_b, stop_b) in zip(_extents(a), _extents(b), strict=True)
    )


def _extents(region: Region) -> tuple[tuple[int, int], tuple[int, int]]:
    solid = region.alpha > 0.5
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    if len(rows) == 0:
        return (-1000, -1000), (-1000, -1000)  # near nothing
    top, left = region.top, region.left
    return (top + int(rows[0]), top + int(rows[-1])), (
        left + int(columns[0]),
        left + int(columns[-1]),
    )


def join(a: Region, b: Region) -> Region:
    """Both regions as one, the gap between them closed, in the colour of the larger."""
    top, left = min(a.top, b.top), min(a.left, b.left)
    bottom = max(a.top + a.alpha.shape[0], b.top + b.alpha.shape[0])
    right = max(a.left + a.alpha.shape[1], b.left + b.alpha.shape[1])
    shape = (bottom - top, right - left)
    alpha, core = np.zeros(shape, np.float32), np.zeros(shape, bool)
    tones = None if a.tones is None or b.tones is None else np.zeros(shape, np.float32)
    for part in (a, b):
        y, x = part.top - top, part.left - left
        at = np.s_[y : y + part.alpha.shape[0], x : x + part.alpha.shape[1]]
        alpha[at] = np.maximum(alpha[at], part.alpha)
        core[at] |= part.core
        if tones is not None:
            tones[at] = np.where(part.alpha > 0.5, np.asarray(part.tones), tones[at])
    alpha = cv2.morphologyEx(alpha, cv2.MORPH_CLOSE, _BOX5).astype(np.float32)
    larger = a if a.area >= b.area else b
    return Region(a.color, left, top, alpha, core, larger.rgb, tones)
