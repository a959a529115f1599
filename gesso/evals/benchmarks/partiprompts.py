"""PartiPrompts: 1,632 prompts in twelve categories and eleven challenges."""

from __future__ import annotations

from collections.abc import Sequence

from gesso.evals.alignment import NEEDS, alignment
from gesso.evals.prompt_files import locate, read_csv
from gesso.evals.types import Benchmark, Judging, Options, Picture, Prompt


class PartiPrompts(Benchmark):
    title = "PartiPrompts"
    source = "Yu et al., arXiv 2206.10789"
    judge_asked = "people, who compare two models"
    judges = ("hf-vqa:Salesforce/blip-vqa-capfilt-large",)
    needs = NEEDS
    n = 1

    def prompts(self, options: Options) -> list[Prompt]:
        """`PartiPrompts.tsv`: Prompt, Category, Challenge."""
        file = locate(
            options.prompts,
            "partiprompts",
            ["PartiPrompts.tsv"],
            "https://github.com/google-research/parti",
        )
        rows = read_csv(file, ["Prompt", "Category", "Challenge"], delimiter="\t")
        return [
            Prompt(f"{i:04}", row["Prompt"], {}, (row["Category"], row["Challenge"]))
            for i, row in enumerate(rows)
        ]

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        verdict = yield from alignment(pictures[0], prompt.text, self.abilities)
        if verdict.score is not None:
            category, challenge = prompt.tags
            verdict.parts = {category: [verdict.score], f"challenge: {challenge}": [verdict.score]}
        return verdict


BENCHMARK = PartiPrompts
