"""GenEval-style prompts about scenes, and pictures that fulfil them (to judge the judge)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import permutations, product
from random import Random
from typing import Any

import numpy as np

from gesso.data.scenes import (
    COLORS,
    RELATIONS,
    TAGS,
    Object,
    Scene,
    render,
    short_wordings,
    vocabulary,
)
from gesso.data.scenes.graph import INVERSE, get_level
from gesso.data.scenes.layout import arrange
from gesso.data.scenes.splits import (
    HELD_OUT_COLORS,
    HELD_OUT_COUNTS,
    HELD_OUT_PAIRS,
    HELD_OUT_TRIPLES,
    check_split,
)
from gesso.types import GessoError

Things = list[tuple[str, str]]  # (colour, shape); the colour is "" where the prompt names none
DEFAULT_LEVEL = 2  # for models that do not tell which words they know
Content = tuple[Things, str, bool]  # things, relation, whether the combination is held out


def prompts(level: int, per_tag: int, seed: int = 0, split: str = "test") -> list[dict[str, Any]]:
    """Prompts with GenEval's metadata.

    The first prompts of a tag have the canonical wording ("a photo of ..."); when its
    combinations run out, other wordings of the training captions follow, and then repetitions.

    Args:
        level: of the scenes.
        per_tag: prompts for each of the six tags.
        seed: decides which combinations come first.
        split: "test": each prompt has a held-out combination, everything else in it is known
            (a single object without colour has none); "train": none; "all": no matter.

    Returns:
        Dicts with tag, prompt, include (clauses of class, count and perhaps color or
        position = [relation, index of an earlier clause]), and exclude for counting.

    Raises:
        GessoError: no such level or split.
    """
    get_level(level)
    check_split(split)
    found = []
    for tag in TAGS:
        rng = Random(f"prompts/{seed}/{level}/{split}/{tag}")
        wanted = {"test": (True,), "train": (False,), "all": (True, False)}[split]
        contents = [c for c in _CONTENTS[tag](level) if c[2] in wanted or tag == "single_object"]
        # Sorting by random keys rather than shuffling: the same in every version of Python.
        contents = [c for _, c in sorted((rng.random(), c) for c in contents)]
        found += _worded(tag, contents, level, per_tag)
    return found


def _worded(tag: str, contents: list[Content], level: int, count: int) -> list[dict[str, Any]]:
    wordings = [short_wordings(_scene(tag, things, rel, level)) for things, rel, _ in contents]
    entries: dict[str, dict[str, Any]] = {}
    for turn in range(max(map(len, wordings))):
        for (things, relation, _), texts in zip(contents, wordings, strict=True):
            if turn < len(texts):
                entry = {"tag": tag, "prompt": texts[turn], **_clauses(tag, things, relation)}
                entries.setdefault(texts[turn], entry)
        if len(entries) >= count:
            break
    distinct = list(entries.values())
    return [distinct[i % len(distinct)] for i in range(count)]


def _scene(tag: str, things: Things, relation: str, level: int) -> Scene:
    """A scene that has the contents but no places: enough for captions."""
    objects = tuple(Object(shape, color, "medium", 0.5, 0.5, 0.15) for color, shape in things)
    return Scene(level, tag, objects, relation=relation)


def _clauses(tag: str, things: Things, relation: str) -> dict[str, Any]:
    if tag == "counting":
        shape, count = things[0][1], len(things)
        return {
            "include": [{"class": shape, "count": count}],
            "exclude": [{"class": shape, "count": count + 1}],
        }
    include: list[dict[str, Any]] = [
        {"class": shape, "count": 1} | ({"color": color} if color else {})
        for color, shape in things
    ]
    if relation:  # the first object stands in the relation to the second, which comes first
        include = [include[1], include[0] | {"position": [relation, 0]}]
    return {"include": include}


def _single(level: int) -> Iterator[Content]:
    for shape in get_level(level).shapes:
        yield [("", shape)], "", False


def _two(level: int) -> Iterator[Content]:
    for a, b in permutations(get_level(level).shapes, 2):
        yield [("", a), ("", b)], "", frozenset((a, b)) in HELD_OUT_PAIRS


def _counting(level: int) -> Iterator[Content]:
    for count, shape in product((2, 3, 4), get_level(level).shapes):
        yield [("", shape)] * count, "", (count, shape) in HELD_OUT_COUNTS


def _colors(level: int) -> Iterator[Content]:
    for color, shape in product(COLORS, get_level(level).shapes):
        yield [(color, shape)], "", (color, shape) in HELD_OUT_COLORS


def _position(level: int) -> Iterator[Content]:
    for a, b in permutations(get_level(level).shapes, 2):
        if frozenset((a, b)) not in HELD_OUT_PAIRS:
            for relation in RELATIONS:
                yield [("", a), ("", b)], relation, (a, relation, b) in HELD_OUT_TRIPLES


def _color_attr(level: int) -> Iterator[Content]:
    things = list(product(COLORS, get_level(level).shapes))
    for a, b in permutations(things, 2):
        if a[0] != b[0] and a[1] != b[1] and frozenset((a[1], b[1])) not in HELD_OUT_PAIRS:
            held_out = len({a, b} & HELD_OUT_COLORS)
            if held_out < 2:  # one new thing at a time
                yield [a, b], "", held_out == 1


_CONTENTS: dict[str, Callable[[int], Iterator[Content]]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}


def known_level(words: Collection[str]) -> int:
    """The highest level whose English words are all among a model's; of no words: level 2."""
    known = set(words)
    if not known:
        return DEFAULT_LEVEL
    return max((n for n in (1, 2, 3) if known.issuperset(vocabulary(n, "en"))), default=1)


def paint_truth(
    metadata: dict[str, Any], level: int, seed: int, height: int = 64, width: int = 64
) -> np.ndarray:
    """A render that fulfils a prompt, [height, width, 3] uint8: what a perfect model paints.

    Colours that the prompt leaves open are drawn from `seed`.

    Raises:
        GessoError: objects that do not fit together.
    """
    rng = Random(f"truth/{seed}")
    clauses = metadata["include"]
    relation = next((c["position"][0] for c in clauses if "position" in c), "")
    things = [
        (c.get("color") or list(COLORS)[int(rng.random() * len(COLORS))], c["class"])
        for c in clauses
        for _ in range(c["count"])
    ]
    for _ in range(1000):
        # The related object is the second clause: it stands in the inverse relation to the first.
        scene = arrange(rng, metadata["tag"], things, level, INVERSE.get(relation, ""))
        if scene is not None:
            return render(scene, height, width)
    raise GessoError(f"No scene fulfils {metadata['prompt']!r}: its objects do not fit.")
