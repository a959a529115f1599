"""The reader of scenes: shapes, colours and rendered words, without a network.

Its own error is measured in docs/scenes.md and by `gesso evaluate judges`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from gesso.config import Config as _Config
from gesso.config import nearest
from gesso.evals.fingerprint import fingerprint, source_digest, versions
from gesso.evals.types import Answer, Detection, Image, Judge
from gesso.types import GessoError

ABILITIES = ("detect", "read", "answer")
BACKGROUND = "What color is the background?"  # the one question that it answers


class Config(_Config):
    """Options of the judge `reader`."""

    level: int = Field(default=3, ge=1, le=3)  # whose shapes, textures and words it looks for


class Reader(Judge):
    """`gesso.data.scenes.read` as a judge: classes are shapes, and it tells colours."""

    def __init__(self, level: int) -> None:
        from gesso.data.scenes import LEVELS

        self.level = level
        self.shapes = LEVELS[level].shapes
        self.name = f"reader-level{level}"
        self.abilities = ABILITIES
        self.versions = versions("opencv-python-headless")
        self.fingerprint = fingerprint(
            level, source_digest("gesso.data.scenes", __name__), self.versions
        )

    def detect(
        self, images: Sequence[Image], classes: Sequence[tuple[str, ...]]
    ) -> list[list[Detection]]:
        """Objects of the wanted shapes by falling confidence, with masks and colours."""
        from gesso.data.scenes import read

        for wanted in classes:
            for name in wanted:
                if name not in self.shapes:
                    raise GessoError(
                        f"The reader of level {self.level} does not know {name!r}: "
                        f"{nearest(name, list(self.shapes))}"
                    )
        return [
            [
                Detection(d.shape, d.confidence, d.box, d.mask, d.color, d.size, d.texture)
                for d in read(image, self.level).objects
                if d.shape in wanted
            ]
            for image, wanted in zip(images, classes, strict=True)
        ]

    def read(self, images: Sequence[Image]) -> list[str]:
        """The word of each scene, in lower case; "" where there is none."""
        from gesso.data.scenes import read

        return [read(image, self.level).word for image in images]

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], choices: Sequence[tuple[str, ...]]
    ) -> list[Answer]:
        """The background's name, or "from NAME to NAME"; it abstains from any other question."""
        from gesso.data.scenes import read

        replies = []
        for image, question in zip(images, questions, strict=True):
            if question != BACKGROUND:
                replies.append(Answer("", ""))
                continue
            ground = read(image, self.level).background
            name = f"from {ground.name} to {ground.to}" if ground.to else ground.name
            replies.append(Answer(name, name))
        return replies


def build(options: Config, device: str | None) -> Reader:
    """The judge; it runs on the processor whatever `device` says."""
    return Reader(options.level)
