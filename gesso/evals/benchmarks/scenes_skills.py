"""DALL-Eval's three skills on the built-in world, with the reader as an exact detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gesso.data.scenes.graph import get_level
from gesso.evals._scene_prompts import prompts
from gesso.evals.benchmarks.scenes import Scenes, scene_level
from gesso.evals.skills import judge_skill
from gesso.evals.types import Judging, Means, Options, Picture, Prompt, detect

SKILLS = {"single_object": "object", "counting": "count", "position": "spatial"}


class SceneSkills(Scenes):
    title = "PaintSkills on scenes"
    source = "Cho et al., arXiv 2202.04053, on gesso's scenes"

    def prompts(self, options: Options) -> list[Prompt]:
        """`per_tag` prompts a skill."""
        level = scene_level(options)
        rows = prompts(level, options.per_tag, options.seed, options.split)
        kept = [row for row in rows if row["tag"] in SKILLS]
        return [
            Prompt(
                f"{i:05}",
                row["prompt"],
                {**_wanted(row), "classes": list(get_level(level).shapes)},
                (SKILLS[row["tag"]],),
            )
            for i, row in enumerate(kept)
        ]

    def name(self, options: Options) -> str:
        return f"scenes-skills-level{scene_level(options)}-{options.split}"

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        found = yield from detect(pictures[0], tuple(prompt.meta["classes"]))
        return judge_skill(found, prompt.meta)

    def total(self, mean: np.ndarray, parts: Means) -> np.ndarray:
        """Unweighted mean of the skills."""
        return np.mean(list(parts.values()), axis=0)


def _wanted(row: dict[str, Any]) -> dict[str, Any]:
    clauses = row["include"]
    wanted = {"skill": SKILLS[row["tag"]], "class": clauses[-1]["class"]}
    if row["tag"] == "counting":
        return wanted | {"count": clauses[0]["count"]}
    if row["tag"] == "position":
        relation = clauses[1]["position"][0].removesuffix(" of")
        return wanted | {"relation": relation, "target": clauses[0]["class"]}
    return wanted


BENCHMARK = SceneSkills
