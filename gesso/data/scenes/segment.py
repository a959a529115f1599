"""Picture -> coloured regions on a smooth background, with soft coverage: the reader's first half.

Every pixel is taken as a mixture: background + coverage * (object's colour - background). The
background is a plane in RGB fitted to the border; colours are told apart in CIELAB.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from gesso.data.scenes.graph import COLORS, TONES

DIFFERENT = 11.0  # CIELAB distance from the background above which a pixel may be an object's
MIN_AREA = 0.003  # of the picture; smaller regions are specks

_COLOR_NAMES = list(COLORS)
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_BOX3 = np.ones((3, 3), np.uint8)
_BOX5 = np.ones((5, 5), np.uint8)
_BOX9 = np.ones((9, 9), np.uint8)


@dataclass(slots=True)
class Region:
    """One connected piece of one colour.

    Attributes:
        color: name.
        left, top: the window's place in the picture.
        alpha: [h, w] float32, how much of each pixel the region covers.
        rgb: [3] the colour measured inside.
        textured: whether the colour's second tone fills a share of the inside.
    """

    color: str
    left: int
    top: int
    alpha: np.ndarray
    rgb: np.ndarray
    textured: bool


@dataclass(slots=True)
class Ground:
    """The fitted background: [H, W, 3] float32, and the border's deviation from it (RGB steps)."""

    rgb: np.ndarray
    deviation: float


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """[..., 3] RGB in 0..255 -> CIELAB (L in 0..100)."""
    flat = np.ascontiguousarray(rgb, dtype=np.float32).reshape(-1, 1, 3) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(rgb.shape)


PALETTE_LAB = to_lab(np.array([*COLORS.values(), *TONES.values()], np.float32))  # [20, 3]


