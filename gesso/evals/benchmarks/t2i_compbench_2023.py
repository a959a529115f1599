"""T2I-CompBench with the scorer of 2023, to compare with what was published then."""

from __future__ import annotations

from typing import ClassVar

from gesso.evals.benchmarks.t2i_compbench import CATEGORIES, T2ICompBench, published
from gesso.evals.compbench import SCORER_2023, Generation
from gesso.evals.types import Published

OLD = "scorer of 2023"


class T2ICompBench2023(T2ICompBench):
    title = "T2I-CompBench, scorer of 2023"
    source = "Huang et al., arXiv 2307.06350, scorer as released in 2023"
    judge_asked = "BLIP-VQA, UniDet and CLIP ViT-B/32"
    published: ClassVar[tuple[Published, ...]] = (
        published("SD1.5", ".375 .372 .416 .120", OLD),
        published("PixArt-alpha", ".689 .558 .704 .208", OLD),
        published("SDXL", ".637 .541 .564 .203", OLD),
    )
    judges: ClassVar[tuple[str, ...]] = T2ICompBench.judges[:3]  # no depth
    categories: ClassVar[tuple[str, ...]] = CATEGORIES
    generation: ClassVar[Generation] = SCORER_2023


BENCHMARK = T2ICompBench2023
