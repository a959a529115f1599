"""SIM: one-step distillation by score implicit matching (arXiv:2410.16794)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gesso.experiments.verdict import NOT_SHOWN
from gesso.systems import Finding, System, miniature

if TYPE_CHECKING:
    from gesso.config import Recipe
    from gesso.experiments.design import Experiment

RECIPE = "sim"

SYSTEM = System(
    title="One-Step Diffusion Distillation through Score Implicit Matching",
    paper="2410.16794",
    adds="one-step generators from captions alone, by score divergences; DMD and Diff-Instruct",
    published="inference code and weights of a one-step PixArt-α at 512 px (SIM-DiT-600M)",
    differs="the loop, weights and schedules are those of SiD, which is SIM with a squared "
    "distance, as SIM's own are not published; DMD is its first term, without the regression to "
    "the teacher's pictures",
    read=[
        "recipes/sim.yaml",
        "objectives/sim.py",
        "nn/frozen.py",
        "diffusion/denoiser.py",
        "samplers/one_step.py",
        "train/loop.py",
        "experiments/sim.py",
        "experiments/mixture.py",
    ],
    commands=[
        "gesso train sim",
        "gesso train sim objective.divergence=kl objective.weight=residual",
        'gesso paint "a red circle" --model runs/sim',
        "gesso reproduce sim --quick",
    ],
    measured=[
        Finding(
            "on a mixture in the plane one step is closer to the truth than the teacher's four: "
            "sliced Wasserstein distance 0.064 and 0.061",
            NOT_SHOWN,
        ),
        Finding("shares of the modes are closer than Diff-Instruct's, 0.019 and 0.015", NOT_SHOWN),
        Finding("the squared distance swings more, 0.007 and 0.008", NOT_SHOWN),
    ],
)


def tiny() -> Recipe:
    """A generator of two layers, whose teacher has random weights."""
    return miniature(RECIPE, "backbone.depth=2", "backbone.hidden_size=32")


def claim() -> list[Experiment]:
    """The experiments behind `gesso reproduce sim`."""
    from gesso.experiments import mixture, sim

    return [mixture.experiment(), sim.experiment()]
