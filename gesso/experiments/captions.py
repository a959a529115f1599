"""Dense against short and noisy captions of the same pictures, at equal steps.

PixArt-alpha (arXiv 2310.00426, section 2.4) has a vision-language model write dense captions, as
captions from the web leave out most of what a picture shows. Here each scene has all three.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from gesso.data.scenes import Scene, captions, read, relations_between, sample_scene, short_wordings
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers

LEVEL = 1
ITEMS = 120
THRESHOLD = 0.3  # GenEval's, on the reader's confidence
STEPS = 400

ARMS = {
    "noisy": ({"noisy": 1.0}, "captions as on the web: incomplete, beside the point or wrong"),
    "short": ({"short": 1.0}, "correct captions that name what GenEval's prompts name"),
    "dense": (
        {"dense": 0.6, "short": 0.4},
        "60 % captions with every object's size, colour and place, 40 % short ones, the mixture of "
        "PixArt-Sigma",
    ),
}


def experiment() -> Experiment:
    """Three arms that differ in `data.caption_weights` alone."""
    return Experiment(
        name="captions",
        claim="Dense captions teach what words mean faster than the captions that pictures come "
        "with (PixArt-α, section 2.4).",
        setting=f"Scenes of level {LEVEL}. As in PixArt's second stage, a model that can paint "
        "learns to read: the shipped model with its text encoder and cross-attention drawn anew, "
        f"{STEPS} steps of 64 pictures, equal in everything but the captions. Judged by the reader "
        f"on {ITEMS} two-object scenes with held-out combinations, each asked for once in a short "
        "prompt (colours, shapes, relation) and once in a full one (sizes, colours, shapes, "
        "places).",
        arms=[Arm(name, about, partial(_run, weights)) for name, (weights, about) in ARMS.items()],
        claims=[
            Claim(
                f"Dense beats {other}: objects with the right shape and colour, {prompt} prompts",
                f"attributes_{prompt}",
                {"dense": 1, other: -1},
            )
            for other, prompt in (("short", "short"), ("noisy", "short"), ("short", "full"))
        ]
        + [
            Claim(
                f"Dense beats {other}: pairs in the right relation, {prompt} prompts",
                f"relations_{prompt}",
                {"dense": 1, other: -1},
            )
            for other, prompt in (("short", "short"), ("noisy", "short"), ("short", "full"))
        ],
        metrics={
            "attributes_short": "attributes right, short prompts",
            "relations_short": "relations right, short prompts",
            "attributes_full": "attributes right, full prompts",
            "relations_full": "relations right, full prompts",
            "tflop": "training (TFLOP)",
            "seconds": "training (s)",
        },
        figure=["attributes_short", "relations_short", "attributes_full", "relations_full"],
    )


def _run(weights: dict[str, float], job: Job) -> Numbers:
    fixed = [f"train.steps={STEPS}", "train.ema=0.98", "sample.sampler=euler"]
    recipe = measure.recipe(job, [*fixed, "sample.num_inference_steps=12"])
    recipe.data.caption_weights = weights
    recipe.init = str(measure.without_words(job, recipe))
    trained = measure.train(job, recipe)
    numbers = {"tflop": trained.flops / 1e12, "seconds": trained.seconds}
    scenes = test_scenes(2 if job.quick else ITEMS)
    for prompt, texts in (
        ("short", [short_wordings(scene)[0] for scene in scenes]),
        ("full", [next(c.text for c in captions(s) if c.kind == "dense") for s in scenes]),
    ):
        judged = judge(measure.paint(trained.run, texts), scenes)
        numbers |= {f"{metric}_{prompt}": value for metric, value in judged.items()}
    return numbers


def test_scenes(count: int) -> list[Scene]:
    """Scenes of two different shapes with a held-out combination, one in a clear relation.

    Their short captions name both colours and the relation.
    """
    found: list[Scene] = []
    index = 0
    while len(found) < count:
        scene = sample_scene(index, level=LEVEL, seed=1, split="test")
        index += 1
        if scene.relation:
            found.append(replace(scene, kind="color_attr"))
    return found


def judge(pictures: list[np.ndarray], scenes: list[Scene]) -> Numbers:
    """Compare pictures with the scenes that were asked for.

    Args:
        pictures: [H, W, 3] uint8, one a scene.
        scenes: of two objects each.

    Returns:
        attributes: share of the objects whose shape is there in the right colour.
        relations: share of the scenes whose two shapes are there in the relation, in any colours.
    """
    attributes, relations = [], []
    for picture, scene in zip(pictures, scenes, strict=True):
        seen = [d for d in read(picture, scene.level).objects if d.confidence > THRESHOLD]
        for asked in scene.objects:
            attributes.append(any((d.shape, d.color) == (asked.shape, asked.color) for d in seen))
        first, second = scene.objects
        relations.append(
            any(
                scene.relation in relations_between(a.box, b.box)
                for a in seen
                for b in seen
                if a.shape == first.shape and b.shape == second.shape
            )
        )
    return {"attributes": float(np.mean(attributes)), "relations": float(np.mean(relations))}
