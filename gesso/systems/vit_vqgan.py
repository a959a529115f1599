"""ViT-VQGAN: pictures as codes of a transformer's codebook, and a transformer over the codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gesso.experiments.verdict import SHOWN
from gesso.systems import Finding, System, miniature

if TYPE_CHECKING:
    from gesso.config import Recipe
    from gesso.experiments.design import Experiment

RECIPE = "vit-vqgan"

SYSTEM = System(
    title="Vector-quantized Image Modeling with Improved VQGAN",
    paper="2110.04627",
    adds="a tokenizer of transformers with small normalised codes, logit-Laplace and adversarial "
    "losses; VIM, a causal transformer over its codes",
    published="the paper; no weights, no code. Parameter names here are those of the public "
    "re-implementation",
    differs="a tanh inside every MLP, as in the re-implementation, where the paper has one after "
    "the stack; the discriminator's gradient penalty is in every step, not in every sixteenth; the "
    "perceptual network is the user's choice (objective.features), none by default; the recipe "
    "leaves the logit-Laplace term out, which costs scenes 5 dB",
    read=[
        "recipes/vit-vqgan.yaml",
        "nn/codebook.py",
        "encoders/image/vit_vqgan.py",
        "nn/likelihood.py",
        "nn/discriminator.py",
        "objectives/vq_autoencode.py",
        "recipes/vit-vqgan-vim.yaml",
        "backbones/vim.py",
        "objectives/next_code.py",
        "samplers/autoregressive.py",
        "experiments/codebook.py",
        "experiments/probe.py",
    ],
    commands=[
        "gesso train vit-vqgan",
        "gesso train vit-vqgan-vim",
        'gesso paint "a red circle" --model runs/vit-vqgan-vim',
        "gesso reproduce vit-vqgan --quick",
    ],
    measured=[
        Finding(
            "Normalised codes of 8 dimensions use at least three times the share of 512 codes that "
            "plain ones of 128 do: 0.23 and 0.008",
            SHOWN,
        ),
        Finding("and pictures come back closer: 29.0 and 19.0 dB", SHOWN),
    ],
)


def tiny() -> Recipe:
    """The tokenizer at the size of the test battery."""
    return miniature(
        RECIPE,
        "image_encoder={name: vit_vqgan, image_size: 32, depth: 1, hidden_size: 32, num_heads: 1,"
        " head_dim: 32, mlp_size: 64, codes: 32, logit_laplace: true}",
        "objective.laplace=0.1",
        "objective.size=32",
        "objective.discriminator_width=4",
        "text_encoder=null",
    )


def tiny_vim() -> Recipe:
    """The transformer over the codes of an untrained tokenizer, at the size of the test battery."""
    return miniature(
        "vit-vqgan-vim",
        "image_encoder={name: vit_vqgan, image_size: 32, depth: 1, hidden_size: 32, num_heads: 1,"
        " head_dim: 32, mlp_size: 64, codes: 32}",
        "backbone={name: vim, depth: 2, hidden_size: 32, num_heads: 2, grid: [4, 4]}",
    )


def claim() -> list[Experiment]:
    """The experiments behind `gesso reproduce vit-vqgan`."""
    from gesso.experiments import codebook, probe

    return [codebook.experiment(), probe.experiment()]
