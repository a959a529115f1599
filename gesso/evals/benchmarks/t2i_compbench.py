"""T2I-CompBench, with the scorer of 2024: eight categories of 300 prompts, ten pictures each.

Relations in depth ("3d_spatial") are asked about where a judge tells depth.

The scorer of 2023 is `t2i-compbench-2023`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gesso.evals.compbench import (
    DEEP,
    SCORER_2024,
    SYNONYMS,
    Generation,
    binding,
    depth_score,
    most_confident,
    numeracy_score,
    parse_counts,
    parse_relation,
    related_nouns,
    spatial_score,
)
from gesso.evals.prompt_files import locate, read_lines
from gesso.evals.types import (
    Ask,
    Benchmark,
    Depth,
    Judging,
    Means,
    Options,
    Picture,
    Prompt,
    Published,
    Verdict,
    detect,
    match,
)

ATTRIBUTES = ("color", "shape", "texture")
CATEGORIES = (*ATTRIBUTES, "spatial", "numeracy", "non_spatial", "complex")
DEPTH = "3d_spatial"
NEW = ".813 .589 .733 .320"


def published(model: str, scores: str, judge: str) -> Published:
    """Colour, shape, texture and spatial scores, in that order."""
    values = map(float, scores.split())
    return Published(model, dict(zip(CATEGORIES, values, strict=False)), judge, "the paper")


class T2ICompBench(Benchmark):
    title = "T2I-CompBench, scorer of 2024"
    source = "Huang et al., arXiv 2307.06350, scorer as released in 2024"
    judge_asked = "BLIP-VQA, UniDet (RS200), DPT-Hybrid (MiDaS) and CLIP ViT-B/32"
    judges: ClassVar[tuple[str, ...]] = (
        "hf-vqa:Salesforce/blip-vqa-capfilt-large",
        "hf-detector:IDEA-Research/grounding-dino-tiny",
        "clip:openai/clip-vit-base-patch32",
        "hf-depth:Intel/dpt-hybrid-midas",
    )
    needs = ("answer", "detect", "similarity")
    n = 10
    revision = 2
    published: ClassVar[tuple[Published, ...]] = (published("SD3-M", NEW, "scorer of 2024"),)
    generation: ClassVar[Generation] = SCORER_2024
    categories: ClassVar[tuple[str, ...]] = (*CATEGORIES, DEPTH)

    def prompts(self, options: Options) -> list[Prompt]:
        """`color_val.txt`, `shape_val.txt`, ...: a prompt a line; and `new_objects.txt`."""
        get = "https://github.com/Karine-Huang/T2I-CompBench (folder examples/dataset)"
        first = locate(options.prompts, "t2i_compbench", ["color_val.txt"], get)
        folder = first.parent
        prompts = []
        for category in self.categories:
            if category == DEPTH and "depth" not in self.abilities:
                continue
            file = locate(folder, "t2i_compbench", [f"{category}_val.txt"], get)
            for i, text in enumerate(read_lines(file)):
                meta = self._meta(category, text, folder, get)
                prompts.append(Prompt(f"{category}-{i:03}", text, meta, (category,)))
        return prompts

    def _meta(self, category: str, text: str, folder: Path, get: str) -> dict[str, Any]:
        if category == "spatial":
            return {"relation": parse_relation(text)}
        if category == DEPTH:
            return {"relation": parse_relation(text, tuple(DEEP))}
        if category == "numeracy":
            if not hasattr(self, "_singular"):
                self._singular = _objects(locate(folder, "t2i_compbench", ["new_objects.txt"], get))
            return {"counts": parse_counts(text, self._singular)}
        return {}

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        picture, category = pictures[0], prompt.tags[0]
        if category in ATTRIBUTES:
            verdict = yield from binding(picture, prompt.text, self.generation)
        elif category == "spatial":
            verdict = yield from _spatial(picture, tuple(prompt.meta["relation"]))
        elif category == DEPTH:
            verdict = yield from _deep(picture, tuple(prompt.meta["relation"]))
        elif category == "numeracy":
            counts = [(name, count) for name, count in prompt.meta["counts"]]
            classes = tuple(dict.fromkeys(SYNONYMS.get(name, name) for name, _ in counts))
            found = yield from detect(picture, classes)
            score = numeracy_score(found, counts)
            seen = ", ".join(f"{sum(d.label == c for d in found)} x {c}" for c in classes)
            verdict = Verdict(score, [f"found {seen}"] if score < 1 else [])
        elif category == "non_spatial":
            verdict = yield from _similarity(picture, prompt.text)
        else:
            verdict = yield from self._complex(picture, prompt.text)
        if verdict.score is not None:
            verdict.parts = {category: [verdict.score]}
        return verdict

    def _complex(self, picture: Picture, text: str) -> Judging:
        """The mean of attribute binding, CLIP, and the relation where there is one."""
        verdicts = [(yield from binding(picture, text, self.generation))]
        relation = related_nouns(text)
        if relation is not None:
            verdicts.append((yield from _spatial(picture, relation)))
        verdicts.append((yield from _similarity(picture, text)))
        scores = [v.score for v in verdicts if v.score is not None]
        return Verdict(
            float(np.mean(scores)) if len(scores) == len(verdicts) else None,
            [reason for v in verdicts for reason in v.reasons],
            asked=sum(v.asked for v in verdicts),
            abstained=sum(v.abstained for v in verdicts),
        )

    def total(self, mean: np.ndarray, parts: Means) -> np.ndarray:
        """Unweighted mean of the categories. The paper gives none; it serves to rank."""
        return np.mean(list(parts.values()), axis=0)


Asked = Generator[Sequence[Ask], list[Any], Verdict]


def _spatial(picture: Picture, relation: tuple[str, ...]) -> Asked:
    a, between, b = relation
    found = yield from detect(picture, tuple(dict.fromkeys((a, b))))
    score = spatial_score(found, a, b, between)
    return Verdict(score, [f"{a} {between} {b}: {score:.2f}"] if score < 0.95 else [])


def _deep(picture: Picture, relation: tuple[str, ...]) -> Asked:
    a, between, b = relation
    found = most_confident((yield from detect(picture, tuple(dict.fromkeys((a, b))))))
    nearness: Sequence[float] = ()
    if a in found and b in found:
        (nearness,) = yield [Depth(picture, (found[a].box, found[b].box))]
    score = depth_score(found.get(a), found.get(b), between, nearness)
    return Verdict(score, [f"{a} {between} {b}: {score:.2f}"] if score < 0.95 else [])


def _similarity(picture: Picture, text: str) -> Asked:
    ((cosine,),) = yield from match([picture], ((text,),))
    return Verdict(cosine)


def _objects(file: Path) -> dict[str, str]:
    """Singular and plural names -> singular."""
    names: dict[str, str] = {}
    for line in read_lines(file):
        singular, _, plural = (part.strip().lower() for part in line.partition(" - "))
        names |= {singular: singular, plural or singular: singular}
    return names


BENCHMARK = T2ICompBench
