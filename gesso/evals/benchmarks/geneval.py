"""GenEval: 553 prompts in six categories, judged by a detector and CLIP for colours."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, ClassVar

import numpy as np

from gesso.evals.clauses import check, select
from gesso.evals.prompt_files import check_keys, locate, read_jsonl
from gesso.evals.types import (
    Ask,
    Benchmark,
    Detection,
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

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue",
          "purple", "pink", "brown", "black", "white")  # fmt: skip
TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}",
             "a photo of a {color} object")  # fmt: skip
GREY = 153  # "#999", behind a masked object

PAPERS = "Mask2Former and CLIP ViT-L/14"


def _row(model: str, overall: float, by_tag: str = "") -> Published:
    tags = dict(zip(TAGS, map(float, by_tag.split()), strict=True)) if by_tag else {}
    return Published(model, {"overall": overall} | tags, PAPERS, "model cards and papers")


class GenEval(Benchmark):
    title = "GenEval"
    source = "Ghosh et al., arXiv 2310.11513"
    judge_asked = "Mask2Former Swin-S (COCO) with masks; CLIP ViT-L/14 for colours"
    judges = (
        "hf-detector:facebook/mask2former-swin-small-coco-instance",
        "clip:openai/clip-vit-large-patch14",
    )
    needs = ("detect", "similarity")
    weight = "picture"
    published: ClassVar = (
        _row("SD1.5", 0.43, ".97 .38 .35 .76 .04 .06"),
        _row("PixArt-alpha", 0.48, ".98 .50 .44 .80 .08 .07"),
        _row("PixArt-Sigma", 0.53, ".99 .65 .46 .82 .12 .12"),
        _row("SDXL", 0.55, ".98 .74 .39 .85 .15 .23"),
        _row("SD3-M", 0.62, ".98 .74 .63 .67 .34 .36"),
        _row("Sana-0.6B", 0.64),
        _row("Sana-1.6B", 0.66),
        _row("FLUX.1-dev", 0.66, ".98 .81 .74 .79 .22 .45"),
        _row("HiDream-I1", 0.83, "1.00 .98 .79 .91 .60 .72"),
    )

    def prompts(self, options: Options) -> list[Prompt]:
        """`evaluation_metadata.jsonl`: tag, include, exclude, prompt a line."""
        file = locate(
            options.prompts,
            "geneval",
            ["evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl"],
            "https://github.com/djghosh13/geneval (folder prompts)",
        )
        prompts = []
        for index, row in enumerate(read_jsonl(file, ("tag", "prompt", "include"))):
            for clause in [*row["include"], *row.get("exclude", [])]:
                check_keys(clause, ("class", "count"), f"{file} line {index + 1}")
            meta: dict[str, Any] = {
                key: row[key] for key in ("tag", "include", "exclude") if key in row
            }
            prompts.append(Prompt(f"{index:05}", row["prompt"], meta, (row["tag"],)))
        return prompts

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        picture, meta = pictures[0], prompt.meta
        clauses = [*meta["include"], *meta.get("exclude", [])]
        classes = tuple(dict.fromkeys(clause["class"] for clause in clauses))
        found = yield from detect(picture, classes)
        objects = select(found, counting=meta["tag"] == "counting")

        def color_of(chosen: Sequence[Detection], label: str) -> Coloring:
            return (yield from colors_by_clip(picture, chosen, label))

        reasons = yield from check(objects, meta, color_of)
        right = float(not reasons)
        return Verdict(right, reasons, {meta["tag"]: [right]})

    def total(self, mean: np.ndarray, parts: Means) -> np.ndarray:
        """Unweighted mean of the categories."""
        return np.mean(list(parts.values()), axis=0)


Coloring = Generator[Sequence[Ask], list[Any], list[str]]


def colors_by_clip(picture: Picture, chosen: Sequence[Detection], label: str) -> Coloring:
    """The colour of each object: told by the detector, or zero-shot on its cut-out."""
    if all(d.color for d in chosen):
        return [d.color for d in chosen]
    texts = tuple(
        tuple(template.format(color=color, label=label) for template in TEMPLATES)
        for color in COLORS
    )
    cosines = yield from match([Picture(pixels=cut_out(picture, d)) for d in chosen], texts)
    return [COLORS[int(np.argmax(row))] for row in cosines]


def cut_out(picture: Picture, found: Detection) -> np.ndarray:
    """An object on grey, cropped to its box rounded to pixels, [h, w, 3] uint8."""
    pixels = picture.pixels
    if found.mask is not None:
        pixels = np.where(found.mask[..., None], pixels, np.uint8(GREY))
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = (round(v) for v in found.box)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    x1, y1 = min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)
    return np.ascontiguousarray(pixels[y0:y1, x0:x1])


BENCHMARK = GenEval
