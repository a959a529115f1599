"""DrawBench: 200 prompts."""

from __future__ import annotations

from collections.abc import Sequence

from gesso.evals.alignment import NEEDS, alignment
from gesso.evals.prompt_files import locate, read_lines
from gesso.evals.types import Benchmark, Judging, Options, Picture, Prompt


class DrawBench(Benchmark):
    title = "DrawBench"
    source = "Saharia et al., arXiv 2205.11487"
    judge_asked = "people, who compare two models"
    judges = ("hf-vqa:Salesforce/blip-vqa-capfilt-large",)
    needs = NEEDS
    n = 1

    def prompts(self, options: Options) -> list[Prompt]:
        """`drawbench.txt`: a prompt a line."""
        file = locate(
            options.prompts,
            "drawbench",
            ["drawbench.txt", "prompts/drawbench.txt"],
            "https://github.com/openai/dalle3-eval-samples (folder prompts)",
        )
        return [Prompt(f"{i:03}", text) for i, text in enumerate(read_lines(file))]

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        return (yield from alignment(pictures[0], prompt.text, self.abilities))


BENCHMARK = DrawBench
