"""Pictures that training skips: broken files, missing captions, keys that occur twice."""

from __future__ import annotations

from collections.abc import Iterable

from gesso.doctor.types import Check, Finding, Kind, Plan
from gesso.types import Bad

CORRUPT = Kind("corrupt", "error", "the picture cannot be decoded or is under 8 pixels a side")
UNCAPTIONED = Kind("no caption", "error", "no caption file, or an empty or unreadable one")
SAME_KEY = Kind("same key", "error", "another picture has its key")
_BY = {"picture": CORRUPT, "caption": UNCAPTIONED, "key": SAME_KEY}


class Unusable(Check):
    """Sorts what the source skips by what is at fault."""

    def bad(self, bad: Bad) -> Iterable[Finding]:
        yield Finding(bad.key, _BY[bad.kind].name, bad.reason)


def build(plan: Plan) -> Unusable:
    """Always possible."""
    return Unusable((CORRUPT, UNCAPTIONED, SAME_KEY))
