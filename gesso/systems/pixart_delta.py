"""PixArt-delta: a PixArt that paints in a few steps, and follows a control (arXiv:2401.05252)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gesso.config import Recipe
from gesso.experiments.verdict import CONTRADICTED, NOT_SHOWN, SHOWN
from gesso.systems import Finding, System, miniature

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
    "as runs are of hundreds of steps; the control branch has the released wiring, in which the "
    "first copy reads what the first block wrote, or the ordinary one, and goes on every backbone "
    "with tokens; soft edges are computed, where the authors had HED",
    read=[
        "recipes/pixart-delta.yaml",
        "diffusion/consistency.py",
        "objectives/lcm.py",
        "samplers/lcm.py",
        "diffusion/schedules.py",
        "experiments/lcm.py",
        "recipes/pixart-delta-control.yaml",
        "nn/hooks.py",
        "adapters/controlnet.py",
        "controls/canny.py",
        "experiments/control.py",
    ],
    commands=[
        "gesso train pixart-delta",
        "gesso train pixart-delta adapter=lora",
        'gesso paint "a blue star" --model runs/pixart-delta --steps 2',
        "gesso train pixart-delta-control",
        'gesso paint "a red star" --model runs/pixart-delta-control --control-from star.png',
        "gesso reproduce pixart-delta --quick",
    ],
    measured=[
        Finding(
            "4 steps of a student of 300 training steps reach 95 % of its teacher's score at 20: "
            "0.69 of 0.83",
            CONTRADICTED,
        ),
        Finding("and are above the teacher at 4 steps and twice the cost, 0.71", NOT_SHOWN),
        Finding("and above the teacher at equal cost, 0.32", SHOWN),
        Finding(
            "A control branch of 300 steps follows edges, IoU 0.90 (without it 0.08), and 95 % of "
            "the caption's objects have their shape and colour",
            SHOWN,
        ),
        Finding("The released wiring follows better than the ordinary one, 0.90", NOT_SHOWN),
    ],
)


def tiny() -> Recipe:
    """The distillation at the size of the test battery."""
    return miniature(RECIPE, "backbone.depth=2", "backbone.hidden_size=32")


def tiny_control() -> Recipe:
    """The training of a control branch at that size."""
    return miniature(
        "pixart-delta-control", "backbone.depth=2", "backbone.hidden_size=32", "adapter.blocks=1"
    )


def claim() -> list[Experiment]:
    """The experiments behind `gesso reproduce pixart-delta`."""
    from gesso.experiments import control, lcm

    return [*lcm.experiments(), control.experiment()]
