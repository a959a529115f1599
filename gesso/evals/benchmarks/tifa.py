"""TIFA v1.0: 4,081 prompts, 25,829 questions with choices, answered freely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar

from gesso.evals.graph import Node, ask_freely, grade, nodes_of
from gesso.evals.prompt_files import check_keys, file_id, locate, read_json
from gesso.evals.types import Benchmark, Judging, Options, Picture, Prompt, Published
from gesso.types import GessoError


class TIFA(Benchmark):
    title = "TIFA v1.0"
    source = "Hu et al., arXiv 2303.11897"
    judge_asked = "mPLUG-large (VQA), and all-mpnet-base-v2 for the nearest choice"
    judges = (
        "hf-vqa:Salesforce/blip-vqa-capfilt-large",
        "sentences:sentence-transformers/all-mpnet-base-v2",
    )
    needs = ("answer", "text_similarity")
    n = 1
    scale = 100
    published: ClassVar = (
        Published("SD1.5", {"overall": 0.78}, "mPLUG-large", "the paper, about"),
        Published("SD2.1", {"overall": 0.82}, "mPLUG-large", "the paper, about"),
    )

    def prompts(self, options: Options) -> list[Prompt]:
        """`tifa_v1.0_question_answers.json`: a list of questions with id, caption, choices."""
        name = "tifa_v1.0_question_answers.json"
        file = locate(
            options.prompts,
            "tifa",
            [name, f"tifa_v1.0/{name}"],
            "https://github.com/Yushi-Hu/tifa (folder tifa_v1.0)",
        )
        rows = read_json(file)
        if not isinstance(rows, list):
            raise GessoError(
                f"{file} has another layout than expected: it is no list of questions."
            )
        prompts: dict[str, Prompt] = {}
        for i, row in enumerate(rows):
            needed = ("id", "caption", "question", "choices", "answer", "element_type")
            if isinstance(row, dict) and "answer_type" in row:  # the released file's name for it
                row = {"element_type": row["answer_type"], **row}
            check_keys(row, needed, f"{file}, question {i + 1}")
            key = file_id(str(row["id"]))
            kind = str(row["id"]).split("_")[0]
            prompt = prompts.setdefault(
                key, Prompt(key, row["caption"], {"questions": []}, (kind,))
            )
            prompt.meta["questions"].append(
                asdict(
                    Node(
                        str(len(prompt.meta["questions"]) + 1),
                        row["question"],
                        (),
                        row["element_type"],
                        row["answer"],
                        tuple(row["choices"]),
                    )
                )
            )
        return list(prompts.values())

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        nodes = nodes_of(prompt)
        return grade(nodes, (yield from ask_freely(pictures[0], nodes)))


BENCHMARK = TIFA
