"""BizEval: slides and infographics with much text, by OCR, apart by the number of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gesso.evals.prompt_files import check_keys, file_id, locate, read_json
from gesso.evals.spelling import verdict
from gesso.evals.types import Benchmark, Judging, Options, Picture, Prompt, read
from gesso.types import GessoError

FILES = ("slides.json", "infographics.json")
LAYERS = ((10, "up to 10 layers"), (15, "11 to 15 layers"), (20, "16 to 20 layers"))


class BizEval(Benchmark):
    title = "BizEval"
    source = "Peng et al., BizGen, arXiv 2503.20672"
    judge_asked = "an OCR engine"
    judges = ("ocr",)
    needs = ("read",)
    n = 1

    def prompts(self, options: Options) -> list[Prompt]:
        """`slides.json` and `infographics.json`: layers, of which those of text are to be read."""
        get = "https://github.com/1230young/bizgen (folder meta)"
        first = locate(options.prompts, "bizeval", FILES, get)
        files = [first] if options.prompts == first else [first.with_name(n) for n in FILES]
        prompts = []
        for file in files:
            if not file.is_file():
                continue
            rows = read_json(file)
            if not isinstance(rows, list):
                raise GessoError(f"{file} has another layout than expected: it is no list.")
            for i, row in enumerate(rows):
                where = f"{file}, entry {i + 1}"
                row = check_keys(row, ("index", "layers_all", "full_image_caption"), where)
                words = [text for layer in row["layers_all"] if (text := _text_of(layer))]
                if words:
                    prompts.append(
                        Prompt(
                            file_id(f"{file.stem}-{row['index']}"),
                            row["full_image_caption"],
                            {"text": "\n".join(words)},
                            (file.stem, _bucket(len(row["layers_all"]))),
                        )
                    )
        return prompts

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        found = verdict(prompt.meta["text"], (yield from read(pictures[0])))
        assert found.score is not None
        found.parts |= {tag: [found.score] for tag in prompt.tags}
        return found


def _text_of(layer: dict[str, Any]) -> str:
    """The words of a text layer: its own field, or quoted in its caption."""
    if layer.get("category") != "text":
        return ""
    if layer.get("text"):
        return str(layer["text"])
    quoted = str(layer.get("caption", "")).split('"')
    return '"'.join(quoted[1:-1])


def _bucket(layers: int) -> str:
    return next((name for most, name in LAYERS if layers <= most), "more than 20 layers")


BENCHMARK = BizEval
