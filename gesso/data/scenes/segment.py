"""Picture -> coloured regions on a smooth background, with soft coverage: the reader's first half.

Every pixel is taken as a mixture: background + coverage * (object's colour - background). The
background is a plane in RGB fitted to the border; colours are told apart in CIELAB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from gesso.data.scenes.graph import COLORS, TONES
from gesso.data.scenes.regions import Region, separate

DIFFERENT = 14.0  # CIELAB distance from the background above which a pixel may be an object's
MIN_AREA = 0.006  # of the shorter side squared; smaller regions are specks
MIN_CORE = 3  # pixels

# Mixtures are solved in luma and half-weighted chroma: JPEG and autoencoders blur chroma more.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_MIX = np.stack([1.7 * _LUMA, *(0.35 * (np.eye(3, dtype=np.float32)[[0, 2]] - _LUMA))])

_COLOR_NAMES = list(COLORS)
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_BOX3 = np.ones((3, 3), np.uint8)
_BOX5 = np.ones((5, 5), np.uint8)


@dataclass(slots=True)
class Ground:
    """The fitted background.

    Attributes:
        rgb: [H, W, 3] float32.
        plain: whether it is one colour.
        deviation: the border's median deviation from it, in RGB steps.
    """

    rgb: np.ndarray
    plain: bool
    deviation: float

    def window(self, at: tuple[slice, slice]) -> Ground:
        """The background behind a window."""
        return Ground(self.rgb[at], self.plain, self.deviation)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """[..., 3] RGB in 0..255 -> CIELAB (L in 0..100)."""
    flat = np.ascontiguousarray(rgb, dtype=np.float32).reshape(-1, 1, 3) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(rgb.shape)


PALETTE_LAB = to_lab(np.array([*COLORS.values(), *TONES.values()], np.float32))  # [20, 3]


@cache
def _nearest_table() -> tuple[np.ndarray, np.ndarray]:
    """For each RGB in steps of 8: CIELAB [32768, 3] and the nearest of 20 tones [32768]."""
    steps = np.arange(32, dtype=np.float32) * 8 + 3.5
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = to_lab(cube)
    distance = np.linalg.norm(lab[:, None] - PALETTE_LAB[None], axis=-1)  # [32768, 20]
    return lab, distance.argmin(1).astype(np.uint8)


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
        return Ground(np.full(picture.shape, middle, np.float32), True, float(np.median(off)))
    kept = np.ones(len(border), bool)
    for _ in range(4):
        weights = np.linalg.lstsq(near[kept], border[kept], rcond=None)[0]
        off = np.abs(border - near @ weights).max(1)
        kept = off <= max(2.5 * float(np.median(off)), 4.0)
    ground = np.clip(everywhere @ weights, 0, 255).reshape(picture.shape)
    return Ground(ground.astype(np.float32), False, float(np.median(off)))


def find_regions(picture: np.ndarray, ground: Ground, textures: bool = True) -> list[Region]:
    """Coloured regions of a [H, W, 3] float32 picture in 0..255, the largest colours first.

    Args:
        textures: whether objects may have two tones of one colour.
    """
    if ground.deviation > 2.5:  # noise: judge colours on a slightly smoothed picture
        picture = cv2.GaussianBlur(picture, (3, 3), 0.8)
    label, different = _label(picture, ground)
    contrast = cv2.transform(picture - ground.rgb, _MIX)
    explained = np.zeros(label.shape, bool)
    regions: list[Region] = []
    for color, body, core in _colors(label, different):
        count, pieces, stats, _ = cv2.connectedComponentsWithStats(body, connectivity=8)
        for i in range(1, count):
            window = _around(stats[i], label.shape)
            # Blurred borders pass through other colours; a larger neighbour explains those away.
            own_core = core[window] & (pieces[window] == i) & ~explained[window]
            if np.count_nonzero(own_core) < MIN_CORE:
                continue
            piece = _Piece(picture[window], contrast[window], ground.window(window), own_core)
            tones = label[window] >= len(COLORS) if textures else None
            region, fits = piece.solve(tones, body[window])
            explained[window] |= fits
            if region.area >= MIN_AREA * min(label.shape) ** 2:
                region.color = _COLOR_NAMES[color]
                region.left, region.top = window[1].start, window[0].start
                regions.append(region)
    separate(regions)
    return regions


def _label(picture: np.ndarray, ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's nearest of 20 tones, and whether it differs from the background; [H, W]."""
    steps = picture.astype(np.uint8) >> 3
    key = (steps @ np.array([1024, 32, 1], np.int32)).astype(np.int32)
    lab, nearest = _nearest_table()
    behind = to_lab(ground.rgb[:1, :1] if ground.plain else ground.rgb)
    apart = cv2.absdiff(lab[key], np.broadcast_to(behind, picture.shape).copy())
    return nearest[key], np.linalg.norm(apart, axis=2) > DIFFERENT


