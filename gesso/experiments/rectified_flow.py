"""Stable Diffusion 3's timestep laws, and its joint attention against cross-attention.

Esser et al. 2024 (arXiv 2403.03206), sections 3.1, 5.1 and 5.2. All arms learn to read in a model
that can paint: from random weights, the trainings of an experiment paint nothing yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from gesso.config import Recipe
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers

PICTURES = 9600  # in steps of 64
BATCH = 64
EULER = (5, 10, 25)  # steps of Euler's method
LAW, SHIFT = "logit_normal", 3
METRICS = {
    "loss": "held-out loss",
    **{f"overall_{n}": f"GenEval on scenes, {n} Euler steps" for n in EULER},
    "colors_25": "of which colours, 25 steps",
    "tflop": "training (TFLOP)",
    "seconds": "training (s)",
}
START = (
    "Scenes of level 1. Every arm starts from the shipped model with everything that reads drawn "
    "anew; an MMDiT takes over its patches, self-attention, MLPs and modulation, which is exact "
    "but for the final layer (gesso/convert/starts/joint_attention.py). "
)


@dataclass(frozen=True)
class Setting:
    """What an arm trains: the backbone and the law of its timesteps."""

    backbone: str = "mmdit"
    law: str = LAW

    def recipe(self, job: Job) -> Recipe:
        """As the arm trains it, without its start."""
        overrides = [
            f"diffusion.timesteps={self.law}",
            "diffusion.logit_mean=0",
            f"diffusion.shift={SHIFT}",
            f"train.batch_size={BATCH}",
            "train.compile=false",
            "train.ema=0.98",
            "sample.sampler=euler",
        ]
        if self.backbone == "pixart":
            return measure.recipe(job, overrides, "demo")
        carried = ["backbone.qk_norm=false", "backbone.table_size=8"]  # as the start wants it
        return measure.recipe(job, [*overrides, *carried], "sd3")


def experiments() -> list[Experiment]:
    """Three laws, and two backbones; the MMDiT with SD3's law is one training for both."""
    return [_laws(), _joint()]


def _laws() -> Experiment:
    arms = {
        "uniform": "t spread evenly",
        "logit-normal": "the middle favoured, nothing at the ends: location 0, scale 1",
        "mode": "the middle favoured, the ends kept: s = 1.29",
    }
    return Experiment(
        name="timesteps",
        claim="Rectified flow learns more from timesteps drawn from a logit-normal law than from "
        "uniform ones, above all where few steps are sampled (SD3, sections 3.1 and 5.1).",
        setting=f"{START}MMDiT, 6 blocks of 128, {PICTURES:,} pictures, flow path with shift "
        f"{SHIFT}, one core. Held-out loss on a fixed grid of times and noise, evenly spaced "
        "before the shift. The start was itself trained with a logit-normal law (location 0.4).",
        arms=[
            Arm(name, about, partial(_run, Setting(law=name.replace("-", "_"))))
            for name, about in arms.items()
        ],
        claims=[
            Claim(
                f"Logit-normal scores higher than uniform after {n} Euler steps",
                f"overall_{n}",
                {"logit-normal": 1, "uniform": -1},
            )
            for n in EULER
        ]
        + [
            Claim(
                "Mode scores higher than uniform after 25 Euler steps",
                "overall_25",
                {"mode": 1, "uniform": -1},
            ),
            Claim(
                "Logit-normal has a lower held-out loss than uniform",
                "loss",
                {"uniform": 1, "logit-normal": -1},
            ),
        ],
        metrics=METRICS,
        figure=["loss", *(f"overall_{n}" for n in EULER)],
    )


def _joint() -> Experiment:
    return Experiment(
        name="joint-attention",
        claim="At equal compute, image and text with weights of their own in one attention read "
        "better than an image that cross-attends to text (SD3, section 5.2).",
        setting=f"{START}6 blocks of 128; logit-normal timesteps (0, 1), shift {SHIFT}. The MMDiT "
        f"has {PICTURES:,} pictures, the PixArt as many as have the same FLOPs, forward and "
        "backward, counted. One core.",
        arms=[
            Arm("joint", "MMDiT", partial(_run, Setting())),
            Arm("cross", "PixArt's blocks", partial(_run, Setting(backbone="pixart"))),
        ],
        claims=[
            Claim("Joint attention scores higher", "overall_25", {"joint": 1, "cross": -1}),
            Claim("It paints more colours right", "colors_25", {"joint": 1, "cross": -1}),
            Claim("It has a lower held-out loss", "loss", {"cross": 1, "joint": -1}),
        ],
        metrics=METRICS,
        figure=["loss", "overall_25", "colors_25"],
    )


def _run(setting: Setting, job: Job) -> Numbers:
    name = f"{setting.backbone}-{setting.law}-{job.seed}"
    with measure.shared(job, name) as common:
        trained = measure.train(common, _started(setting, common))
    numbers = {
        "loss": trained.loss,
        "tflop": trained.flops / 1e12,
        "seconds": trained.seconds,
    }
    for n in EULER:
        scores = measure.scenes(job, trained.run, per_tag=20, n=1, num_inference_steps=n)
        numbers |= {f"{metric}_{n}": value for metric, value in scores.items()}
    return {metric: numbers[metric] for metric in METRICS}


def _started(setting: Setting, job: Job) -> Recipe:
    """The recipe from its start, for as many steps as its FLOPs allow."""
    recipe, joint = setting.recipe(job), Setting().recipe(job)
    if setting.backbone == "pixart":
        recipe.init = str(measure.without_words(job, recipe))
    else:
        recipe.init, recipe.convert = measure.PICTURE_MODEL, {"name": "joint_attention"}
    if not job.quick:
        recipe.train.steps = PICTURES // BATCH
        if setting.backbone == "pixart":
            ratio = measure.training_flops(joint) / measure.training_flops(recipe)
            recipe.train.steps = round(PICTURES / BATCH * ratio)
    return recipe
