"""Drawing scenes at random: a pure function of (seed, index, level, split)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import TypeVar

from gesso.data.scenes.graph import (
    COLORS,
    RELATIONS,
    SIZES,
    Background,
    Level,
    Object,
    Scene,
    get_level,
    relations_between,
)
from gesso.data.scenes.splits import (
    check_split,
    held_out_contents,
    held_out_places,
    unit_box,
)

MARGIN = 0.03  # between objects and the border
GAP = 0.055  # between the nominal boxes of two objects
WORD_BAND = 0.17  # height kept free for a rendered word

T = TypeVar("T")


def pick(rng: Random, values: Sequence[T]) -> T:
    """One of `values`, the same in every version of Python."""
    # Random.random() is the one method whose sequence Python promises to keep.
    return values[int(rng.random() * len(values))]


def pick_two(rng: Random, values: Sequence[T]) -> tuple[T, T]:
    first = int(rng.random() * len(values))
    second = int(rng.random() * (len(values) - 1))
    return values[first], values[second + (second >= first)]


def sample_scene(index: int, *, level: int = 1, seed: int = 0, split: str = "train") -> Scene:
    """Scene number `index` of the stream that (seed, level, split) names.

    The kinds alternate at random with equal shares. "train" scenes contain no held-out
    combination; "test" scenes contain one where their kind allows it; "all" is unrestricted.

    Raises:
        GessoError: no such level or split.
    """
    world = get_level(level)
    check_split(split)
    rng = Random(f"{seed}/{level}/{split}/{index}")
    kind = pick(rng, world.kinds)
    while True:
        things = _things(rng, kind, world)
        new = held_out_contents(things)
        if split == "train" and new:
            continue
        # Only these kinds can still get a held-out combination by where the objects lie.
        if split == "test" and not new and kind not in ("single_object", "position", "several"):
            continue
        for _ in range(20):  # the same contents again, or crowded scenes would be rare
            scene = arrange(rng, kind, things, level, draw_relation(rng, kind))
            if scene is None:
                continue
            if split == "all" or kind == "single_object":
                return scene
            if (new or held_out_places(scene.objects)) == (split == "test"):
                return scene


def _things(rng: Random, kind: str, world: Level) -> list[tuple[str, str]]:
    """(colour, shape) of each object."""
    colors = list(COLORS)
    if kind in ("single_object", "colors"):
        return [(pick(rng, colors), pick(rng, world.shapes))]
    if kind == "counting":
        shape, count = pick(rng, world.shapes), 2 + int(rng.random() * 3)
        if rng.random() < 0.6:
            return [(pick(rng, colors), shape)] * count
        return [(pick(rng, colors), shape) for _ in range(count)]
    if kind == "several":
        count = 3 + (rng.random() < 0.4)
        return [(pick(rng, colors), pick(rng, world.shapes)) for _ in range(count)]
    shapes = pick_two(rng, world.shapes)
    return list(zip(pick_two(rng, colors), shapes, strict=True))


def draw_relation(rng: Random, kind: str) -> str:
    """A relation where the kind has one: always, or for two coloured objects half the time."""
    if kind == "position" or (kind == "color_attr" and rng.random() < 0.5):
        return pick(rng, RELATIONS)
    return ""


def arrange(
    rng: Random, kind: str, things: list[tuple[str, str]], level: int, relation: str = ""
) -> Scene | None:
    """Draw sizes, places, background and the rest for given (colour, shape) pairs.

    Args:
        relation: of the first object to the second, or "".

    Returns:
        The scene, or None if the objects did not fit: draw again.
    """
    world = get_level(level)
    word = ""
    if world.words and len(things) <= 3 and rng.random() < 0.3:
        word = pick(rng, world.words)
    # Four large objects do not fit; a row of three is tight.
    room = {1: 3, 2: 3, 3: 2, 4: 2}[len(things)] - bool(word and len(things) > 1)
    fitting = [s for s in world.sizes if list(SIZES).index(s) < room] or [world.sizes[0]]
    same_size = kind == "counting" and rng.random() < 0.7
    size = pick(rng, fitting)
    objects: list[Object] = []
    for color, shape in things:
        if not same_size:
            size = pick(rng, fitting)
        low, high = SIZES[size]
        radius = low + (high - low) * (0.5 if world.lattice else rng.random())
        texture = pick(rng, world.textures)
        edge = MARGIN + radius
        for _ in range(30):
            x = _between(rng, edge, 1 - edge, world.lattice)
            y = _between(rng, edge, 1 - edge - (WORD_BAND if word else 0.0), world.lattice)
            place = Object(shape, color, size, round(x, 4), round(y, 4), round(radius, 4), texture)
            if _fits(place, objects, relation):
                objects.append(place)
                break
        else:
            return None
    return Scene(
        level,
        kind,
        tuple(objects),
        _background(rng, world),
        relation,
        kind == "counting" and len(set(things)) == 1 and rng.random() < 0.5,
        word,
    )


def _between(rng: Random, low: float, high: float, lattice: int) -> float:
    """A number in low..high; a multiple of 1/lattice if that is not 0."""
    if not lattice:
        return low + (high - low) * rng.random()
    first, last = math.ceil(low * lattice), math.floor(high * lattice)
    return (first + int(rng.random() * (last - first + 1))) / lattice


def _fits(new: Object, objects: list[Object], relation: str) -> bool:
    for old in objects:
        need = new.radius + old.radius + GAP
        if abs(new.x - old.x) < need and abs(new.y - old.y) < need:
            return False
    if not relation or not objects:
        return True
    # The related pair lies clearly along one axis: the relation holds, also on longer pictures.
    first = objects[0]
    across, along = sorted([abs(new.x - first.x), abs(new.y - first.y)])
    if across > 0.45 * along:
        return False
    return relations_between(unit_box(first), unit_box(new)) == {relation}


def _background(rng: Random, world: Level) -> Background:
    if world.gradients and rng.random() < 0.4:
        return Background(*pick_two(rng, world.backgrounds), pick(rng, ("down", "right")))
    return Background(pick(rng, world.backgrounds))
