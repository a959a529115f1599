"""PaintSkills: object, count and spatial skills, by a detector. Cho et al., arXiv 2202.04053.

Only detections with p > 0.7 count. Object: the most confident one is of the class. Count: there
are exactly so many of the class. Spatial: the longer axis between the centres of the most confident
boxes of both classes tells the relation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gesso.evals.types import Detection, Verdict

THRESHOLD = 0.7
SKILLS = ("object", "count", "spatial")


def judge_skill(found: Sequence[Detection], wanted: dict[str, Any]) -> Verdict:
    """Judge one picture.

    Args:
        found: detections of all classes of the benchmark.
        wanted: "skill"; "class"; for count "count"; for spatial "relation" (left, right, above
            or below) and "target", the class that it is related to.
    """
    skill, name = wanted["skill"], wanted["class"]
    kept = sorted(
        (d for d in found if d.confidence > THRESHOLD), key=lambda d: d.confidence, reverse=True
    )
    reason = ""
    if skill == "object":
        top = kept[0].label if kept else "nothing"
        reason = "" if top == name else f"expected {name}, found {top}"
    elif skill == "count":
        n = sum(d.label == name for d in kept)
        reason = "" if n == wanted["count"] else f"expected {wanted['count']} x {name}, found {n}"
    else:
        target = wanted["target"]
        a = next((d for d in kept if d.label == name), None)
        b = next((d for d in kept if d.label == target and d is not a), None)
        if a is None or b is None:
            missing = name if a is None else target
            reason = f"found no {missing}"
        else:
            seen = dominant(a, b)
            if seen != wanted["relation"]:
                reason = f"expected {name} {wanted['relation']} {target}, found it {seen}"
    right = float(not reason)
    return Verdict(right, [reason] if reason else [], {skill: [right]})


def dominant(a: Detection, b: Detection) -> str:
    """Where a lies from b by the longer axis between their centres; "" at the same place."""
    dx = (a.box[0] + a.box[2] - b.box[0] - b.box[2]) / 2
    dy = (a.box[1] + a.box[3] - b.box[1] - b.box[3]) / 2
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    if dy == 0:
        return ""
    return "above" if dy < 0 else "below"
