"""Your own control pictures: a folder that holds one for each picture, under the same name.

adapter: {name: controlnet, condition: {name: pictures, path: photos-depth}}

For the picture `a/cat.jpg` it is `a/cat` with any picture's suffix, of the same size in pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gesso import config
from gesso.data.buckets import Size
from gesso.data.images import SUFFIXES, cover, load_rgb
from gesso.data.source import digest, stamp
from gesso.types import GessoError, Sample


class Config(config.Config):
    """Options.

    Attributes:
        path: the folder.
    """

    path: str


class Pictures:
    """The condition.

    Raises:
        GessoError: there is no such folder, or it holds no pictures.
    """

    def __init__(self, options: Config) -> None:
        self._folder = Path(options.path)
        if not self._folder.is_dir():
            raise GessoError(f"There is no folder of control pictures {options.path!r}: make it.")
        found = (p for p in self._folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        self._files = {p.relative_to(self._folder).with_suffix(""): p for p in sorted(found)}
        if not self._files:
            raise GessoError(f"{options.path} holds no control pictures: give another folder.")

    def __call__(self, sample: Sample, size: Size) -> np.ndarray:
        file = self._files.get(Path(sample.key).with_suffix(""))
        if file is None:
            raise GessoError(f"It has no control picture in {self._folder}.")
        control = load_rgb(file)
        if control.shape != sample.image.shape:
            raise GessoError(
                f"Its control picture {file} has {_shown(control)} pixels where the picture has "
                f"{_shown(sample.image)}."
            )
        return cover(control, size)

    def fingerprint(self) -> str:
        return digest("pictures", [(str(k), stamp(p)) for k, p in self._files.items()])


def build(options: Config) -> Pictures:
    """The condition for validated options."""
    return Pictures(options)


def _shown(picture: np.ndarray) -> str:
    return f"{picture.shape[0]}x{picture.shape[1]}"
