"""Stable Diffusion 3 and 3.5: MMDiT and rectified flow (arXiv:2403.03206)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gesso.config import Recipe
from gesso.systems import System, miniature

if TYPE_CHECKING:
    from gesso.experiments.design import Experiment

RECIPE = "sd3"

SYSTEM = System(
    title="Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    paper="2403.03206",
    adds="joint attention of an image and a text stream (MMDiT), rectified flow with timestep "
    "laws, three text encoders with independent dropout, a shift that grows with the picture",
    published="weights of SD3 medium, SD3.5 medium and SD3.5 large, code that samples from them",
    differs="published weights load, convert and paint as in diffusers; the recipe trains a small "
    "MMDiT on scenes with one learned text encoder, whose mean is the pooled text and whose "
    "padding is masked; no training code was published, so the start of the weights is DiT's",
    read=[
        "recipes/sd3.yaml",
        "backbones/mmdit.py",
        "diffusion/timesteps.py",
        "diffusion/paths.py",
        "objectives/denoise.py",
        "encoders/text/joined.py",
        "encoders/text/clip.py",
        "diffusion/guidance.py",
        "convert/sd3.py",
        "experiments/rectified_flow.py",
    ],
    commands=[
        "gesso train sd3",
        'gesso paint "a red circle" --model runs/sd3',
        'gesso paint "a red circle" --model stabilityai/stable-diffusion-3.5-medium',
        "gesso plan sd3-medium --gpus 64",
        "gesso reproduce sd3 --quick",
    ],
)


def tiny() -> Recipe:
    """An MMDiT with a block of dual attention at the size of the test battery."""
    return miniature(
        RECIPE, "backbone.depth=2", "backbone.hidden_size=32", "backbone.dual_blocks=1"
    )


def claim() -> list[Experiment]:
    """The experiments behind `gesso reproduce sd3`."""
    from gesso.experiments import rectified_flow

    return rectified_flow.experiments()
