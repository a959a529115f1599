"""DPG-Bench: 1,065 long prompts, yes/no questions in dependency graphs, four pictures each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar

from gesso.evals.graph import ask_yes_no, grade, nodes_of, read_graphs
from gesso.evals.prompt_files import file_id, locate
from gesso.evals.types import Benchmark, Judging, Options, Picture, Prompt, Published

SCORES = {
    "SD1.5": 63.18,
    "PixArt-alpha": 71.11,
    "SDXL": 74.65,
    "PixArt-Sigma": 80.54,
    "Sana-0.6B": 83.6,
    "FLUX.1-dev": 83.84,
    "SD3-M": 84.08,
    "Sana-1.6B": 84.8,
    "HiDream-I1": 85.89,
}


class DPG(Benchmark):
    title = "DPG-Bench"
    source = "Hu et al., arXiv 2403.05135"
    judge_asked = "mPLUG-large (VQA)"
    judges = ("hf-vqa:Salesforce/blip-vqa-capfilt-large",)
    needs = ("answer",)
    scale = 100
    published: ClassVar = tuple(
        Published(model, {"overall": score / 100}, "mPLUG-large", "model cards and papers")
        for model, score in SCORES.items()
    )

    def prompts(self, options: Options) -> list[Prompt]:
        """`dpg_bench.csv`: a question a row, in DSG's layout."""
        file = locate(
            options.prompts,
            "dpg_bench",
            ["dpg_bench.csv"],
            "https://github.com/TencentQQGYLab/ELLA (folder dpg_bench)",
        )
        return [
            Prompt(file_id(item), text, {"questions": [asdict(node) for node in nodes]})
            for item, (text, nodes) in read_graphs(file).items()
        ]

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        nodes = nodes_of(prompt)
        answers = yield from ask_yes_no(pictures[0], nodes)
        verdict = grade(nodes, answers, cascade=True)
        # First-level categories ("attribute"), then the second level ("attribute - color").
        broad: dict[str, list[float]] = {}
        for name, values in verdict.parts.items():
            broad.setdefault(name.split("-")[0].strip(), []).extend(values)
        verdict.parts = broad | {k: v for k, v in verdict.parts.items() if k not in broad}
        return verdict


BENCHMARK = DPG
