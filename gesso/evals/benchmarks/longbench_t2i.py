"""LongBench-T2I: 500 prompts of about 500 words, graded from 1 to 5 in nine dimensions."""

from __future__ import annotations

import ast
from collections.abc import Sequence

import numpy as np

from gesso.evals.prompt_files import locate, read_jsonl
from gesso.evals.types import Benchmark, Judging, Options, Picture, Prompt, Rate, Verdict
from gesso.types import GessoError

LOW, HIGH = 1.0, 5.0
CRITERION = (
    'Judge only one aspect of this picture: "{name}". It should be: {asked} '
    "How well is that met? 5: wholly; 1: not at all."
)


class LongBenchT2I(Benchmark):
    title = "LongBench-T2I"
    source = "Zhou et al., arXiv 2505.24787"
    judge_asked = "Gemini 2.0 Flash or InternVL3-78B, with their own wording of the question"
    judges = ("hf-vlm:Qwen/Qwen2.5-VL-7B-Instruct",)
    needs = ("rate",)
    n = 1
    scale = 5

    def prompts(self, options: Options) -> list[Prompt]:
        """`instruction.jsonl`: instruction and label, what each dimension asks for."""
        file = locate(
            options.prompts,
            "longbench_t2i",
            ["instruction.jsonl", "data/instruction.jsonl"],
            "https://github.com/yczhou001/LongBench-T2I (folder data)",
        )
        prompts = []
        for i, row in enumerate(read_jsonl(file, ("instruction", "label"))):
            try:
                told = row["label"]
                label = ast.literal_eval(told) if isinstance(told, str) else told
                asked = dict((label[0] if isinstance(label, list) else label).items())
            except (ValueError, SyntaxError, AttributeError, IndexError):
                raise GessoError(
                    f"{file} line {i + 1} has another layout than expected: its label is no list "
                    "of what each dimension asks for."
                ) from None
            prompts.append(Prompt(f"{i:03}", row["instruction"], {"asked": asked}))
        return prompts

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        asked = prompt.meta["asked"]
        grades = yield [
            Rate(pictures[0], CRITERION.format(name=name, asked=text), LOW, HIGH)
            for name, text in asked.items()
        ]
        parts = {
            name: [grade.value / HIGH]
            for name, grade in zip(asked, grades, strict=True)
            if grade.value is not None
        }
        low = [name for name, (value,) in parts.items() if value < 1]
        return Verdict(
            float(np.mean(list(parts.values()))) if parts else None,
            [f"{name}: {HIGH * parts[name][0]:g}" for name in low],
            parts,
            asked=len(asked),
            abstained=len(asked) - len(parts),
        )


BENCHMARK = LongBenchT2I
