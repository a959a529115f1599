"""Held-out combinations: what training scenes never show and test prompts ask for.

Four kinds of combination are held out, about one in eight of each, so that every colour, shape,
relation and count stays well represented in training. The sets of level 2 contain those of
level 1.
"""

from __future__ import annotations

from itertools import combinations

from gesso.data.scenes.graph import (
    COLORS,
    INVERSE,
    RELATIONS,
    SHAPES,
    Box,
    Object,
    Scene,
    relations_between,
)
from gesso.data.scenes.shapes import extent
from gesso.types import GessoError

SPLITS = ("train", "test", "all")

# One shape pair per shape (5 of 45), one of them among level 1's shapes (1 of 6).
_PAIRS = (
    ("circle", "star"),
    ("square", "ring"),
    ("triangle", "heart"),
    ("diamond", "moon"),
    ("cross", "hexagon"),
)

HELD_OUT_PAIRS = frozenset(frozenset(p) for p in _PAIRS)
HELD_OUT_COUNTS = frozenset({(2, "star"), (4, "triangle"), (3, "cross"), (3, "moon")})
# Along a diagonal of the colour-by-shape table: 5 of level 1's 40, 12 of all 100.
HELD_OUT_COLORS = frozenset(
    (color, shape)
    for i, color in enumerate(COLORS)
    for j, shape in enumerate(SHAPES)
    if (i + 3 * j) % 8 == 3
)


def _held_out_triples() -> frozenset[tuple[str, str, str]]:
    # Every second of the pairs that are not held out loses one relation, in turn; pairs of the
    # first shapes come first, so level 1 has its share.
    pairs = sorted(combinations(range(len(SHAPES)), 2), key=lambda p: (p[1], p[0]))
    names = [(SHAPES[a], SHAPES[b]) for a, b in pairs]
    kept = [p for p in names if frozenset(p) not in HELD_OUT_PAIRS]
    triples = set()
    for turn, (a, b) in enumerate(kept[::2]):
        relation = RELATIONS[turn % len(RELATIONS)]
        triples |= {(a, relation, b), (b, INVERSE[relation], a)}
    return frozenset(triples)


HELD_OUT_TRIPLES = _held_out_triples()


def unit_box(item: Object) -> Box:
    """The object's bounding box on the unit square."""
    half_x, half_y = (item.radius * e for e in extent(item.shape))
    return item.x - half_x, item.y - half_y, item.x + half_x, item.y + half_y


def held_out_contents(objects: list[tuple[str, str]]) -> bool:
    """Whether (colour, shape) pairs, counts or shape pairs of a list of objects are held out."""
    if any(pair in HELD_OUT_COLORS for pair in objects):
        return True
    shapes = [shape for _, shape in objects]
    if any((shapes.count(shape), shape) in HELD_OUT_COUNTS for shape in shapes):
        return True
    return any(frozenset(pair) in HELD_OUT_PAIRS for pair in combinations(shapes, 2))


def held_out_places(objects: list[Object] | tuple[Object, ...]) -> bool:
    """Whether any two objects stand in a held-out relation, named in a caption or not."""
    for a, b in combinations(objects, 2):
        if a.shape != b.shape:
            for relation in relations_between(unit_box(a), unit_box(b)):
                if (a.shape, relation, b.shape) in HELD_OUT_TRIPLES:
                    return True
    return False


def has_held_out(scene: Scene) -> bool:
    """Whether the scene contains any held-out combination."""
    return held_out_contents([(o.color, o.shape) for o in scene.objects]) or held_out_places(
        scene.objects
    )


def check_split(split: str) -> str:
    """The split's name.

    Raises:
        GessoError: not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise GessoError(f"There is no scene split {split!r}: choose train, test or all.")
    return split
