"""DALL-Eval's object, count and spatial skills on prompts about things of COCO.

PaintSkills' own scenes are not in its repository; VPEval's skill prompts, by the same authors and
in the same layout, are read. On scenes of the built-in world: `scenes-skills`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gesso.evals.prompt_files import check_keys, locate, read_json
from gesso.evals.skills import SKILLS, judge_skill
from gesso.evals.types import Benchmark, Judging, Means, Options, Picture, Prompt, detect
from gesso.types import GessoError


class DallEvalSkills(Benchmark):
    title = "DALL-Eval skills"
    source = "Cho et al., arXiv 2202.04053, on the prompts of arXiv 2305.15328"
    judge_asked = "DETR, trained further on PaintSkills' renders"
    judges = ("hf-detector:facebook/detr-resnet-101",)
    needs = ("detect",)
    n = 1
    weight = "picture"

    def prompts(self, options: Options) -> list[Prompt]:
        """`object_new.json`, `count_new.json` and, if there, `spatial_new.json`."""
        get = "https://github.com/aszala/VPEval (folder data/skill_based)"
        paths = ["skill_based/object_new.json", "object_new.json"]
        first = locate(options.prompts, "vpeval", paths, get)
        prompts = []
        for skill in SKILLS:
            file = first.with_name(f"{skill}_new.json")
            if not file.is_file():
                continue
            rows = check_keys(read_json(file), ["data"], str(file))["data"]
            for i, row in enumerate(rows):
                check_keys(row, ("id", "text", "objects"), f"{file}, entry {i + 1}")
                wanted = _wanted(skill, row["objects"], f"{file}, entry {i + 1}")
                prompts.append(Prompt(row["id"], row["text"], wanted, (skill,)))
        classes = sorted({p.meta["class"] for p in prompts})
        for prompt in prompts:
            prompt.meta["classes"] = classes
        return prompts

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        found = yield from detect(pictures[0], tuple(prompt.meta["classes"]))
        return judge_skill(found, prompt.meta)

    def total(self, mean: np.ndarray, parts: Means) -> np.ndarray:
        """Unweighted mean of the skills."""
        return np.mean(list(parts.values()), axis=0)


def _wanted(skill: str, objects: list[dict[str, Any]], where: str) -> dict[str, Any]:
    try:
        if skill == "spatial":
            a = next(o for o in objects if o["relation"])
            b = next(o for o in objects if o is not a)
            relation = str(a["relation"]).split("_")[0]
            return {
                "skill": skill,
                "class": a["coconame"],
                "relation": relation,
                "target": b["coconame"],
            }
        return {"skill": skill, "class": objects[0]["coconame"], "count": len(objects)}
    except (KeyError, IndexError, StopIteration):
        raise GessoError(
            f"{where} has another layout than expected: its objects have no coconame or relation."
        ) from None


BENCHMARK = DallEvalSkills
