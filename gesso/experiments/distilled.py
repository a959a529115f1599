"""What a few-step model is judged by: scene rules, Fréchet distance, diversity."""

from __future__ import annotations

import numpy as np

from gesso.data.scenes import short_wordings
from gesso.evals import scenes
from gesso.evals.metrics.lpips_diversity import pairs
from gesso.experiments.classifier import LEVEL, Frechet
from gesso.experiments.classifier import scenes as some_scenes
from gesso.experiments.design import Job, Numbers
from gesso.pipeline import Pipeline

PICTURES = 1024  # for the Fréchet distance
PROMPTS, EACH = 24, 8  # for diversity: pictures of the same prompt
PER_TAG, N = 20, 2  # for GenEval's rules

METRICS = {
    "frechet": "Fréchet distance",
    "overall": "GenEval on scenes",
    "diversity": "distance of same-prompt pictures",
    "evaluations": "network evaluations a picture",
}


def judge(job: Job, pipe: Pipeline) -> Numbers:
    """Paint with a model as its contract says, and judge the pictures.

    Prompts and noise are the same in every call.

    Returns:
        frechet: of the classifier's features of `PICTURES` pictures, by short captions of scenes
            with held-out combinations, to real pictures of other such scenes.
        overall: GenEval's six tags on held-out combinations, by the reader.
        diversity: root of the mean squared distance of two pictures of a prompt, a pixel being 3
            numbers in 0..1.
        evaluations: of the network for one picture; a guided one counts twice.
    """
    quick = job.quick

    def paint(prompts: list[str], seeds: list[int]) -> np.ndarray:
        painted = pipe(prompts, seed=seeds, batch_size=scenes.CHUNK)
        return np.stack([np.asarray(image) for image in painted.images])

    wanted = some_scenes(16 if quick else PICTURES, 3, "test")
    prompts = [short_wordings(scene)[0] for scene in wanted]
    pictures = paint(prompts, list(range(len(prompts))))
    scores = scenes.evaluate(
        lambda texts, seeds: list(paint(texts, seeds)),
        level=LEVEL,
        per_tag=1 if quick else PER_TAG,
        n=1 if quick else N,
    )
    few, each = (2, 2) if quick else (PROMPTS, EACH)
    again = [prompt for prompt in prompts[:few] for _ in range(each)]
    alike = paint(again, [10_000 + i for i in range(len(again))])
    return {
        "frechet": Frechet(job).distance(pictures),
        "overall": scores["overall"],
        "diversity": diversity(alike.reshape(few, each, -1)),
        "evaluations": evaluations(pipe),
    }


def diversity(pictures: np.ndarray) -> float:
    """Of [prompts, pictures, values] uint8: the root of the mean squared distance in a prompt."""
    squared = [pairs(rows / 255) / rows.shape[1] for rows in pictures]
    return float(np.mean(squared) ** 0.5)


def evaluations(pipe: Pipeline) -> float:
    """Rows that the backbone computes for one picture, counted."""
    rows = 0

    def count(_module: object, arguments: tuple[np.ndarray, ...]) -> None:
        nonlocal rows
        rows += len(arguments[0])

    handle = pipe.model.backbone.register_forward_pre_hook(count)
    try:
        pipe("a red circle", seed=0)
    finally:
        handle.remove()
    return float(rows)
