"""What pictures of scenes look like to a network: features for Fréchet distances.

A small classifier is trained on real pictures of scenes alone, to name the coloured shapes that
they show. Its features are a judge of its own beside the reader, which tells what is shown and not
how cleanly: blurred or half-coloured shapes that still read correctly move the features.
"""

from __future__ import annotations

from itertools import islice
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.data.scenes import COLORS, LEVELS, Scene, render, sample_scene
from gesso.evals.metric import Moments
from gesso.evals.metrics.fid import frechet
from gesso.experiments import measure
from gesso.experiments.design import Job

LEVEL, SIDE = 1, 64
WIDTH = 64  # of the features
PICTURES, BATCH, EPOCHS, LR = 6144, 64, 8, 2e-3
REFERENCE = 2048  # pictures
SEED = 1_000  # of the scenes that it learns from; others have their own


class Classifier(nn.Module):
    """[B, 3, 64, 64] in [-1, 1] -> logits [B, shapes x colours] of what is there."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((3, 32), (32, 48), (48, 64), (64, 96)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Conv2d(96, WIDTH, 1), nn.SiLU())
        self.head = nn.Linear(WIDTH, len(LEVELS[LEVEL].shapes) * len(COLORS))

    def features(self, pictures: Tensor) -> Tensor:
        """[B, WIDTH]: means over the places of a 4 x 4 grid."""
        return cast(Tensor, self.trunk(pictures)).mean((2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(pictures)))


def to_pictures(images: np.ndarray) -> Tensor:
    """[n, H, W, 3] uint8 -> [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def scenes(count: int, seed: int, split: str) -> list[Scene]:
    """So many scenes of a split."""
    return [sample_scene(i, level=LEVEL, seed=seed, split=split) for i in range(count)]


def rendered(found: list[Scene]) -> np.ndarray:
    """[n, 64, 64, 3] uint8."""
    return np.stack([render(scene, SIDE, SIDE) for scene in found])


def learn(count: int = PICTURES, epochs: int = EPOCHS) -> Classifier:
    """Train it; always alike."""
    found = scenes(count, SEED, "all")
    pictures, wanted = to_pictures(rendered(found)), torch.stack([_wanted(s) for s in found])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Classifier()
        optimizer = torch.optim.AdamW(network.parameters(), lr=LR)
        steps = epochs * (count // BATCH)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
        for _ in range(epochs):
            for index in islice(torch.randperm(count).split(BATCH), count // BATCH):
                loss = F.binary_cross_entropy_with_logits(network(pictures[index]), wanted[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
    return network.eval()


def _wanted(scene: Scene) -> Tensor:
    """[shapes x colours] 1 for each coloured shape that a scene has, else 0."""
    shapes, colors = list(LEVELS[LEVEL].shapes), list(COLORS)
    wanted = torch.zeros(len(shapes), len(colors))
    for thing in scene.objects:
        wanted[shapes.index(thing.shape), colors.index(thing.color)] = 1
    return wanted.flatten()


class Frechet:
    """Fréchet distances to real pictures of scenes with held-out combinations."""

    def __init__(self, job: Job) -> None:
        with measure.shared(job, "classifier") as common:
            file = common.folder / "classifier.safetensors"
            if not file.is_file():
                common.folder.mkdir(parents=True, exist_ok=True)
                network = learn(BATCH, 1) if job.quick else learn()
                temporary = file.with_suffix(".part")
                save_file(network.state_dict(), temporary)
                temporary.rename(file)
        self.network = Classifier().eval()
        self.network.load_state_dict(load_file(file))
        self.real = self.moments(rendered(scenes(64 if job.quick else REFERENCE, 2, "test")))

    @torch.inference_mode()
    def moments(self, images: np.ndarray) -> Moments:
        """Of the features of [n, 64, 64, 3] uint8."""
        found = Moments()
        for some in np.array_split(images, -(-len(images) // 256)):
            found.add(self.network.features(to_pictures(some)).numpy())
        return found

    def distance(self, images: np.ndarray) -> float:
        """Of [n, 64, 64, 3] uint8; smaller is better. Falls with n: compare equal counts."""
        mine = self.moments(images)
        return frechet(mine.mean, mine.covariance, self.real.mean, self.real.covariance)
