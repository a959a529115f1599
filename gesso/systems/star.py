"""STAR: pictures as codes at growing scales, painted scale after scale from text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gesso.systems import System, miniature

if TYPE_CHECKING:
    from gesso.config import Recipe
    from gesso.experiments.design import Experiment

RECIPE = "star"

SYSTEM = System(
    title="STAR: Scale-wise Text-conditioned AutoRegressive image generation",
    paper="2406.10797",
    adds="all codes of a scale at once, each scale from the picture that those before it make; "
    "text by cross-attention, normalised rotary positions; the last scale in rounds",
    published="code, and weights that are not converted here",
    differs="a small tokenizer of few convolutions without adversarial and perceptual losses; a "
    "learned text encoder, whose mean is the start token; every picture reads its own text, where "
    "the reference's blocks hand the first picture's to the whole batch",
    read=[
        "recipes/star.yaml",
        "nn/multiscale.py",
        "encoders/image/multiscale_vq.py",
        "backbones/star.py",
        "objectives/next_code.py",
        "samplers/autoregressive.py",
        "codes.py",
        "adapters/stable_sampler.py",
        "objectives/hidden_code.py",
        "experiments/star.py",
    ],
    commands=[
        "gesso train star",
        "gesso reproduce star --quick",
    ],
)

TOKENIZER = "image_encoder={name: multiscale_vq, width: 16, depth: 1, codes: 32, scales: [1, 2, 4]}"


def tiny() -> Recipe:
    """The generator at the size of the test battery, on an untrained tokenizer."""
    return miniature(
        RECIPE,
        TOKENIZER,
        "backbone={name: star, depth: 2, hidden_size: 32, num_heads: 2}",
        stage="generator",
    )


def tiny_sampler() -> Recipe:
    """The stable sampler at the size of the test battery, on an untrained base."""
    return miniature(
        RECIPE,
        TOKENIZER,
        "backbone={name: star, depth: 1, hidden_size: 32, num_heads: 2}",
        "adapter={name: stable_sampler, depth: 1}",
        stage="sampler",
    )


def tiny_tokenizer() -> Recipe:
    """The tokenizer at the size of the test battery."""
    return miniature(RECIPE, TOKENIZER, "text_encoder=null", stage="tokenizer")


def claim() -> list[Experiment]:
    """The experiments behind `gesso reproduce star`."""
    from gesso.experiments import star

    return [star.experiment()]
