"""DSG-1k: 1,060 prompts, 8,182 yes/no questions in dependency graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from gesso.evals.graph import ask_yes_no, grade, nodes_of, read_graphs
from gesso.evals.prompt_files import file_id, locate
from gesso.evals.types import Benchmark, Judging, Options, Picture, Prompt, Verdict

SOURCES = {
    "tifa": "tifa",
    "stanford": "paragraph",
    "localized": "paragraph",
    "countbench": "count",
    "vrd": "relation",
    "diffusiondb": "real user",
    "midjourney": "real user",
    "posescript": "pose",
    "whoops": "defying",
    "drawtext": "text",
}
"""Where an item id begins like this, its prompt is of this kind."""


class DSG(Benchmark):
    title = "DSG-1k"
    source = "Cho et al., arXiv 2310.18235"
    judge_asked = "a VQA model: PaLI-17B, mPLUG-large or InstructBLIP"
    judges = ("hf-vqa:Salesforce/blip-vqa-capfilt-large",)
    needs = ("answer",)
    n = 1

    def prompts(self, options: Options) -> list[Prompt]:
        """`dsg-1k-anns.csv`: a question a row."""
        file = locate(
            options.prompts,
            "dsg",
            ["dsg-1k-anns.csv", "dsg/data/dsg-1k-anns.csv"],
            "https://github.com/j-min/DSG (folder dsg/data)",
        )
        return [
            Prompt(
                file_id(item),
                text,
                {"questions": [asdict(node) for node in nodes]},
                (kind_of(item),),
            )
            for item, (text, nodes) in read_graphs(file).items()
        ]

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        nodes = nodes_of(prompt)
        verdict = grade(nodes, (yield from ask_yes_no(pictures[0], nodes)))
        return with_kind(verdict, prompt)


def kind_of(item: str) -> str:
    """The kind of prompt that an item id tells of."""
    return next((kind for head, kind in SOURCES.items() if item.startswith(head)), "other")


def with_kind(verdict: Verdict, prompt: Prompt) -> Verdict:
    """Kinds of prompts as categories (after zeroing) before those of questions (before it)."""
    if verdict.score is not None:
        verdict.parts = {f"prompts: {prompt.tags[0]}": [verdict.score], **verdict.parts}
    return verdict


BENCHMARK = DSG
