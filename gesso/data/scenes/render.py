"""Scene graph -> picture, at any size: each object's coverage from its signed distance."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gesso.data.scenes.font import INK, word_dots
from gesso.data.scenes.graph import BACKGROUNDS, COLORS, TONES, Background, Object, Scene
from gesso.data.scenes.shapes import coverage, extent
from gesso.types import GessoError


def render(scene: Scene, height: int = 64, width: int = 64) -> np.ndarray:
    """Paint a scene: [height, width, 3] uint8 RGB, anti-aliased.

    Raises:
        GessoError: a side shorter than 16 pixels.
    """
    if min(height, width) < 16:
        raise GessoError(f"Cannot render a scene at {height}x{width}: sides start at 16 pixels.")
    picture = background_colors(scene.background, height, width).copy()
    for item in scene.objects:
        (y, x), alpha = local_coverage(item, height, width)
        window = picture[y : y + alpha.shape[0], x : x + alpha.shape[1]]
        paint = _paint(item, x, y, alpha.shape, height, width)
        window += alpha[..., None] * (paint - window)
    if scene.word:
        dots = word_dots(scene.word, height, width)
        picture[dots[:, 0], dots[:, 1]] = INK
    return (picture + 0.5).astype(np.uint8)


@lru_cache(maxsize=64)
def background_colors(background: Background, height: int, width: int) -> np.ndarray:
    """[height, width, 3] float32 in 0..255; shared, so copy before writing."""
    start = np.array(BACKGROUNDS[background.name], np.float32)
    if not background.to:
        return np.full((height, width, 3), start, np.float32)
    end = np.array(BACKGROUNDS[background.to], np.float32)
    steps = height if background.direction == "down" else width
    share = ((np.arange(steps, dtype=np.float32) + 0.5) / steps)[:, None]
    ramp = start + share * (end - start)  # [steps, 3]
    line = ramp[:, None] if background.direction == "down" else ramp[None]
    return np.ascontiguousarray(np.broadcast_to(line, (height, width, 3)))


def pixel_box(item: Object, height: int, width: int) -> tuple[float, float, float, float]:
    """The object's bounding box x0, y0, x1, y1 in pixels."""
    half_x, half_y = (item.radius * min(height, width) * e for e in extent(item.shape))
    cx, cy = item.x * width, item.y * height
    return cx - half_x, cy - half_y, cx + half_x, cy + half_y


def local_coverage(item: Object, height: int, width: int) -> tuple[tuple[int, int], np.ndarray]:
    """The object's window: its top left pixel (y, x), and coverage [h, w] in [0, 1]."""
    x0, y0, x1, y1 = pixel_box(item, height, width)
    left, top = max(int(x0 - 1), 0), max(int(y0 - 1), 0)
    right, bottom = min(int(x1 + 2), width), min(int(y1 + 2), height)
    radius = item.radius * min(height, width)
    cx, cy = item.x * width - left, item.y * height - top
    return (top, left), coverage(item.shape, cx, cy, radius, bottom - top, right - left)


def _paint(
    item: Object, left: int, top: int, shape: tuple[int, ...], height: int, width: int
) -> np.ndarray:
    """The object's colours over its window: [3], or [h, w, 3] for a texture."""
    base = np.array(COLORS[item.color], np.float32)
    if item.texture == "solid":
        return base
    radius = item.radius * min(height, width)
    # object coordinates of the pixel centres, in nominal radii
    v = (np.arange(shape[0], dtype=np.float32) + 0.5 + top - item.y * height) / radius
    u = (np.arange(shape[1], dtype=np.float32) + 0.5 + left - item.x * width) / radius
    share = texture_share(item.texture, u[None], v[:, None], 1 / radius)
    return base + share[..., None] * (np.array(TONES[item.color], np.float32) - base)


PERIOD = 0.64  # of all textures, in nominal radii


def texture_share(texture: str, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
    """How much of the second tone lies at (u, v), both in nominal radii, in [0, 1].

    Args:
        pixel: a pixel's width in nominal radii, over which edges are smoothed.
    """
    if texture == "striped":  # horizontal bars
        distance = np.abs((v / PERIOD) % 1 - 0.5) * PERIOD - 0.25 * PERIOD + 0 * u
    elif texture == "checkered":
        a = np.abs((u / PERIOD) % 1 - 0.5) * PERIOD - 0.25 * PERIOD
        b = np.abs((v / PERIOD) % 1 - 0.5) * PERIOD - 0.25 * PERIOD
        distance = np.where(a * b > 0, 1, -1) * np.minimum(np.abs(a), np.abs(b))
    else:  # dotted
        a = ((u / PERIOD) % 1 - 0.5) * PERIOD
        b = ((v / PERIOD) % 1 - 0.5) * PERIOD
        distance = np.hypot(a, b) - 0.3 * PERIOD
    return np.clip(0.5 - distance / pixel, 0, 1)
