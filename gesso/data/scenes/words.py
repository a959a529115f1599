"""Finding a rendered word: matching each word of the closed list along the picture's bottom."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from gesso.data.scenes.font import INK, word_mask
from gesso.data.scenes.segment import Ground

BAND = 0.22  # share of the height, from the bottom, in which words are looked for
ACCEPT = 0.6  # correlation with the word's picture
DARK = 0.07  # how much more ink lies on the word's dots than around them
_MARGIN = 2  # dots around a template, which must be empty


@cache
def _template(word: str, dot: float) -> np.ndarray:
    mask = np.pad(word_mask(word), _MARGIN).astype(np.float32)
    height, width = mask.shape
    size = (round(width * dot), round(height * dot))
    return _strokes(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), dot)


def _strokes(ink: np.ndarray, dot: float) -> np.ndarray:
    """Fine structure only: against a solid object's border no word may match."""
    return cv2.GaussianBlur(ink, (0, 0), 0.6 * dot) - cv2.GaussianBlur(ink, (0, 0), 2 * dot)


def find_word(
    picture: np.ndarray, ground: Ground, words: tuple[str, ...], dot: float
) -> tuple[str, tuple[slice, slice]]:
    """The word that a [H, W, 3] float32 picture shows, and its window; "" if there is none.

    Args:
        dot: size in pixels of a dot of the font.
    """
    top = int(picture.shape[0] * (1 - BAND))
    contrast = picture[top:] - ground.rgb[top:]
    towards = np.array(INK, np.float32) - ground.rgb[top:]
    dark = (contrast * towards).sum(2) / (towards**2).sum(2)
    rest = ((contrast - dark[..., None] * towards) ** 2).sum(2)
    ink = np.where(rest < 0.15 * (contrast**2).sum(2) + 300, np.clip(dark, 0, 1), 0)
    # Words end near the border: the margin may lie outside.
    pad = round(_MARGIN * dot)
    strokes = _strokes(np.pad(ink, pad).astype(np.float32), dot)
    best, found, window = ACCEPT, "", np.s_[0:0, 0:0]
    if strokes.max() < DARK:  # the common case: nothing is written
        return found, window
    for word in words:
        template = _template(word, dot)
        height, width = template.shape
        if height > strokes.shape[0] or width > strokes.shape[1]:
            continue
        scores = cv2.matchTemplate(strokes, template, cv2.TM_CCOEFF_NORMED)
        _, score, _, (x, y) = cv2.minMaxLoc(np.nan_to_num(scores, posinf=0, neginf=0))
        patch = strokes[y : y + height, x : x + width]
        contrast_found = patch[template > 0].mean() - patch[template <= 0].mean()
        if score > best and contrast_found > DARK:
            best, found = score, word
            window = np.s_[top + y : top + y + height - 2 * pad, x : x + width - 2 * pad]
    return found, window
