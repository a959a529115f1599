"""Capitals in a 5 by 7 pixel font, and the one place where scenes put a word."""

from __future__ import annotations

import numpy as np

from gesso.data.scenes.graph import RGB

INK: RGB = (44, 46, 58)

# Seven rows of five pixels, top to bottom, one hexadecimal pair per row.
_ROWS = {
    "A": "0e11111f111111",
    "C": "0e11101010110e",
    "E": "1f10101e10101f",
    "G": "0e11101713110f",
    "H": "1111111f111111",
    "I": "0e04040404040e",
    "L": "1010101010101f",
    "N": "11191513111111",
    "O": "0e11111111110e",
    "R": "1e11111e141211",
    "S": "0f10100e01011e",
    "T": "1f040404040404",
    "U": "1111111111110e",
    "V": "11111111110a04",
    "Y": "11110a04040404",
    "Z": "1f01020408101f",
}


def word_mask(word: str) -> np.ndarray:
    """[7, 6 n - 1] bool: the word in capitals at one pixel per dot."""
    rows = [bytes.fromhex(_ROWS[letter]) for letter in word.upper()]
    glyphs = [np.array([[row >> (4 - i) & 1 for i in range(5)] for row in r]) for r in rows]
    gap = np.zeros((7, 1), int)
    parts = [part for glyph in glyphs for part in (glyph, gap)][:-1]
    return np.concatenate(parts, axis=1).astype(bool)


def word_window(word: str, height: int, width: int) -> tuple[int, int, int]:
    """Where a word goes: its top left pixel (y, x) and pixels per dot; centred at the bottom."""
    dot = max(1, min(height, width) // 64)
    return height - 9 * dot, (width - (6 * len(word) - 1) * dot) // 2, dot


def word_dots(word: str, height: int, width: int) -> np.ndarray:
    """[N, 2] pixels (y, x) that a rendered word inks; what a narrow picture cuts off is absent."""
    y, x, dot = word_window(word, height, width)
    pixels = np.argwhere(np.kron(word_mask(word), np.ones((dot, dot), bool))) + np.array([y, x])
    return pixels[(pixels[:, 1] >= 0) & (pixels[:, 1] < width)]
