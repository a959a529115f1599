"""Which codes a tokenizer learns to use: their width, and whether they lie on the unit sphere.

ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627, section 3.2 and table 7) projects features to few
dimensions before the nearest code is looked up, and normalises both. Without either, most of a
codebook is never hit.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gesso.data.images import to_tensor
from gesso.data.scenes import read, render, sample_scene
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers
from gesso.loading import find
from gesso.model import Model
from gesso.nn.codebook import usage
from gesso.nn.psnr import psnr

STEPS, BATCH, WIDTH = 800, 32, 128
PICTURES = 1000  # that are judged, of the split that training never sees
LEVEL, SIDE = 1, 64
DIMS = (4, 8, 32, 128)
MAIN = ("l2-8", "plain-128")


def experiment() -> Experiment:
    """Eight tokenizers; the two that the claim is about have several seeds."""
    arms = [
        Arm(
            name := f"{line}-{dim}",
            f"codes of {dim} dimensions, {about}",
            partial(_run, dim, line == "l2"),
            seeds=None if name in MAIN else 1,
            line=line,
            at=dim,
        )
        for line, about in (("l2", "normalised"), ("plain", "as they are"))
        for dim in DIMS
    ]
    best, worst = MAIN
    return Experiment(
        name="codebook",
        claim="Small normalised codes keep a codebook in use, and pictures come back better "
        "(ViT-VQGAN, section 3.2).",
        setting=f"Scenes of level {LEVEL} at {SIDE} px, 64 patches of 8, 512 codes; encoder and "
        f"decoder have 2 blocks of {WIDTH}. {STEPS} steps of {BATCH} pictures with the losses that "
        "need no second network: codebook and squared error. Judged on "
        f"{PICTURES} scenes of the test split, whose combinations training never shows.",
        arms=arms,
        claims=[
            Claim(
                "Normalised codes of 8 dimensions use at least three times the share of the"
                " codebook that plain ones of 128 do",
                "usage",
                {best: 1, worst: -3},
            ),
            Claim("and their pictures are closer", "psnr", {best: 1, worst: -1}),
        ],
        metrics={
            "usage": "codes used",
            "perplexity": "perplexity",
            "psnr": "PSNR (dB)",
            "read": "objects still read",
            "tflop": "training (TFLOP)",
            "seconds": "training (s)",
        },
        figure=["usage", "psnr"],
        at_label="dimensions of a code",
    )


def _run(dim: int, l2_norm: bool, job: Job) -> Numbers:
    recipe = measure.recipe(
        job,
        [
            f"train.steps={STEPS}",
            "data.source.count=8192",
            f"train.batch_size={BATCH}",
            "train.ema=0.98",
            "validation.holdout=64",
            "objective.adversarial=0",
            f"image_encoder.hidden_size={WIDTH}",
            "image_encoder.depth=2",
            f"image_encoder.code_dim={dim}",
            f"image_encoder.l2_norm={str(l2_norm).lower()}",
        ],
        base="vit-vqgan",
    )
    trained = measure.train(job, recipe)
    numbers = judge(trained.run, 16 if job.quick else PICTURES)
    return numbers | {"tflop": trained.flops / 1e12, "seconds": trained.seconds}


@torch.inference_mode()
def judge(run: Path, count: int, side: int = SIDE) -> Numbers:
    """What a tokenizer makes of scenes that it was not trained on.

    Args:
        run: of its training.
        count: of scenes.
        side: their height and width in pixels.

    Returns:
        usage: share of the codes that occur.
        perplexity: of their frequencies.
        psnr: dB, mean over pictures.
        read: share of the objects that the reader finds with the right shape and colour.
    """
    tokenizer = Model.load(find(run)).image_encoder.eval()
    codes: list[Tensor] = []
    decibel: list[Tensor] = []
    found: list[bool] = []
    for start in range(0, count, 50):
        numbers = range(start, min(start + 50, count))
        scenes = [sample_scene(i, level=LEVEL, split="test") for i in numbers]
        x = to_tensor(torch.from_numpy(np.stack([render(s, side, side) for s in scenes])))
        raw = tokenizer.encode(x)
        codes.append(tokenizer.codes(raw))
        y = tokenizer.decode(tokenizer.sample(raw))
        decibel.append(psnr(x, y))
        for scene, picture in zip(scenes, _uint8(y), strict=True):
            seen = [(d.shape, d.color) for d in read(picture, LEVEL).objects]
            found += [(o.shape, o.color) in seen for o in scene.objects]
    share, perplexity = usage(torch.cat(codes), tokenizer.vocabulary)
    return {
        "usage": float(share),
        "perplexity": float(perplexity),
        "psnr": float(torch.cat(decibel).mean()),
        "read": float(np.mean(found)),
    }


def _uint8(pictures: Tensor) -> np.ndarray:
    """[B, 3, H, W] about [-1, 1] -> [B, H, W, 3] uint8."""
    levels = ((pictures + 1) * 127.5).round().clamp(0, 255)
    return levels.byte().permute(0, 2, 3, 1).numpy()
