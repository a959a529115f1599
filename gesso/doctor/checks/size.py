"""Pictures that the chosen size does not suit: cropped by more than a fifth, or enlarged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gesso.data.buckets import Size, assign
from gesso.doctor.types import Check, Finding, Kind, Plan
from gesso.types import Sample

CROPPED = Kind("cropped", "warning", "more than a fifth of it is cut off")
TINY = Kind("tiny", "warning", "it is enlarged to more than twice its sides")
MAX_LOST = 0.2
MAX_ENLARGED = 2.0


class Sizes(Check):
    """Compares each picture with the bucket that it goes to.

    Args:
        table: see `Plan`.
    """

    def __init__(self, table: Mapping[float, Size]) -> None:
        super().__init__((CROPPED, TINY))
        self._table = table

    def look(self, sample: Sample) -> Iterable[Finding]:
        h, w = sample.image.shape[:2]
        height, width = assign(h, w, self._table)
        scale = max(height / h, width / w)  # resized to cover its bucket
        lost = 1 - height * width / (h * w * scale**2)
        where = f"in {width}x{height} ({w}x{h})"
        if lost > MAX_LOST:
            yield Finding(sample.key, CROPPED.name, f"It loses {lost:.0%} {where}.", lost)
        if scale > MAX_ENLARGED:
            yield Finding(sample.key, TINY.name, f"It is enlarged {scale:.1f}x {where}.", scale)


def build(plan: Plan) -> Sizes:
    """Always possible."""
    return Sizes(plan.table)
