"""Stretching Each Dollar: a diffusion transformer from nothing for $1,890 (arXiv:2407.15811)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gesso.config import Recipe
from gesso.experiments.verdict import CONTRADICTED
from gesso.systems import Finding, System, miniature

if TYPE_CHECKING:
    from gesso.experiments.design import Experiment

RECIPE = "micro-budget"

SYSTEM = System(
    title="Stretching Each Dollar: Diffusion Training from Scratch on a Micro-Budget",
    paper="2407.15811",
    adds="deferred patch masking, expert-choice mixtures, layer-wise scaling, EDM, four phases",
    published="code and weights of a 1.165-billion-parameter model at 512 px (MicroDiT-XL/2), "
    "trained in 2.6 days on 8 H100",
    differs="padding of the text is masked, where the authors attend to all 77 tokens of CLIP-H; "
    "positions of 512 px are those of 256 px stretched, as theirs, without a setting for it",
    read=[
        "backbones/microdit.py",
        "nn/moe.py",
        "nn/hooks.py",
        "adapters/deferred_mask.py",
        "objectives/denoise.py",
        "diffusion/paths.py",
        "experiments/masking.py",
    ],
    commands=[
        "gesso train micro-budget",
        "gesso plan micro-budget-xl --gpus 8 --gpu h100",
        "gesso reproduce micro-budget --quick",
    ],
    measured=[
        Finding(
            "deferred masking at 75 % against naive masking and a network of half the width at 3 "
            "TFLOP each, held-out loss after the fine-tune: 0.70, 0.68 and 0.47",
            CONTRADICTED,
        )
    ],
)


SMALL = [
    "backbone.depth=2",
    "backbone.hidden_size=32",
    "backbone.head_dim=16",
    "backbone.mixer_size=16",
    "backbone.experts=2",
]


def tiny() -> Recipe:
    """The first phase, masked, at the size of the test battery."""
    return miniature(RECIPE, *SMALL, stage="masked-32")


def tiny_unmasked() -> Recipe:
    """The second phase, likewise."""
    return miniature(RECIPE, *SMALL, stage="unmasked-32")


def claim() -> list[Experiment]:
    """The experiments behind `gesso reproduce micro-budget`."""
    from gesso.experiments import masking

    return [masking.experiment()]
