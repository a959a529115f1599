"""Long prompts on the built-in world: dense captions of test scenes, every detail against truth.

A caption names size, colour, texture, shape and place of each object, the background, and at
level 3 perhaps a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any, ClassVar

import numpy as np

from gesso.data.scenes import sample_scene
from gesso.data.scenes.captions import dense, place
from gesso.data.scenes.graph import BACKGROUNDS, Object
from gesso.evals.benchmarks.scenes import Scenes, scene_level
from gesso.evals.clauses import THRESHOLD
from gesso.evals.types import (
    Detection,
    Judging,
    Means,
    Options,
    Picture,
    Prompt,
    Question,
    Read,
    Verdict,
    detect,
)

TRAITS = ("shape", "color", "size", "texture", "place")
BACKGROUND = "What color is the background?"  # the reader answers it


class SceneLong(Scenes):
    title = "Long prompts on scenes"
    source = "gesso's scenes: dense captions, each detail counted"
    needs: ClassVar[tuple[str, ...]] = ("detect", "read", "answer")
    weight = "prompt"

    def prompts(self, options: Options) -> list[Prompt]:
        """Six times `per_tag` scenes of the split."""
        level = scene_level(options)
        found = []
        for i in range(6 * options.per_tag):
            scene = sample_scene(i, level=level, seed=options.seed, split=options.split)
            ground = scene.background
            meta: dict[str, Any] = {
                "objects": [_truth(item) for item in scene.objects],
                "background": f"from {ground.name} to {ground.to}" if ground.to else ground.name,
                "word": scene.word,
            }
            found.append(Prompt(f"{i:05}", dense(scene), meta, (f"{len(scene.objects)} objects",)))
        return found

    def name(self, options: Options) -> str:
        return f"scenes-long-level{scene_level(options)}-{options.split}"

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        picture, meta = pictures[0], prompt.meta
        wanted = meta["objects"]
        classes = tuple(dict.fromkeys(item["shape"] for item in wanted))
        found = yield from detect(picture, classes)
        seen = [_seen(d, picture) for d in found if d.confidence > THRESHOLD]
        parts: dict[str, list[float]] = {}
        reasons = []
        for item, match in zip(wanted, assign(wanted, seen), strict=True):
            for trait in TRAITS:
                right = match.get(trait) == item[trait]
                parts.setdefault(trait, []).append(float(right))
            wrong = [f"{t} {match[t]}" for t in TRAITS if match and match[t] != item[t]]
            name = f"{item['size']} {item['color']} {item['shape']} at {item['place']}"
            if not match:
                reasons.append(f"no {name}")
            elif wrong:
                reasons.append(f"{name}: {', '.join(wrong)}")
        ground, word = yield [Question(picture, BACKGROUND, tuple(BACKGROUNDS)), Read(picture)]
        parts["background"] = [float(ground.choice == meta["background"])]
        if ground.choice != meta["background"]:
            reasons.append(f"background {ground.choice}, not {meta['background']}")
        if meta["word"]:
            parts["word"] = [float(word == meta["word"])]
            reasons += [] if word == meta["word"] else [f"read {word!r}, not {meta['word']!r}"]
        values = [v for some in parts.values() for v in some]
        return Verdict(float(np.mean(values)), reasons, parts)

    def total(self, mean: np.ndarray, parts: Means) -> np.ndarray:
        """Mean over prompts of the share of details that are right."""
        return mean


def assign(wanted: list[dict[str, str]], seen: list[dict[str, str]]) -> list[dict[str, str]]:
    """For each wanted object the seen one of its shape, all together agreeing in most traits."""

    def agreement(item: dict[str, str], other: dict[str, str]) -> int:
        return sum(item[t] == other[t] for t in TRAITS) if other["shape"] == item["shape"] else 0

    padded = [*seen, *({"shape": ""} for _ in wanted)]
    best = max(
        permutations(range(len(padded)), len(wanted)),
        key=lambda order: sum(
            agreement(item, padded[i]) for item, i in zip(wanted, order, strict=True)
        ),
    )
    return [
        padded[i] if padded[i]["shape"] == item["shape"] else {}
        for item, i in zip(wanted, best, strict=True)
    ]


def _truth(item: Object) -> dict[str, str]:
    return {
        "shape": item.shape,
        "color": item.color,
        "size": item.size,
        "texture": item.texture,
        "place": place(item),
    }


def _seen(found: Detection, picture: Picture) -> dict[str, str]:
    height, width = picture.pixels.shape[:2]
    x = (found.box[0] + found.box[2]) / 2 / width
    y = (found.box[1] + found.box[3]) / 2 / height
    where = place(Object(found.label, found.color, found.size, x, y, 0.0))
    traits = {"shape": found.label, "color": found.color, "size": found.size}
    return traits | {"texture": found.texture, "place": where}


BENCHMARK = SceneLong
