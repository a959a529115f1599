"""Text rendering by OCR as in TextAtlasEval, on any prompts that say which text they want."""

from __future__ import annotations

from collections.abc import Sequence

from gesso.evals.prompt_files import file_id, locate, read_jsonl
from gesso.evals.spelling import verdict
from gesso.evals.types import Benchmark, Judging, Options, Picture, Prompt, read


class TextAtlas(Benchmark):
    title = "TextAtlasEval"
    source = "Wang et al., arXiv 2502.07870 (word accuracy, F1 and CER by OCR)"
    judge_asked = "an OCR engine"
    judges = ("ocr",)
    needs = ("read",)
    n = 1

    def prompts(self, options: Options) -> list[Prompt]:
        """A JSONL file with prompt and text, and perhaps id and subset, a line."""
        file = locate(
            options.prompts,
            "textatlas",
            ["textatlas.jsonl"],
            "https://huggingface.co/datasets/CSU-JPG/TextAtlasEval, a line "
            '{"prompt": ..., "text": ...} for each entry,',
        )
        return [
            Prompt(
                file_id(str(row.get("id", f"{i:05}"))),
                row["prompt"],
                {"text": row["text"]},
                (str(row["subset"]),) if "subset" in row else (),
            )
            for i, row in enumerate(read_jsonl(file, ("prompt", "text")))
        ]

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        found = verdict(prompt.meta["text"], (yield from read(pictures[0])))
        assert found.score is not None
        found.parts |= {tag: [found.score] for tag in prompt.tags}
        return found


BENCHMARK = TextAtlas