@cache
def _nearest_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each RGB in steps of 8: CIELAB, the nearest of 20 tones and its distance."""
    steps = np.arange(32, dtype=np.float32) * 8 + 3.5
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = to_lab(cube)
    distance = np.linalg.norm(lab[:, None] - PALETTE_LAB[None], axis=-1)  # [32768, 20]
    nearest = distance.argmin(1)
    return lab, nearest.astype(np.uint8), distance.min(1).astype(np.float32)


@cache
def _border_fit(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat border indices, their plane coordinates [N, 3], and those of all pixels [H * W, 3]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    plane = np.stack([np.ones_like(x), x / width - 0.5, y / height - 0.5], -1).reshape(-1, 3)
    edge = np.zeros((height, width), bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    index = np.flatnonzero(edge)
    return index, plane[index], plane


def fit_ground(picture: np.ndarray) -> Ground:
    """Fit the background plane to the border of a [H, W, 3] float32 picture, robustly."""
    height, width = picture.shape[:2]
    index, near, everywhere = _border_fit(height, width)
    border = picture.reshape(-1, 3)[index]
    middle = np.median(border, axis=0)
    off = np.abs(border - middle).max(1)
    if np.percentile(off, 95) < 3:  # a plain background, the common case
        return Ground(np.broadcast_to(middle, picture.shape).astype(np.float32), float(off.mean()))
    kept = np.ones(len(border), bool)
    for _ in range(4):
        weights = np.linalg.lstsq(near[kept], border[kept], rcond=None)[0]
        off = np.abs(border - near @ weights).max(1)
        kept = off <= max(2.5 * float(np.median(off)), 4.0)
    ground = np.clip(everywhere @ weights, 0, 255).reshape(picture.shape)
    return Ground(ground.astype(np.float32), float(np.median(off)))


def find_regions(picture: np.ndarray, ground: Ground) -> list[Region]:
    """Coloured regions of a [H, W, 3] float32 picture in 0..255."""
    if ground.deviation > 2.5:  # noise: judge colours on a slightly smoothed picture
        picture = cv2.GaussianBlur(picture, (3, 3), 0.8)
    quantised = (picture.astype(np.uint8) >> 3).astype(np.int32)
    key = (quantised[..., 0] << 10) | (quantised[..., 1] << 5) | quantised[..., 2]
    lab_table, nearest, _ = _nearest_table()
    label = nearest[key]
    apart = lab_table[key] - to_lab(ground.rgb)
    different = np.einsum("hwc,hwc->hw", apart, apart) > DIFFERENT**2
    if not different.any():
        return []
    contrast = picture - ground.rgb
    counts = np.bincount(label[different] % 10, minlength=10)
    cores: dict[int, np.ndarray] = {}
    for color in np.flatnonzero(counts >= 8):
        core = cv2.erode(((label % 10 == color) & different).astype(np.uint8), _CROSS)
        if np.count_nonzero(core) >= 3:
            cores[int(color)] = core
    regions: list[Region] = []
    explained = np.zeros(label.shape, bool)
    kept: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, bool]] = []
    for color in sorted(cores, key=lambda c: -int(np.count_nonzero(cores[c]))):
        # Blurred borders pass through other colours; a larger neighbour explains those away.
        core = cores[color] * ~explained
        if np.count_nonzero(core) < 3:
            continue
        alpha, rgb, textured, fits = _coverage(picture, contrast, ground, label, core, color)
        near = cv2.dilate(core, _BOX9).astype(bool)
        explained |= near & fits
        kept.append((color, core, alpha, rgb, textured))
    for color, core, alpha, rgb, textured in kept:
        for other, other_core, *_ in kept:
            if other != color:
                alpha = np.where(cv2.dilate(other_core, _BOX3) > 0, 0, alpha)
        regions += _pieces(_COLOR_NAMES[color], core, alpha, rgb, textured)
    return regions


def _coverage(
    picture: np.ndarray,
    contrast: np.ndarray,
    ground: Ground,
    label: np.ndarray,
    core: np.ndarray,
    color: int,
) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray]:
    """(alpha [H, W], colour [3], textured, where the mixture explains the pixel [H, W])."""
    inside = core > 0
    first = inside & (label == color)
    second = inside & (label == color + 10)
    textured = np.count_nonzero(second) > 0.12 * np.count_nonzero(inside)
    main = first if first.any() else inside
    rgb = np.median(picture[main], axis=0)
    alpha, rest = _project(contrast, rgb - ground.rgb)
    if textured:
        tone, tone_rest = _project(contrast, np.median(picture[second], axis=0) - ground.rgb)
        alpha, rest = np.maximum(alpha, tone), np.minimum(rest, tone_rest)
    size = np.einsum("hwc,hwc->hw", contrast, contrast)
    return alpha, rgb, textured, (rest < np.maximum(0.1 * size, 400.0)) & (alpha > 0.03)


def _project(contrast: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of `direction` in each pixel, in [0, 1], and the squared rest."""
    dot = np.einsum("hwc,hwc->hw", contrast, direction)
    norm = np.maximum(np.einsum("hwc,hwc->hw", direction, direction), 1.0)
    alpha = np.clip(dot / norm, 0, 1)
    rest = contrast - alpha[..., None] * direction
    return alpha.astype(np.float32), np.einsum("hwc,hwc->hw", rest, rest)


def _pieces(
    color: str, core: np.ndarray, alpha: np.ndarray, rgb: np.ndarray, textured: bool
) -> list[Region]:
    """Connected pieces of one colour's coverage that hold some of its core."""
    height, width = alpha.shape
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (alpha > 0.42).astype(np.uint8), connectivity=8
    )
    cored = np.bincount(labels[core > 0], minlength=count)
    found = []
    for i in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[i])
        if area < MIN_AREA * height * width or cored[i] < 3:
            continue
        left, top = max(x - 3, 0), max(y - 3, 0)
        window = np.s_[top : min(y + h + 3, height), left : min(x + w + 3, width)]
        own = cv2.dilate((labels[window] == i).astype(np.uint8), _BOX5) > 0
        rest = ((labels[window] != i) & (labels[window] > 0)).astype(np.uint8)
        own &= cv2.dilate(rest, _BOX3) == 0
        soft = np.where(own & (alpha[window] > 0.06), alpha[window], 0).astype(np.float32)
        found.append(Region(color, left, top, soft, rgb, textured))
    return found
