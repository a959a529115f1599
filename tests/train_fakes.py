"""A tiny model and random data for tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gesso.backbones import pixart
from gesso.config import Recipe, validate
from gesso.draws import EVERY
from gesso.model import Description, Model
from gesso.types import Batch, Cond

WORDS, DIM, LENGTH = 16, 16, 4


class Words(nn.Module):
    """A trainable text encoder: one vector a word; "" is the single word 1."""

    trainable = True
    max_tokens = 8
    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, DIM)

    def prepare(self, prompts: list[str]) -> Cond:
        ids = torch.ones(len(prompts), 1, dtype=torch.long)
        return Cond(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))

    def forward(self, cond: Cond) -> Cond:
        return cond.replace(ids=None, tokens=self.embedding(cond.ids))


class Random:
    """Random latents and words; the batch of a step follows from (step, seed)."""

    def __init__(self, fixed: bool = False) -> None:
        self.fixed = fixed

    def batch(self, step: int, batch_size: int, seed: int, rows: slice = EVERY) -> Batch:
        g = torch.Generator().manual_seed(1000 * seed + (0 if self.fixed else step))
        ids = torch.randint(0, WORDS, (batch_size, LENGTH), generator=g)
        length = torch.randint(1, LENGTH + 1, (batch_size, 1), generator=g)
        return Batch(
            keys=[f"picture-{step}-{i}" for i in range(batch_size)][rows],
            cond=Cond(ids=ids, mask=torch.arange(LENGTH) < length)[rows],
            latents=torch.randn(batch_size, 4, 4, 4, generator=g)[rows],
        )

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        for step in range(2):
            yield self.batch(10_000 + step, batch_size, 1)


class Latents(nn.Identity):
    """An image encoder whose pictures are latents already."""

    factor = 1


def tiny_recipe(train: dict[str, Any] | None = None, **parts: Any) -> Recipe:
    """PixArt of two layers of 32 on latents of 4 x 4."""
    values: dict[str, Any] = {
        "name": "test",
        "image_encoder": {"name": "tiny", "weights": None},
        "text_encoder": {"name": "words"},
        "backbone": {"name": "pixart", "depth": 2, "hidden_size": 32, "num_heads": 2},
    }
    short = {"steps": 6, "batch_size": 4, "warmup": 2, "log_every": 2, "device": "cpu"}
    recipe: Recipe = validate(Recipe, values | {"train": short | (train or {})} | parts, "test")
    return recipe


def tiny_model(recipe: Recipe, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    options = {k: v for k, v in recipe.backbone.items() if k != "name"}
    return Model(
        Description(
            name=recipe.name,
            image_encoder=recipe.image_encoder,
            text_encoder=recipe.text_encoder,
            backbone=recipe.backbone,
            diffusion=recipe.diffusion,
            sample=recipe.sample,
        ),
        image_encoder=Latents(),
        text_encoder=Words(),
        backbone=pixart.build(pixart.Config(text_dim=DIM, **options)),
    )


def every_tensor(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, by file and key."""
    from safetensors.torch import load_file

    return {
        f"{file.relative_to(checkpoint)}:{key}": value
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for key, value in load_file(file).items()
    }
