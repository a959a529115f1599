"""Aspect-ratio buckets: picture sizes of nearly equal area that a batch can have.

PixArt-alpha's multi-aspect stage (arXiv:2310.00426, section 3) trains on 40 of them around 1024.
Here the same rule makes the table for any base size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gesso.types import GessoError

Size = tuple[int, int]
"""(H, W) in pixels."""

_UNITS = 16  # a base side is 16 units, as 1024 is 16 x 64
# Hand-picked in the published table, beside those that its rule makes (in units of 1/16 base).
_EXTRA = ((11, 21), (13, 18), (14, 17), (15, 16), (16, 15), (17, 14), (18, 13))

_TRAINING_ONLY = frozenset({0.26, 0.27, 2.89, 3.11, 3.62, 3.75, 3.88})


def bucket_table(base_size: int, multiple: int | None = None) -> dict[float, Size]:
    """Sizes (H, W) with an area of at most base_size**2, by their ratio round(H / W, 2).

    The rule: every side a between half and twice the base, in steps of a sixteenth of it, is
    paired with the longest other side whose product with a stays within base_size**2; both
    orientations. At 1024, 512, 256 and 2048 this gives the published 40 entries. Where a sixteenth
    is no multiple of `multiple`, the step is the nearest divisor of the base that is.

    Args:
        base_size: side of the square bucket, in pixels.
        multiple: every side is a multiple of this (latent factor x patch size); None: any.

    Raises:
        GessoError: base_size is not a positive multiple of `multiple`.
    """
    step = _step(base_size, multiple or 1)
    units = base_size // step
    sides = range(math.ceil(units / 2), 2 * units + 1)
    pairs = [(a, units**2 // a) for a in sides if a <= units**2]
    sizes = pairs + [(b, a) for a, b in pairs] + (list(_EXTRA) if units == _UNITS else [])
    table: dict[float, Size] = {}
    for h, w in sorted(set(sizes), key=lambda s: (s[0] / s[1], -s[0] * s[1])):
        table.setdefault(round(h / w, 2), (h * step, w * step))
    return table


def published_table(base_size: int) -> dict[float, Size]:
    """The buckets that PixArt's pipelines, and diffusers', choose a painted size from.

    Up to 1024 they leave out seven narrow ones of the 40 that training has.
    """
    table = bucket_table(base_size)
    if base_size <= 1024:
        return {ratio: size for ratio, size in table.items() if ratio not in _TRAINING_ONLY}
    return table


def _step(base_size: int, multiple: int) -> int:
    if base_size <= 0 or multiple <= 0 or base_size % multiple:
        raise GessoError(
            f"The picture size {base_size} is not a multiple of {multiple} pixels: choose "
            f"{max(multiple, base_size // multiple * multiple)}."
        )
    divisors = [d for d in range(multiple, base_size + 1, multiple) if base_size % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d * _UNITS / base_size)))


def assign(height: int, width: int, table: Mapping[float, Size]) -> Size:
    """The bucket of a picture: least |ratio - height / width|, linear and not log, as published."""
    ratio = height / width
    return table[min(table, key=lambda key: abs(key - ratio))]


def ratio_key(size: Size) -> float:
    """round(H / W, 2): how a bucket is named, and its aspect micro-condition."""
    return round(size[0] / size[1], 2)
