"""PixArt's first two stages against captions from the first step, at equal compute.

PixArt-alpha (arXiv 2310.00426, section 2.2) learns how pictures look from class labels first, and
what captions mean afterwards, from the model that this gives.
"""

from __future__ import annotations

from gesso.config import Recipe
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers

STEPS = 280  # of the arm that sees captions only
CAPTIONS = 0.6  # share of the compute that the arm with stages has for captions
COMMON = ["train.ema=0.98", "sample.sampler=euler", "sample.num_inference_steps=12"]
LABELS = [
    "backbone.name=dit",
    "text_encoder={name: classes}",
    "data.source.classes=true",
    "data.caption_weights=null",
    "validation.prompts=[red circle]",
]


def experiment() -> Experiment:
    """Two arms with the same FLOPs of training."""
    return Experiment(
        name="stages",
        claim="Learning from class labels first and from captions afterwards reaches better "
        "pictures for the same compute than captions alone (PixArt-α, section 2.2).",
        setting="Scenes of level 1, the demo's network, one core. Scratch: "
        f"{STEPS} steps of 64 on captions. Stages: a class-conditional DiT on labels (colour and "
        "shape of a scene's first object), then PixArt from it by re-parametrised adaLN, with "
        f"{CAPTIONS:.0%} of the FLOPs; the FLOPs of both arms are counted and equal.",
        arms=[
            Arm("scratch", "captions from the first step", _scratch),
            Arm("stages", "labels first, then captions", _stages),
        ],
        claims=[
            Claim(
                "Stages end at a lower loss on held-out pictures with their captions",
                "loss",
                {"scratch": 1, "stages": -1},
            ),
            Claim("Stages score higher", "overall", {"stages": 1, "scratch": -1}),
            Claim("Stages paint more colours right", "colors", {"stages": 1, "scratch": -1}),
        ],
        metrics={
            "loss": "held-out loss",
            "overall": "GenEval on scenes",
            "colors": "of which colours",
            "tflop": "training (TFLOP)",
            "seconds": "training (s)",
        },
        figure=["loss", "overall", "colors"],
    )


def _captions(job: Job, steps: int) -> Recipe:
    return measure.recipe(job, [*COMMON, f"train.steps={steps}"])


def _scratch(job: Job) -> Numbers:
    return _numbers(job, [measure.train(job, _captions(job, STEPS))])


def _stages(job: Job) -> Numbers:
    captions = _captions(job, round(CAPTIONS * STEPS))
    labels = measure.recipe(job, [*COMMON, *LABELS])
    ratio = measure.training_flops(captions) / measure.training_flops(labels)
    if not job.quick:
        labels.train.steps = round((1 - CAPTIONS) * STEPS * ratio)
    first = measure.train(job, labels, "labels")
    captions.init, captions.convert = str(first.run), {"name": "adaln_single"}
    return _numbers(job, [first, measure.train(job, captions, "captions")])


def _numbers(job: Job, trained: list[measure.Trained]) -> Numbers:
    scores = measure.scenes(job, trained[-1].run)
    return {
        "loss": trained[-1].loss,
        "overall": scores["overall"],
        "colors": scores["colors"],
        "tflop": sum(t.flops for t in trained) / 1e12,
        "seconds": sum(t.seconds for t in trained),
    }
