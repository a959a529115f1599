"""PixArt-alpha: a diffusion transformer trained at a tenth of the usual cost (arXiv:2310.00426)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gesso.config import Recipe
from gesso.experiments.verdict import CONTRADICTED, NOT_SHOWN, SHOWN
from gesso.systems import Finding, System, miniature

if TYPE_CHECKING:
    from gesso.experiments.design import Experiment

RECIPE = "pixart-alpha"

SYSTEM = System(
    title="PixArt-α: Fast Training of Diffusion Transformer for Photorealistic T2I Synthesis",
    paper="2310.00426",
    adds="cross-attention to a frozen text encoder, adaLN-single, dense captions, three stages",
    published="XL/2 weights at 256, 512 and 1024 px, training code, SAM-LLaVA captions",
    differs="published weights load, convert and paint as in diffusers; the recipe trains the "
    "three stages at demo size, on scenes; in adaLN-single's start from a DiT, f is the mean of "
    "its blocks' MLPs, as the paper leaves it open; the learned null caption is trained",
    read=[
        "recipes/pixart-alpha.yaml",
        "backbones/dit.py",
        "convert/starts/adaln_single.py",
        "backbones/pixart.py",
        "diffusion/paths.py",
        "objectives/denoise.py",
        "train/loop.py",
        "samplers/dpm_solver.py",
        "pipeline.py",
        "convert/pixart.py",
    ],
    commands=[
        "gesso demo",
        "gesso train pixart-alpha",
        "gesso plan pixart-alpha-xl --gpus 64",
        "gesso reproduce pixart-alpha --quick",
        'gesso paint "a red circle"',
        'gesso paint "a red circle" --model PixArt-alpha/PixArt-XL-2-1024-MS',
    ],
    measured=[
        Finding(
            "GenEval's rules on held-out scenes of level 1, captions alone, two CPU cores: 0.58 "
            "after ten minutes, 0.82 after 38 (recipes demo and scenes)"
        ),
        Finding(
            "dense captions against short ones at equal steps, colours and shapes right: 0.45 and "
            "0.27",
            SHOWN,
        ),
        Finding(
            "stages against captions alone at equal FLOPs, held-out loss: 0.53 and 0.50",
            CONTRADICTED,
        ),
        Finding(
            "adaLN-single against one adaLN a block: 18 % fewer parameters; that the loss is equal "
            "(0.50 and 0.49)",
            NOT_SHOWN,
        ),
    ],
)


SMALL = ["backbone.depth=2", "backbone.hidden_size=32"]


def tiny() -> Recipe:
    """The text-alignment stage at the size of the test battery."""
    return miniature(RECIPE, *SMALL, "convert=null", stage="text-alignment")


def tiny_classes() -> Recipe:
    """The first stage, a DiT on class labels, likewise."""
    classes = ["data.source.classes=true", "validation.prompts=[red circle, blue star]"]
    encoder = "text_encoder={name: classes}"
    return miniature(RECIPE, *SMALL, *classes, encoder, stage="pixel-dependency")


def claim() -> list[Experiment]:
    """The experiments behind `gesso reproduce pixart-alpha`."""
    from gesso.experiments import captions, modulation, stages

    return [stages.experiment(), captions.experiment(), modulation.experiment()]
