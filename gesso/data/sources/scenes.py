"""The built-in world as a source: pictures with captions and exact truth, made as they are read.

data:
  source: {name: scenes, level: 1, count: 32768}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import Field

from gesso.config import Config as BaseConfig
from gesso.config import nearest
from gesso.data.scenes import (
    Scene,
    captions,
    class_names,
    class_of,
    render,
    sample_scene,
    vocabulary,
)
from gesso.types import Caption, GessoError, Sample

# Part of the fingerprint: raise it whenever the same options would yield other pictures or words.
VERSION = 3

SCENE_KEYS = ("kind", "relation")
OBJECT_KEYS = ("shape", "color", "size", "texture")
RARE = 1000  # so many scenes in a row without one that `where` admits are enough

Side = Annotated[int, Field(ge=16)]


class Config(BaseConfig):
    """Which scenes, how many, and at what size they are painted.

    Attributes:
        where: keep only scenes whose kind or relation, or all of whose objects' shape, color, size
            or texture, is among the values given: {size: [large], kind: [colors, two_object]}.
        sizes: heights and widths that take turns, in place of `height` and `width`.
        classes: a picture's only caption is its class, the colour and shape of its first object.
    """

    level: Literal[1, 2, 3] = 1  # see docs/scenes.md
    count: int = Field(default=32768, ge=1)
    seed: int = 0
    split: Literal["train", "test", "all"] = "train"
    height: int = Field(default=64, ge=16)
    width: int = Field(default=64, ge=16)
    where: dict[str, list[str]] = Field(default_factory=dict)
    sizes: list[tuple[Side, Side]] = Field(default_factory=list)
    classes: bool = False


class Scenes:
    """Scene `index` depends on the options and its index alone: nothing is stored.

    Raises:
        GessoError: `where` names what scenes have not, or (when read) admits next to none.
    """

    def __init__(self, options: Config) -> None:
        self.options = options
        for key in options.where:
            if key not in SCENE_KEYS + OBJECT_KEYS:
                hint = nearest(key, [*SCENE_KEYS, *OBJECT_KEYS])
                raise GessoError(f"Scenes have no {key!r} to choose by: {hint}")
        self._kept: list[int] = []  # places in the stream of what `where` admits, as far as read

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
        scene = self._scene(index)
        height, width = o.sizes[index % len(o.sizes)] if o.sizes else (o.height, o.width)
        texts = captions(scene, seed=f"{o.seed}/{index}")
        label = class_of(scene)
        if o.classes:
            texts = [Caption(class_names(o.level)[label], "class")]
        return Sample(
            key=f"scene-{o.seed}-{index}",
            image=render(scene, height, width),
            captions=texts,
            meta={"scene": scene.to_dict(), "label": label},
        )

    def _scene(self, index: int) -> Scene:
        if not self.options.where:
            return self._at(index)
        last = self._kept[-1] if self._kept else -1
        for place in count(last + 1):
            if len(self._kept) > index:
                break
            if self._admits(self._at(place)):
                self._kept.append(place)
                last = place
            elif place - last > RARE:
                raise GessoError(
                    f"Hardly any scene of level {self.options.level} is admitted by where = "
                    f"{self.options.where}: widen it."
                )
        return self._at(self._kept[index])

    def _at(self, place: int) -> Scene:
        o = self.options
        return sample_scene(place, level=o.level, seed=o.seed, split=o.split)

    def _admits(self, scene: Scene) -> bool:
        def among(thing: Any, keys: tuple[str, ...]) -> bool:
            where = self.options.where
            return all(getattr(thing, key) in where[key] for key in keys if key in where)

        return among(scene, SCENE_KEYS) and all(among(o, OBJECT_KEYS) for o in scene.objects)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def vocabulary(self) -> list[str]:
        """Every word that captions of this level can use, in lower case and in all languages."""
        return vocabulary(self.options.level)

    def class_names(self) -> list[str]:
        """The names of the labels, by number."""
        return class_names(self.options.level)

    def fingerprint(self) -> str:
        """A short hash of everything that decides pictures and captions."""
        text = f"scenes-{VERSION}-{self.options.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(options: Config) -> Scenes:
    """The stream of scenes that the options name."""
    return Scenes(options)
