"""Inner loop feedback: middle blocks run twice, and half as many steps (arXiv:2501.13107)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gesso.systems import System, miniature

if TYPE_CHECKING:
    from gesso.config import Recipe
    from gesso.experiments.design import Experiment

RECIPE = "ilf"

SYSTEM = System(
    title="Accelerate High-Quality Diffusion Models with Inner Loop Feedback",
    paper="2501.13107",
    adds="a block that feeds what the middle blocks made back into them; it alone is trained",
    published="the paper; its code is private",
    differs="distilled from two steps of the guided model where the student's own way from noise "
    "leads; the paper regresses the noise estimate of a later time, by a rule that it does not "
    "tell; the feedback block starts as a copy, every step has feedback, and the second round is "
    "told the time of the first",
    read=[
        "recipes/ilf.yaml",
        "nn/hooks.py",
        "adapters/inner_loop.py",
        "objectives/ilf.py",
        "adapters/block_cache.py",
        "experiments/ilf.py",
    ],
    commands=[
        "gesso train ilf",
        'gesso paint "a blue star" --model runs/ilf',
        "gesso reproduce ilf --quick",
    ],
)


def tiny() -> Recipe:
    """The distillation at the size of the test battery."""
    return miniature(RECIPE, "backbone.depth=3", "backbone.hidden_size=32")


def claim() -> list[Experiment]:
    """The experiments behind `gesso reproduce ilf`."""
    from gesso.experiments import ilf

    return [ilf.experiment()]
