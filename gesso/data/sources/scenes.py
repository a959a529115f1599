"""The built-in world as a source: pictures with captions and exact truth, made as they are read.

data:
  source: {name: scenes, level: 1, count: 32768}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from gesso.config import Config as BaseConfig
from gesso.data.scenes import captions, render, sample_scene, vocabulary
from gesso.types import Sample

# Part of the fingerprint: raise it whenever the same options would yield other pictures or words.
VERSION = 2


class Config(BaseConfig):
    """Which scenes, how many, and at what size they are painted."""

    level: Literal[1, 2, 3] = 1  # see docs/scenes.md
    count: int = Field(default=32768, ge=1)
    seed: int = 0
    split: Literal["train", "test", "all"] = "train"
    height: int = Field(default=64, ge=16)
    width: int = Field(default=64, ge=16)


class Scenes:
    """Scene `index` depends on the options and its index alone: nothing is stored."""

    def __init__(self, options: Config) -> None:
        self.options = options

    def __len__(self) -> int:
        return self.options.count

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`; its meta holds the scene graph as `Scene.to_dict()`.

        Raises:
            IndexError: not in 0..count-1.
        """
        o = self.options
        if not 0 <= index < o.count:
            raise IndexError(index)
        scene = sample_scene(index, level=o.level, seed=o.seed, split=o.split)
        return Sample(
            key=f"scene-{o.seed}-{index}",
            image=render(scene, o.height, o.width),
            captions=captions(scene, seed=f"{o.seed}/{index}"),
            meta={"scene": scene.to_dict()},
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def vocabulary(self) -> list[str]:
        """Every word that captions of this level can use, in lower case and in all languages."""
        return vocabulary(self.options.level)

    def fingerprint(self) -> str:
        """A short hash of everything that decides pictures and captions."""
        text = f"scenes-{VERSION}-{self.options.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(options: Config) -> Scenes:
    """The stream of scenes that the options name."""
    return Scenes(options)
