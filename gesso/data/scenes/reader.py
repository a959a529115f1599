"""The reader: picture -> scene graph, with confidences. The world's exact judge.

It knows the palette and the outlines and nothing about any model: colours are told apart in
CIELAB, each region is compared with every shape placed so that area and centroid agree (blur and
noise change neither), and the best overlap decides. Its own error is measured in docs/scenes.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from gesso.data.scenes.graph import BACKGROUNDS, COLORS, SIZES, TEXTURES, Background, Box, get_level
from gesso.data.scenes.regions import Region, join, near
from gesso.data.scenes.render import texture_share
from gesso.data.scenes.segment import PALETTE_LAB, Ground, find_regions, fit_ground, to_lab
from gesso.data.scenes.shapes import coverages, extent, moments
from gesso.data.scenes.words import find_word
from gesso.types import GessoError

WORKING_SIDE = 96  # larger pictures are read at this shorter side
_BACKGROUND_LAB = to_lab(np.array(list(BACKGROUNDS.values()), np.float32))
MIN_OVERLAP = 0.5  # with the best shape; below, a region is no object
SMALLEST = SIZES["small"][0]
FRAGMENT_GAP = 3  # pixels between fragments of one object, at most
BETTER = 0.03  # by how much the union must overlap better
SAME_PLACE = 0.5  # box IoU above which two detections are one object


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
    """What a picture shows: objects by falling confidence, background, rendered word."""

    objects: list[Detection]
    background: Background
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
    word = ""
    if world.words:
        # Dots are drawn at whole pixels of the full picture, then shrunk with it.
        dot = max(1, min(height, width) // 64) * scale
        word, window = find_word(pixels, ground, world.words, dot)
        pixels[window] = ground.rgb[window]
    regions = find_regions(pixels, ground, textures=len(world.textures) > 1)
    found = [
        _detection(region, fit, ground, (height, width))
        for region, fit in _joined(regions, world.shapes)
        if fit.overlap > MIN_OVERLAP
    ]
    found.sort(key=lambda d: -d.confidence)
    return Reading(_distinct(found), _background(ground), word)


@dataclass(slots=True)
class Fit:
    """The best shape for a region: centre and nominal radius in window pixels."""

    shape: str
    cx: float
    cy: float
    radius: float
    overlap: float
    margin: float  # by how much the overlap exceeds the second best shape's


def fit_shape(region: Region, shapes: tuple[str, ...]) -> Fit:
    """Place every shape by area and centroid, and take the one that overlaps best."""
    alpha = region.alpha
    height, width = alpha.shape
    area = max(region.area, 1e-6)
    x = float(alpha.sum(0) @ (np.arange(width) + 0.5)) / area
    y = float(alpha.sum(1) @ (np.arange(height) + 0.5)) / area
    spread = blur_width(alpha)
    unit = np.array([moments(shape) for shape in shapes])  # [n, 3]: area, x, y
    radius = np.sqrt(area / unit[:, 0])
    cx, cy = x - unit[:, 1] * radius, y - unit[:, 2] * radius
    models = coverages(shapes, cx, cy, radius, height, width)
    if spread > 0.5:
        blurred = cv2.GaussianBlur(models.transpose(1, 2, 0), (0, 0), spread)
        models = blurred.transpose(2, 0, 1)
    common = np.minimum(alpha, models).sum((1, 2))
    overlap = common / (area + models.sum((1, 2)) - common)
    second, best = np.argsort(overlap)[-2:]
    return Fit(
        shapes[best],
        float(cx[best]),
        float(cy[best]),
        float(radius[best]),
        float(overlap[best]),
        float(overlap[best] - overlap[second]),
    )


def _joined(regions: list[Region], shapes: tuple[str, ...]) -> list[tuple[Region, Fit]]:
    """Regions with their shapes; fragments of one object are put together.

    Two neighbours of one colour are joined where the union looks more like a shape than either.
    """
    fitted = [(region, fit_shape(region, shapes)) for region in regions]
    for i in range(len(regions)):
        for j in range(len(fitted) - 1, i, -1):
            (a, fit_a), (b, fit_b) = fitted[i], fitted[j]
            if a.color == b.color and near(a, b, FRAGMENT_GAP):
                union = join(a, b)
                fit = fit_shape(union, shapes)
                if fit.overlap > max(fit_a.overlap, fit_b.overlap) + BETTER:
                    fitted[i] = union, fit
                    del fitted[j]
    return fitted


def blur_width(alpha: np.ndarray) -> float:
    """Standard deviation in pixels of the blur on a region's borders, from its steepest slopes.

    A step through a Gaussian blur rises by 1 / (sqrt(2 pi) sigma) per pixel at most.
    """
    across = np.abs(np.diff(alpha, axis=1)).max(1)
    down = np.abs(np.diff(alpha, axis=0)).max(0)
    slopes = np.sort(np.concatenate([across[across > 0.1], down[down > 0.1]]))
    # Thin parts of a shape rise less than its long borders: look at the steeper half.
    return 0.4 / float(slopes[len(slopes) * 3 // 4]) if len(slopes) else 0.0


def _background(ground: Ground) -> Background:
    """The nearest named background; a gradient if opposite borders have different names."""
    rgb = ground.rgb
    ends = {
        "down": (rgb[0].mean(0), rgb[-1].mean(0)),
        "right": (rgb[:, 0].mean(0), rgb[:, -1].mean(0)),
    }
    direction = max(ends, key=lambda d: float(np.abs(ends[d][0] - ends[d][1]).sum()))
    names = []
    for end in ends[direction]:
        off = np.linalg.norm(to_lab(end[None]) - _BACKGROUND_LAB, axis=1)
        names.append(list(BACKGROUNDS)[int(off.argmin())])
    if names[0] == names[1]:
        return Background(names[0])
    return Background(names[0], names[1], direction)


def _color(region: Region) -> tuple[str, float, float]:
    """(name, CIELAB distance to it, to the next best); textured objects keep their label."""
    off = np.linalg.norm(to_lab(region.rgb[None]) - PALETTE_LAB[: len(COLORS)], axis=1)
    names = list(COLORS)
    index = int(off.argmin()) if region.tones is None else names.index(region.color)
    return names[index], float(off[index]), float(np.delete(off, index).min())


def _confidence(fit: Fit, color: tuple[float, float], contrast: float, side: int) -> float:
    """Probability that shape and colour are right.

    A logistic model of five features, fitted to readings of renders that were blurred,
    compressed, made noisy, cut and bent (none of them a model's output).
    """
    nearest, second = color
    score = (
        -2.5 * np.log(1.02 - fit.overlap)
        + 28.4 * min(fit.margin, 0.15)
        + 5.0 * min((second - nearest) / (second + nearest), 0.5)
        + 5.2 * min(contrast / 30, 1.0)
        + 21.7 * min(fit.radius / side / SMALLEST, 1.0)
        - 32.9
    )
    return float(1 / (1 + np.exp(-score)))


def _texture(region: Region, fit: Fit) -> str:
    """The texture whose pattern, laid on the fitted shape, agrees best with the second tone."""
    if region.tones is None:
        return "solid"
    inside = region.alpha > 0.8
    if np.count_nonzero(inside) < 4:
        return "solid"
    height, width = inside.shape
    u = (np.arange(width) + 0.5 - fit.cx) / fit.radius
    v = (np.arange(height) + 0.5 - fit.cy) / fit.radius
    tones = region.tones[inside] - region.tones[inside].mean()
    scores = {}
    for texture in TEXTURES[1:]:
        expected = texture_share(texture, u[None], v[:, None], 1 / fit.radius)[inside]
        expected = expected - expected.mean()
        norm = float(np.linalg.norm(expected) * np.linalg.norm(tones))
        scores[texture] = float(tones @ expected) / max(norm, 1e-6)
    return max(scores, key=lambda t: scores[t])


def _distinct(found: list[Detection]) -> list[Detection]:
    """Of detections in one place, the most confident; the list is sorted by confidence."""
    kept: list[Detection] = []
    for new in found:
        if all(box_iou(new.box, old.box) <= SAME_PLACE for old in kept):
            kept.append(new)
    return kept


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height)


def _detection(region: Region, fit: Fit, ground: Ground, full: tuple[int, int]) -> Detection:
    """The detection in pixels of the full picture, height and width `full`."""
    working = ground.rgb.shape[:2]
    side = min(working)
    left, top, (height, width) = region.left, region.top, region.alpha.shape
    half_x, half_y = (fit.radius * e for e in extent(fit.shape))
    cx, cy = left + fit.cx, top + fit.cy
    ratio_y, ratio_x = full[0] / working[0], full[1] / working[1]
    box = (
        (cx - half_x) * ratio_x,
        (cy - half_y) * ratio_y,
        (cx + half_x) * ratio_x,
        (cy + half_y) * ratio_y,
    )
    alpha: np.ndarray = np.zeros(working, np.float32)
    alpha[top : top + height, left : left + width] = region.alpha
    if full != working:
        alpha = np.asarray(cv2.resize(alpha, full[::-1], interpolation=cv2.INTER_LINEAR))
    behind = ground.rgb[min(int(cy), working[0] - 1), min(int(cx), working[1] - 1)]
    contrast = float(np.linalg.norm(to_lab(region.rgb[None]) - to_lab(behind[None])))
    color, *distances = _color(region)
    return Detection(
        shape=fit.shape,
        color=color,
        size=min(SIZES, key=lambda s: abs(np.log(fit.radius / side / np.mean(SIZES[s])))),
        texture=_texture(region, fit),
        box=box,
        mask=alpha > 0.5,
        confidence=_confidence(fit, (distances[0], distances[1]), contrast, side),
        overlap=fit.overlap,
    )
