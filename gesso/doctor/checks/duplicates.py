"""Pictures that are there twice, exactly or nearly.

Exactly: the same pixels, whatever the files are. Nearly: perceptual hashes (imagehash's phash, 64
bits) at most 10 bits apart, and thumbnails of 8x8 pixels that correlate to 0.98 or more and have
about the same contrast, so that pictures of one outline in other colours are kept apart. Held are
some 300 bytes a picture; all pairs are compared, tile by tile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from gesso.doctor.types import Check, Finding, Kind, Plan
from gesso.types import GessoError, Sample

EXACT = Kind("exact duplicate", "warning", "the same pixels as another picture")
NEAR = Kind("near duplicate", "note", "looks like another picture, re-encoded or resized")
MAX_BITS = 10
MIN_CORRELATION = 0.98
MIN_CONTRAST = 0.8
_SIDE = 8  # of a thumbnail
_TILE = 4096  # pictures compared with as many others at a time


class Duplicates(Check):
    """Names the later picture of each pair."""

    def __init__(self) -> None:
        super().__init__((EXACT, NEAR))
        try:
            import imagehash
        except ImportError:
            raise GessoError("gesso doctor needs imagehash: pip install 'gesso[doctor]'.") from None
        self._phash = imagehash.phash
        self._first: dict[bytes, str] = {}
        self._keys: list[str] = []
        self._hashes: list[int] = []
        self._thumbs: list[np.ndarray] = []  # [8, 8, 3] uint8 each

    def look(self, sample: Sample) -> Iterable[Finding]:
        pixels = np.ascontiguousarray(sample.image)
        digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
        digest.update(pixels.data)
        first = self._first.setdefault(digest.digest(), sample.key)
        if first != sample.key:
            yield Finding(sample.key, EXACT.name, f"It has the pixels of {first}.", other=first)
            return
        image = Image.fromarray(sample.image)
        bits = np.packbits(self._phash(image).hash)  # 8 bytes
        self._keys.append(sample.key)
        self._hashes.append(int.from_bytes(bits.tobytes(), "big"))
        self._thumbs.append(np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX)))

    def end(self) -> Iterator[Finding]:
        seen: set[int] = set()
        for one, other, alike in near_pairs(self._hashes, self._thumbs):
            if other not in seen:
                seen.add(other)
                why = f"It looks like {self._keys[one]} (correlation {alike:.3f})."
                yield Finding(self._keys[other], NEAR.name, why, alike, self._keys[one])


def near_pairs(hashes: list[int], thumbs: list[np.ndarray]) -> Iterator[tuple[int, int, float]]:
    """(i, j, correlation) with i < j of all pictures that look alike.

    Args:
        hashes: 64 bits each.
        thumbs: [8, 8, 3] uint8 each.
    """
    bits = np.array(hashes, dtype=np.uint64)
    for row in range(0, len(bits), _TILE):
        for column in range(row, len(bits), _TILE):
            apart = np.bitwise_count(
                bits[row : row + _TILE, None] ^ bits[None, column : column + _TILE]
            )
            for i, j in np.argwhere(apart <= MAX_BITS) + np.array([row, column]):
                if i < j and (alike := correlation(thumbs[i], thumbs[j])) >= MIN_CORRELATION:
                    yield int(i), int(j), alike


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, over all pixels and channels; 0 if one has less than 0.8 of the other's contrast.

    Two pictures of a single colour have 1 if it is the same, else 0.
    """
    a, b = (x.astype(np.float64) - x.mean() for x in (one, other))
    low, high = sorted((np.linalg.norm(a), np.linalg.norm(b)))
    if high == 0:
        return float((one == other).all())
    return float((a * b).sum() / (low * high)) if low >= MIN_CONTRAST * high else 0.0


def build(plan: Plan) -> Duplicates:
    """Always possible.

    Raises:
        GessoError: imagehash is not installed.
    """
    return Duplicates()
