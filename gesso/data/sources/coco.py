"""COCO captions: a JSON file with `images` and `annotations`, and a folder of pictures.

Format: https://cocodataset.org/#format-data, "Image Captioning".
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gesso.config import Config as BaseConfig
from gesso.data.source import Entry, EntrySource, digest, stamp, to_captions
from gesso.types import Bad, Caption, GessoError


class Config(BaseConfig):
    """Options of the COCO source.

    Attributes:
        annotations: the caption JSON file.
        images: the folder that `file_name`s are relative to.
        background: the colour behind transparent pixels.
    """

    annotations: str
    images: str
    background: str = "white"


class CocoSource(EntrySource):
    """Pictures in the order of the JSON file, each with all its captions."""

    def __init__(self, options: Config) -> None:
        super().__init__(options.background)
        self._file = Path(options.annotations)
        self._root = Path(options.images)
        if not self._file.is_file():
            raise GessoError(f"There is no file {options.annotations!r}: correct 'annotations'.")
        if not self._root.is_dir():
            raise GessoError(f"There is no folder {options.images!r}: correct 'images'.")
        self._entries = list(_entries(self._file, self._root))
        if not self._entries:
            raise GessoError(f"{self._file} lists no pictures: give a COCO caption file.")

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> Iterator[Entry | Bad]:
        return iter(self._entries)

    def fingerprint(self) -> str:
        files = [
            (e.key, *stamp(e.image)) if isinstance(e, Entry) and isinstance(e.image, Path) else e
            for e in self._entries
        ]
        return digest("coco", self.background, stamp(self._file), files)


def build(options: Config) -> CocoSource:
    """Read the JSON file.

    Raises:
        GessoError: no such file or folder, not COCO captions, no pictures.
    """
    return CocoSource(options)


def _entries(file: Path, root: Path) -> Iterator[Entry | Bad]:
    images, annotations = _read(file)
    captions: dict[str, list[Caption]] = defaultdict(list)
    for row in annotations:
        if isinstance(row, dict):  # ids are numbers in some files and text in others
            captions[str(row.get("image_id"))] += to_captions(row.get("caption"))
    if not captions or not any(captions.values()):
        raise GessoError(
            f"{file} holds no captions: give the file of captions, not that of boxes or masks."
        )
    for image in images:
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name:
            yield Bad(str(image)[:80], "The picture has no file_name.")
            continue
        path = Path(os.path.normpath(root / name))
        if not path.is_relative_to(os.path.normpath(root)):
            yield Bad(name, "Its path leaves the folder.")
            continue
        yield Entry(name, path, captions[str(image.get("id"))], {"id": image.get("id")})


def _read(file: Path) -> tuple[list[Any], list[Any]]:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise GessoError(f"{file} is not readable JSON: {str(e)[:80]}.") from None
    parts = [values.get(k) if isinstance(values, dict) else None for k in ("images", "annotations")]
    if not all(isinstance(p, list) for p in parts):
        raise GessoError(f"{file} is not a COCO file: it lacks the lists 'images', 'annotations'.")
    return parts[0], parts[1]  # type: ignore[return-value]
