"""OneIG-Bench in English: alignment, text, reasoning, style and diversity.

Each dimension is judged if a judge has the ability for it: alignment "answer", text "read",
reasoning "similarity", style "style", diversity "embed".
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gesso.evals.graph import Node, ask_yes_no, grade, nodes_of
from gesso.evals.prompt_files import file_id, locate, read_csv, read_json
from gesso.evals.spelling import compare
from gesso.evals.types import (
    Benchmark,
    Embed,
    Judging,
    Match,
    Means,
    Options,
    Picture,
    Prompt,
    Published,
    Read,
    Style,
    Verdict,
)
from gesso.types import GessoError

GRAPHS = {"Anime_Stylization": "anime", "Portrait": "human", "General_Object": "object"}
MOST_EDITS = 100  # ED is cut here; 50 for Chinese
TEXT_PARTS = ("edits", "complete", "words found", "words wanted")
DIMENSIONS = ("alignment", "text", "reasoning", "style", "diversity")
REFERENCES = "the folder scripts/style of OneIG-Bench's repository"
ENCODERS = ("CSD_embed.pt", "SE_embed.pt")  # references of a style, of each encoder


class OneIG(Benchmark):
    title = "OneIG-Bench (English)"
    source = "Chang et al., arXiv 2506.07977"
    judge_asked = (
        "Qwen2.5-VL-7B (alignment, text), LLM2CLIP (reasoning), CSD and its own encoder (style), "
        "DreamSim (diversity)"
    )
    judges = (
        "hf-vqa:Salesforce/blip-vqa-capfilt-large",
        "ocr",
        "clip:openai/clip-vit-base-patch32",
    )
    needs = ("answer|read|similarity|style|embed",)
    together = True
    table: ClassVar[str] = "OneIG-Bench.csv"
    column: ClassVar[str] = "prompt_en"
    graphs: ClassVar[dict[str, str]] = GRAPHS
    suffix: ClassVar[str] = ""
    most_edits: ClassVar[int] = MOST_EDITS
    published: ClassVar[tuple[Published, ...]] = tuple(
        Published(model, {"overall": score}, "its five judges", "the paper")
        for model, score in (
            ("SD1.5", 0.319),
            ("SDXL", 0.316),
            ("Sana-1.6B", 0.327),
            ("FLUX.1-dev", 0.434),
            ("SD3.5-L", 0.462),
            ("HiDream-I1", 0.477),
        )
    )

    def prompts(self, options: Options) -> list[Prompt]:
        """`OneIG-Bench.csv`, and from `scripts` beside it the questions, texts and answers."""
        file = locate(
            options.prompts, "oneig", [self.table], "https://github.com/OneIG-Bench/OneIG-Benchmark"
        )
        scripts = file.parent / "scripts"
        graphs = {
            category: read_json(scripts / "alignment" / "Q_D" / f"{name}{self.suffix}.json")
            for category, name in self.graphs.items()
        }
        texts = {
            row["id"]: _joined(row["text_content"])
            for row in read_csv(
                scripts / "text" / f"text_content{self.suffix}.csv", ["id", "text_content"]
            )
        }
        answers = read_json(scripts / "reasoning" / f"gt_answer{self.suffix}.json")
        styles = self._styles(scripts / "style") if "style" in self.abilities else {}
        prompts = []
        for row in read_csv(file, ["category", "id", self.column]):
            category, key = row["category"], row["id"]
            meta: dict[str, Any] = {}
            if category in graphs and key in graphs[category]:
                meta["questions"] = _questions(graphs[category][key], file)
            if category == "Text_Rendering" and key in texts:
                meta["text"] = texts[key]
            if category == "Anime_Stylization" and key in styles:
                meta["style"] = styles[key]
            if category == "Knowledge_Reasoning" and key in answers:
                meta["answer"] = answers[key]
            prompts.append(
                Prompt(file_id(f"{category}-{key}"), row[self.column], meta, (category,))
            )
        return prompts

    def _styles(self, folder: Path) -> dict[str, str]:
        """Prompt's id -> style; the references are kept for judging.

        Raises:
            GessoError: the files are not there, or lack a style.
        """
        from torch.nn import functional as F

        from gesso.evals.networks import read_tensors

        self._references = [
            {
                name: F.normalize(value.float(), dim=-1).numpy()  # [K, D]
                for name, value in read_tensors(
                    folder / file, "style reference", REFERENCES
                ).items()
            }
            for file in ENCODERS
        ]
        styles = {
            row["id"]: row["class"].lower().replace(" ", "_")
            for row in read_csv(folder / "style.csv", ["id", "class"])
            if row["class"].strip()
        }
        for file, table in zip(ENCODERS, self._references, strict=True):
            if lacking := sorted(set(styles.values()) - set(table)):
                raise GessoError(f"{folder / file} has no reference of the style {lacking[0]!r}.")
        return styles

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        result = Verdict(None, asked=0)
        scores: dict[str, float] = {}
        if "questions" in prompt.meta and "answer" in self.abilities:
            nodes, values = nodes_of(prompt), []
            for picture in pictures:
                found = grade(nodes, (yield from ask_yes_no(picture, nodes)))
                result.asked += found.asked
                result.abstained += found.abstained
                result.reasons += found.reasons
                values += [] if found.score is None else [found.score]
            if values:
                scores["alignment"] = float(np.mean(values))
                result.parts["alignment"] = [scores["alignment"]]
        if "text" in prompt.meta and "read" in self.abilities:
            readings = yield [Read(picture) for picture in pictures]
            spelled = [compare(prompt.meta["text"], reading) for reading in readings]
            columns = ([float(s.edits), float(s.edits == 0), s.found, s.wanted] for s in spelled)
            for name, column in zip(TEXT_PARTS, zip(*columns, strict=True), strict=True):
                result.parts[name] = list(map(float, column))
            scores["text"] = float(np.mean([s.accuracy for s in spelled]))
            result.asked += len(readings)
        if "answer" in prompt.meta and "similarity" in self.abilities:
            rows = yield [Match(picture, ((prompt.meta["answer"],),)) for picture in pictures]
            scores["reasoning"] = float(np.mean(rows))
            result.parts["reasoning"] = [scores["reasoning"]]
            result.asked += len(pictures)
        if "style" in prompt.meta:
            told = yield [Style(picture) for picture in pictures]
            references = [table[prompt.meta["style"]] for table in self._references]
            scores["style"] = float(np.mean([style_score(one, references) for one in told]))
            result.parts["style"] = [scores["style"]]
            result.asked += len(pictures)
        if len(pictures) > 1 and "embed" in self.abilities:
            features = yield [Embed(picture) for picture in pictures]
            scores["diversity"] = float(np.mean([1 - a @ b for a, b in combinations(features, 2)]))
            result.parts["diversity"] = [scores["diversity"]]
            result.asked += len(pictures)
        if scores:
            result.score = float(np.mean(list(scores.values())))
            result.reasons += [f"{name} {value:.2f}" for name, value in scores.items()]
        return result

    def total(self, mean: np.ndarray, parts: Means) -> np.ndarray:
        """Unweighted mean of the dimensions that were judged.

        Text is 1 - min(100, ED) (1 - CR) (1 - WAC) / 100 with ED the mean edit distance, CR the
        share of texts without an error, WAC found words over wanted words.
        """
        if TEXT_PARTS[0] in parts:
            edits, complete, found, wanted = (parts.pop(name) for name in TEXT_PARTS)
            lost = np.minimum(edits, self.most_edits) / self.most_edits
            parts["text"] = 1 - lost * (1 - complete) * (1 - found / wanted)
        judged = [parts[name] for name in DIMENSIONS if name in parts]
        return np.mean(judged, axis=0) if judged else mean


def style_score(told: np.ndarray, references: Sequence[np.ndarray]) -> float:
    """The likest reference counts, never below 0; the mean over the encoders.

    Args:
        told: [D], a picture's features of each encoder, one after the other.
        references: [K, D_e] of each encoder.

    Raises:
        GessoError: other encoders than the references are of.
    """
    widths = [table.shape[1] for table in references]
    if sum(widths) != len(told):
        raise GessoError(
            f"The style judge tells {len(told)} features and OneIG-Bench's references have "
            f"{' + '.join(map(str, widths))}: take the two encoders that it names."
        )
    parts = np.split(told, np.cumsum(widths)[:-1])
    likest = [max(0.0, float((t @ part).max())) for part, t in zip(parts, references, strict=True)]
    return sum(likest) / len(likest)


def _questions(entry: dict[str, Any], file: Path) -> list[dict[str, Any]]:
    """Questions and dependencies stand in the file as JSON inside JSON."""
    try:
        texts, parents = (
            json.loads(v) if isinstance(v, str) else v
            for v in (entry["question"], entry["dependency"])
        )
        return [
            asdict(
                Node(str(key), text, tuple(str(p) for p in parents.get(key, ()) if str(p) != "0"))
            )
            for key, text in texts.items()
        ]
    except (KeyError, ValueError, AttributeError, TypeError) as e:
        raise GessoError(
            f"A question graph beside {file} has another layout than expected: {e!r}."
        ) from None


def _joined(content: str) -> str:
    """A list of texts, written as Python writes it, or one text."""
    try:
        value = ast.literal_eval(content)
    except (ValueError, SyntaxError):
        return content
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


BENCHMARK = OneIG
