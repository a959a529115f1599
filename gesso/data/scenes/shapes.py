"""Outlines of the shapes, and signed distances to them.

Unit coordinates: the nominal radius is 1, x points right, y points down, and the bounding box of
every outline is centred on the origin.
"""

from __future__ import annotations

from functools import cache
from math import pi

import cv2
import numpy as np

from gesso.data.scenes.graph import SHAPES

RANGE = 1.25  # distance maps cover [-RANGE, RANGE] squared
_FINE = 1281  # pixels across in the mask that distances are measured on


def _arc(radius: float, start: float, stop: float, n: int = 96) -> np.ndarray:
    angle = np.linspace(start, stop, n, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _star(points: int, inner: float) -> np.ndarray:
    angle = np.arange(2 * points) * pi / points - pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], 1)


def _moon() -> np.ndarray:
    # The unit disc less a disc of radius 0.8 about (0.55, 0); they meet at the horns.
    offset, inner = 0.55, 0.8
    x = (1 + offset**2 - inner**2) / (2 * offset)
    outer_horn = np.arccos(x)
    inner_horn = np.arccos((x - offset) / inner)
    back = _arc(inner, 2 * pi - inner_horn, inner_horn) + np.array([offset, 0])
    return np.concatenate([_arc(1, outer_horn, 2 * pi - outer_horn), back])


def _cross(arm: float) -> np.ndarray:
    corner = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    return np.array([*corner, *[(-x, -y) for x, y in corner]], dtype=float)


# contours, and the half width of the larger side: it balances how large the shapes look
_OUTLINES: dict[str, tuple[list[np.ndarray], float]] = {
    "circle": ([_arc(1, 0, 2 * pi)], 0.97),
    "square": ([np.array([(-1.0, -1), (1, -1), (1, 1), (-1, 1)])], 0.88),
    "triangle": ([np.array([(0.0, -(3**0.5)), (1, 0), (-1, 0)])], 1.0),
    "star": ([_star(5, 0.46)], 1.0),
    "heart": ([_heart()], 0.98),
    "diamond": ([np.array([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])], 1.0),
    "cross": ([_cross(0.34)], 0.96),
    "ring": ([_arc(1, 0, 2 * pi), _arc(0.5, 0, 2 * pi)], 1.0),
    "moon": ([_moon()], 1.0),
    "hexagon": ([_arc(1, 0, 2 * pi, 6)], 1.0),
}


@cache
def outline(shape: str) -> tuple[np.ndarray, ...]:
    """Closed contours [N, 2] in unit coordinates, to be filled by the even-odd rule."""
    contours, half = _OUTLINES[shape]
    points = np.concatenate(contours)
    low, high = points.min(0), points.max(0)
    scale = 2 * half / (high - low).max()
    return tuple((c - (low + high) / 2) * scale for c in contours)


@cache
def extent(shape: str) -> tuple[float, float]:
    """Half width and half height of the bounding box in unit coordinates."""
    x, y = outline(shape)[0].max(0)
    return float(x), float(y)


@cache
def distance_map(shape: str) -> np.ndarray:
    """Signed distance to the outline, negative inside: [S, S] float32, in nominal radii.

    Row and column i stand for the coordinate (i / (S - 1) * 2 - 1) * RANGE.
    """
    scale = (_FINE - 1) / (2 * RANGE)
    mask = np.zeros((_FINE, _FINE), np.uint8)
    fixed = [np.round((c * scale + (_FINE - 1) / 2) * 256).astype(np.int32) for c in outline(shape)]
    cv2.fillPoly(mask, fixed, (1,), shift=8)
    # Distances run between pixel centres on both sides of the outline: it lies half a pixel off.
    inside, outside = (
        cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in (mask, 1 - mask)
    )
    signed = np.where(mask > 0, 0.5 - inside, outside - 0.5) / scale
    return np.ascontiguousarray(signed[::2, ::2], dtype=np.float32)


def local_distance(
    shape: str, cx: float, cy: float, radius: float, height: int, width: int
) -> np.ndarray:
    """Signed distance in pixels from the centres of a [height, width] window's pixels.

    Args:
        cx, cy: the object's centre in pixels from the window's top left corner.
        radius: nominal radius in pixels.
    """
    table = distance_map(shape)
    step = (table.shape[0] - 1) / (2 * RANGE * radius)  # table cells per pixel
    middle = (table.shape[0] - 1) / 2
    to_table = np.array(
        [
            [step, 0, middle + (0.5 - cx) * step],
            [0, step, middle + (0.5 - cy) * step],
        ]
    )
    distance = cv2.warpAffine(
        table,
        to_table,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return distance * np.float32(radius)


def coverage(
    shape: str, cx: float, cy: float, radius: float, height: int, width: int
) -> np.ndarray:
    """Share of each pixel that the shape covers, [height, width] in [0, 1]; see above."""
    alpha = 0.5 - local_distance(shape, cx, cy, radius, height, width)
    return np.clip(alpha, 0.0, 1.0, out=alpha)


@cache
def _stacked_maps(shapes: tuple[str, ...]) -> np.ndarray:
    return np.stack([distance_map(shape)[::2, ::2] for shape in shapes])


def coverages(
    shapes: tuple[str, ...],
    cx: np.ndarray,
    cy: np.ndarray,
    radius: np.ndarray,
    height: int,
    width: int,
) -> np.ndarray:
    """`coverage` of n shapes, each with its own place, at once: [n, height, width].

    Distances are those of the nearest table entry, exact to 0.004 radii.
    """
    tables = _stacked_maps(shapes)
    last = tables.shape[1] - 1
    step = last / (2 * RANGE * radius)[:, None]  # [n, 1]
    column = ((np.arange(width) + 0.5 - cx[:, None]) * step + (last / 2 + 0.5)).astype(np.int32)
    row = ((np.arange(height) + 0.5 - cy[:, None]) * step + (last / 2 + 0.5)).astype(np.int32)
    index = np.clip(row, 0, last)[:, :, None] * (last + 1) + np.clip(column, 0, last)[:, None]
    index += np.arange(len(shapes), dtype=np.int32)[:, None, None] * (last + 1) ** 2
    alpha = 0.5 - tables.ravel()[index] * radius.astype(np.float32)[:, None, None]
    return np.clip(alpha, 0.0, 1.0, out=alpha)


@cache
def moments(shape: str) -> tuple[float, float, float]:
    """Area and centroid (x, y) in unit coordinates."""
    inside = distance_map(shape) < 0
    axis = np.linspace(-RANGE, RANGE, inside.shape[0])
    area = inside.sum() * (axis[1] - axis[0]) ** 2
    return (
        float(area),
        float((inside * axis[None, :]).sum() / inside.sum()),
        float((inside * axis[:, None]).sum() / inside.sum()),
    )


def warm() -> None:
    """Build every table now rather than on first use."""
    for shape in SHAPES:
        moments(shape)
