"""GenEval's rules: which objects a picture must and must not show.

Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment" (arXiv
2310.11513). A clause has "class", "count" and perhaps "color" and "position": [relation, index of
an earlier clause]; all of "include" must hold and none of "exclude".
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from gesso.evals.types import Ask, Box, Detection

THRESHOLD = 0.3  # confidences must exceed it
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16  # per class
MAX_OVERLAP = 1.0  # 1: nothing is suppressed
POSITION_MARGIN = 0.1  # of both sizes, taken off the distance of centres

Asking = Generator[Sequence[Ask], list[Any], list[str]]
Coloring = Callable[[Sequence[Detection], str], Asking]
"""(objects, class) -> the colour of each; may ask a judge."""


def select(
    found: Sequence[Detection], counting: bool, max_overlap: float = MAX_OVERLAP
) -> dict[str, list[Detection]]:
    """The detections that count, by class, by falling confidence.

    Of equal confidences the later comes first: numpy's order, reversed, as in the paper's code.

    Args:
        counting: the higher threshold.
        max_overlap: below 1, of two boxes of a class whose IoU is not below it the less confident
            one is dropped.
    """
    threshold = COUNTING_THRESHOLD if counting else THRESHOLD
    classes: dict[str, list[Detection]] = {}
    for detection in sorted(found, key=lambda d: d.confidence)[::-1]:
        if detection.confidence > threshold:
            classes.setdefault(detection.label, []).append(detection)
    for label, same in classes.items():
        kept: list[Detection] = []
        for detection in same[:MAX_OBJECTS]:
            if max_overlap == 1 or all(iou(k.box, detection.box) < max_overlap for k in kept):
                kept.append(detection)
        classes[label] = kept
    return classes


def iou(a: Box, b: Box) -> float:
    """Intersection over union of boxes whose far edges count as a pixel."""

    def area(box: Box) -> float:
        return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - common
    return common / union if union else 0.0


def relations_between(a: Box, b: Box) -> set[str]:
    """The relations of box a to box b: none, one or two of left of, right of, above, below."""
    relations: set[str] = set()
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    norm = (dx * dx + dy * dy) ** 0.5
    rest_x = max(abs(dx) - POSITION_MARGIN * (a[2] - a[0] + b[2] - b[0]), 0.0)
    rest_y = max(abs(dy) - POSITION_MARGIN * (a[3] - a[1] + b[3] - b[1]), 0.0)
    if rest_x < 1e-3 and rest_y < 1e-3:
        return relations
    if rest_x / norm > 0.5:
        relations.add("left of" if dx < 0 else "right of")
    if rest_y / norm > 0.5:
        relations.add("above" if dy < 0 else "below")
    return relations


def check(
    objects: dict[str, list[Detection]], metadata: dict[str, Any], color_of: Coloring
) -> Generator[Sequence[Ask], list[Any], list[str]]:
    """What is wrong with a picture, one reason for each clause that fails; none: it is right.

    Args:
        objects: from `select`.
        metadata: "include" and "exclude".
        color_of: tells colours; called only for clauses with a colour whose count is right.
    """
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []  # what each clause matched; None: nothing
    for clause in metadata.get("include", []):
        label, count = clause["class"], clause["count"]
        chosen = objects.get(label, [])[:count]
        problem = ""
        if len(chosen) < count:
            problem = f"expected {count} x {label}, found {len(chosen)}"
        elif "color" in clause:
            colors = yield from color_of(chosen, label)
            if colors.count(clause["color"]) < count:
                problem = f"expected {clause['color']} {label}, found {', '.join(colors)}"
        if not problem and "position" in clause:
            problem = _misplaced(chosen, clause, groups)
        groups.append(None if problem else chosen)
        reasons += [problem] if problem else []
    for clause in metadata.get("exclude", []):
        n = len(objects.get(clause["class"], []))
        if n >= clause["count"]:
            reasons.append(f"expected fewer than {clause['count']} x {clause['class']}, found {n}")
    return reasons


def told_colors(chosen: Sequence[Detection], label: str) -> Asking:
    """Colours as the detector tells them; it asks nothing more."""
    return [d.color for d in chosen]
    yield  # which makes it a coroutine like those that ask


def _misplaced(
    chosen: list[Detection], clause: dict[str, Any], groups: list[list[Detection] | None]
) -> str:
    """Which relation does not hold between the chosen detections and their targets, or ""."""
    relation, index = clause["position"]
    targets = groups[index]
    if targets is None:
        return f"nothing for {clause['class']} to be {relation}"
    for detection in chosen:
        for target in targets:
            holds = relations_between(detection.box, target.box)
            if relation not in holds:
                seen = " and ".join(sorted(holds)) or "at the place of"
                return (
                    f"expected {clause['class']} {relation} {target.label}, "
                    f"found it {seen} {target.label}"
                )
    return ""
