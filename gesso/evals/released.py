"""DSG's released answers of three VQA models, and people's ratings of the same pictures.

From https://github.com/j-min/DSG: `vqa_answers_release/*.csv`, `dsg/data/tifa160-likert-anns.csv`.
They show whether the question graphs here score as the paper's do, and how far a judge's scores
follow people's.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from gesso.evals.benchmarks.dsg import kind_of
from gesso.evals.graph import Node, grade, read_graphs
from gesso.evals.prompt_files import read_csv

JUDGES = {"mplug": "mPLUG-large", "instructblip": "InstructBLIP", "pali17b": "PaLI-17B"}
RATED = ("mini-dalle", "sd1dot1", "sd1dot5", "sd2dot1", "vq-diffusion")

Item = tuple[str, str]  # text-to-image model, item id


def released_answers(folder: Path, judge: str, questions: str) -> dict[Item, dict[str, str]]:
    """What a VQA model answered, by question id.

    Args:
        folder: a copy of the repository.
        judge: a key of `JUDGES`.
        questions: "dsg" or "vq2a", whose right answers all are "yes".

    Raises:
        GessoError: no such file, or another layout.
    """
    file = folder / "vqa_answers_release" / f"{judge}_{questions}.csv"
    answers: dict[Item, dict[str, str]] = defaultdict(dict)
    for row in read_csv(file, ["t2i_model", "item_id", "question", "answer"]):
        of = answers[row["t2i_model"], row["item_id"]]
        of[row.get("question_id") or str(len(of) + 1)] = row["answer"]
    return dict(answers)


def released_scores(folder: Path, judge: str, questions: str = "dsg") -> dict[Item, float]:
    """The score of each picture as the paper counts: whatever is not "yes" is wrong.

    Here an empty or strange answer counts as wrong, as published; a benchmark that is run counts
    it as an abstention.
    """
    graphs = read_graphs(folder / "dsg" / "data" / "dsg-1k-anns.csv")
    scores = {}
    for (model, item), answers in released_answers(folder, judge, questions).items():
        parents = {n.id: n.parents for n in graphs[item][1]} if questions == "dsg" else {}
        nodes = [Node(key, key, parents.get(key, ())) for key in answers]
        told = {key: "yes" if answer == "yes" else "no" for key, answer in answers.items()}
        scores[model, item] = grade(nodes, told).score or 0.0
    return scores


def mean_by_kind(scores: dict[Item, float], folder: Path, model: str) -> dict[str, float]:
    """A model's mean score in percent by kind of prompt, and over "all" prompts.

    A prompt without answers counts 0, as in the paper's own code.
    """
    kinds: dict[str, list[float]] = defaultdict(list)
    for item in read_graphs(folder / "dsg" / "data" / "dsg-1k-anns.csv"):
        score = scores.get((model, item), 0.0)
        kinds[kind_of(item)].append(100 * score)
        kinds["all"].append(100 * score)
    return {kind: float(np.mean(values)) for kind, values in kinds.items()}


def human_ratings(folder: Path) -> dict[Item, float]:
    """Mean rating, 1 to 5, of each TIFA160 picture of five models."""
    ratings: dict[Item, list[int]] = defaultdict(list)
    file = folder / "dsg" / "data" / "tifa160-likert-anns.csv"
    for row in read_csv(file, ["t2i_model", "item_id", "answer"]):
        ratings[row["t2i_model"], row["item_id"]].append(int(row["answer"]))
    return {item: float(np.mean(values)) for item, values in ratings.items()}


def correlation(scores: dict[Item, float], ratings: dict[Item, float]) -> tuple[float, float]:
    """Spearman's rho and Kendall's tau-b over all rated pictures; one without score counts 0."""
    from scipy.stats import kendalltau, spearmanr

    items = [(model, f"tifa160_{i}") for model in RATED for i in range(160)]
    ours = [scores.get(item, 0.0) for item in items]
    theirs = [ratings[item] for item in items]
    return float(spearmanr(ours, theirs).statistic), float(kendalltau(ours, theirs).statistic)
