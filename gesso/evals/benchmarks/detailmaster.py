"""DetailMaster (mini): 800 prompts of about 285 tokens; attributes, locations, scene, relations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gesso.evals.prompt_files import check_keys, locate, read_json
from gesso.evals.types import (
    YES_NO,
    Benchmark,
    Detection,
    Judging,
    Options,
    Picture,
    Prompt,
    Verdict,
    detect,
    questions,
)
from gesso.types import GessoError

THRESHOLD = 0.3  # confidences must exceed it


class DetailMaster(Benchmark):
    title = "DetailMaster (mini)"
    source = "Jiao et al., arXiv 2505.16915; questions in gesso's own words"
    judge_asked = "a grounding detector and Qwen2.5-VL"
    judges = (
        "hf-detector:IDEA-Research/grounding-dino-tiny",
        "hf-vqa:Salesforce/blip-vqa-capfilt-large",
    )
    needs = ("detect", "answer")
    n = 1

    def prompts(self, options: Options) -> list[Prompt]:
        """`DetailMaster_mini_benchmark.json`."""
        file = locate(
            options.prompts,
            "detailmaster",
            ["DetailMaster_mini_benchmark.json"],
            "https://github.com/modelscope/data-juicer (branch DetailMaster)",
        )
        rows = read_json(file)
        if not isinstance(rows, list):
            raise GessoError(f"{file} has another layout than expected: it is no list.")
        keys = ("polished_prompt", "character_attributes", "character_locations")
        prompts = []
        for i, row in enumerate(rows):
            check_keys(row, (*keys, "scene_attributes"), f"{file}, entry {i + 1}")
            meta = {k: row[k] for k in ("character_attributes", "character_locations")}
            meta["scene_attributes"] = row["scene_attributes"]
            kind = row.get("mini_bench_target", "")
            prompts.append(Prompt(f"{i:04}", row["polished_prompt"], meta, (kind,) if kind else ()))
        return prompts

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        picture, meta = pictures[0], prompt.meta
        named = [*meta["character_attributes"], *meta["character_locations"]]
        names = tuple(dict.fromkeys(entry["main_character"] for entry in named))
        found = (yield from detect(picture, names)) if names else []
        boxes: dict[str, Detection] = {}
        for detection in sorted(found, key=lambda d: d.confidence):
            if detection.confidence > THRESHOLD:
                boxes[detection.label] = detection
        parts: dict[str, list[float]] = {}
        reasons = [f"no {name}" for name in names if name not in boxes]
        asked: list[tuple[str, str]] = []
        for entry in meta["character_attributes"]:
            name = entry["main_character"]
            for trait in entry["characteristics_list"]:
                if name in boxes:
                    trait = str(trait).replace(":", " is ")
                    asked.append(("attributes", f"Is this true of the {name}: {trait}?"))
                else:  # without the character there are no attributes of it
                    parts.setdefault("attributes", []).append(0.0)
        for entry in meta["character_locations"]:
            name, wanted = entry["main_character"], entry["position"].lower()
            right = name in boxes and _lies(boxes[name], wanted, picture)
            parts.setdefault("locations", []).append(float(right))
            if name in boxes and not right:
                reasons.append(f"{name} is not at: {entry['position']}")
        for entry in meta["scene_attributes"]:
            contents = entry["content"]
            kind = "relations" if isinstance(contents, list) else "scene"
            for text in contents if isinstance(contents, list) else [contents]:
                asked.append((kind, f"Is this true of the picture: {text}"))
        answers = yield from questions(picture, [(text, YES_NO) for _, text in asked])
        for (kind, text), answer in zip(asked, answers, strict=True):
            if answer.choice:
                parts.setdefault(kind, []).append(float(answer.choice == "yes"))
                reasons += [f"{text} no"] if answer.choice == "no" else []
        values = [v for some in parts.values() for v in some]
        return Verdict(
            float(np.mean(values)) if values else None,
            reasons,
            parts,
            asked=len(asked) + len(names),
            abstained=sum(not answer.choice for answer in answers),
        )

    def total(self, mean: np.ndarray, parts: dict[str, np.ndarray]) -> np.ndarray:
        """Unweighted mean of the four kinds of detail."""
        return np.mean(list(parts.values()), axis=0) if parts else mean


def _lies(found: Detection, wanted: str, picture: Picture) -> bool:
    """Whether a box's centre lies in the third that "the upper left part" names, on each axis.

    An axis that is not named must be in its middle third if neither is, else anywhere.
    """
    height, width = picture.pixels.shape[:2]
    x = (found.box[0] + found.box[2]) / 2 / width
    y = (found.box[1] + found.box[3]) / 2 / height
    column, row = min(int(3 * x), 2), min(int(3 * y), 2)
    columns = [i for i, name in ((0, "left"), (2, "right")) if name in wanted]
    rows = [i for i, name in ((0, "upper"), (2, "lower")) if name in wanted]
    if not columns and not rows:
        columns, rows = [1], [1]
    return (not columns or column in columns) and (not rows or row in rows)


BENCHMARK = DetailMaster
