"""PixArt-delta: a PixArt that paints in a few steps, and follows a control (arXiv:2401.05252)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gesso.config import Recipe
from gesso.systems import System, miniature

if TYPE_CHECKING:
    from gesso.experiments.design import Experiment

RECIPE = "pixart-delta"

SYSTEM = System(
    title="PixArt-δ: Fast and Controllable Image Generation with Latent Consistency Models",
    paper="2401.05252",
    adds="latent consistency distillation (1 to 8 steps) and ControlNet-Transformer",
    published="XL/2 weights of the distilled 1024 px model, training code of both parts",
    differs="any model of ours that predicts epsilon, v or flow is distilled, all weights or a "
    "LoRA; on the flow path the grid of times is even in the path's own shift; rates are larger, "
    "as runs are of hundreds of steps",
    read=[
        "recipes/pixart-delta.yaml",
        "diffusion/consistency.py",
        "objectives/lcm.py",
        "samplers/lcm.py",
        "diffusion/schedules.py",
        "experiments/lcm.py",
    ],
    commands=[
        "gesso train pixart-delta",
        "gesso train pixart-delta adapter=lora",
        'gesso paint "a blue star" --model runs/pixart-delta --steps 2',
        "gesso reproduce pixart-delta --quick",
    ],
)


def tiny() -> Recipe:
    """The distillation at the size of the test battery."""
    return miniature(RECIPE, "backbone.depth=2", "backbone.hidden_size=32", "objective.steps=10")


def claim() -> list[Experiment]:
    """The experiments behind `gesso reproduce pixart-delta`."""
    from gesso.experiments import lcm

    return [lcm.experiment()]