def _colors(
    label: np.ndarray, different: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Colour, its pixels [H, W] uint8, those with equal neighbours [H, W] bool; largest first."""
    color_of = label % len(COLORS)
    counts = np.bincount(color_of[different], minlength=len(COLORS))
    found = []
    for color in np.flatnonzero(counts >= 8).tolist():
        body = ((color_of == color) & different).view(np.uint8)
        core = cv2.erode(body, _CROSS)
        size = np.count_nonzero(core)
        if size >= MIN_CORE:
            found.append((size, color, body, core.view(bool)))
    found.sort(key=lambda item: -item[0])
    return (item[1:] for item in found)


def _around(stats: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The window of a connected component, with room for thin parts of another label."""
    x, y, w, h = (int(v) for v in stats[:4])
    room = 4 + max(w, h) // 4
    return (
        slice(max(y - room, 0), min(y + h + room, shape[0])),
        slice(max(x - room, 0), min(x + w + room, shape[1])),
    )


class _Piece:
    """Takes the pixels of a window apart into background and one object's colour."""

    def __init__(
        self, picture: np.ndarray, contrast: np.ndarray, ground: Ground, core: np.ndarray
    ) -> None:
        self.picture, self.contrast, self.ground, self.core = picture, contrast, ground, core
        self.size = (contrast**2).sum(2)

    def solve(self, tones: np.ndarray | None, body: np.ndarray) -> tuple[Region, np.ndarray]:
        """The region, and which pixels the mixture explains [h, w].

        Args:
            tones: [h, w] bool, where the second tone is nearest; None: solid colours only.
            body: [h, w] uint8, pixels of the colour.
        """
        textured, second = False, self.core
        if tones is not None:
            inner = cv2.erode(self.core.view(np.uint8), _CROSS).view(bool)
            inner = inner if np.count_nonzero(inner) >= 6 else self.core
            second = self.core & tones
            share = np.count_nonzero(inner & tones) / np.count_nonzero(inner)
            textured = bool(0.06 < share < 0.95)
        first = self.core & ~second if textured else self.core
        rgb = np.median(self.picture[first if first.any() else self.core], axis=0)
        alpha, rest = self._project(rgb)
        share_map = None
        if textured:
            tone_rgb = np.median(self.picture[second], axis=0)
            step = (tone_rgb - rgb) / max(float((tone_rgb - rgb) @ (tone_rgb - rgb)), 1.0)
            share_map = np.clip((self.picture - rgb) @ step, 0, 1)
            tone, tone_rest = self._project(tone_rgb)
            # Between the two tones lie mixtures that look like the background: fill those gaps,
            # but leave the border to the mixtures.
            closed = cv2.erode(cv2.morphologyEx(body, cv2.MORPH_CLOSE, _BOX3), _CROSS)
            alpha, rest = np.maximum(np.maximum(alpha, tone), closed), np.minimum(rest, tone_rest)
        _, pieces = cv2.connectedComponents((alpha > 0.42).view(np.uint8), connectivity=8)
        hit = np.bincount(pieces[self.core]) > 0
        hit[0] = False
        mine = np.append(hit, np.zeros(pieces.max() + 1 - len(hit), bool))[pieces]
        own = cv2.dilate(mine.view(np.uint8), _BOX5) > 0
        foreign = (pieces > 0) & ~mine
        if foreign.any():
            own &= cv2.dilate(foreign.view(np.uint8), _BOX3) == 0
        fits = own & (rest < np.maximum(0.1 * self.size, 400.0)) & (alpha > 0.03)
        soft = np.where(own & (alpha > 0.06), alpha, 0).astype(np.float32)
        return Region("", 0, 0, soft, self.core, rgb, share_map), fits

    def _project(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Share of a colour in each pixel, in [0, 1], and the squared rest; [h, w]."""
        if self.ground.plain:
            direction = _MIX @ (rgb - self.ground.rgb[0, 0])
            norm = max(float(direction @ direction), 1.0)
            dot = cv2.transform(self.contrast, direction[None])
        else:
            towards = cv2.transform(rgb - self.ground.rgb, _MIX)
            norm = np.maximum((towards**2).sum(2), 1.0)
            dot = (self.contrast * towards).sum(2)
        alpha = np.clip(dot / norm, 0, 1)
        return alpha, self.size - alpha * (2 * dot - alpha * norm)
