"""GenEval's six tags and rules on the built-in world, with the reader as an exact judge.

The prompts ask for combinations that training scenes never show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from gesso.evals._scene_prompts import known_level, prompts
from gesso.evals.clauses import check, select, told_colors
from gesso.evals.types import (
    Benchmark,
    Judging,
    Means,
    Options,
    Picture,
    Prompt,
    Verdict,
    detect,
)


class Scenes(Benchmark):
    title = "GenEval on scenes"
    source = "Ghosh et al., arXiv 2310.11513, on gesso's scenes"
    needs: ClassVar[tuple[str, ...]] = ("detect",)
    weight = "picture"

    def prompts(self, options: Options) -> list[Prompt]:
        """`per_tag` prompts a tag, drawn by the seed; needs no file."""
        rows = prompts(scene_level(options), options.per_tag, options.seed, options.split)
        return [
            Prompt(
                f"{i:05}",
                row["prompt"],
                {key: value for key, value in row.items() if key != "prompt"},
                (row["tag"],),
            )
            for i, row in enumerate(rows)
        ]

    def default_judges(self, options: Options) -> tuple[str, ...]:
        return (f"reader:level={scene_level(options)}",)

    def name(self, options: Options) -> str:
        return f"scenes-level{scene_level(options)}-{options.split}"

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        clauses = [*prompt.meta["include"], *prompt.meta.get("exclude", [])]
        classes = tuple(dict.fromkeys(clause["class"] for clause in clauses))
        found = yield from detect(pictures[0], classes)
        objects = select(found, counting=prompt.meta["tag"] == "counting")
        reasons = yield from check(objects, prompt.meta, told_colors)
        right = float(not reasons)
        return Verdict(right, reasons, {prompt.meta["tag"]: [right]})

    def total(self, mean: np.ndarray, parts: Means) -> np.ndarray:
        """Unweighted mean of the categories."""
        return np.mean(list(parts.values()), axis=0)


def scene_level(options: Options) -> int:
    """The level that was asked for, or the highest that the model has all words of."""
    return options.level or known_level(options.words)


BENCHMARK = Scenes
