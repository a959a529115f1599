"""Tar files in the WebDataset layout: neighbouring members `x.jpg`, `x.txt`, `x.json` are a sample.

Layout: https://github.com/webdataset/webdataset, "The WebDataset Format". Only pictures, text and
JSON are read; a `.pkl` or `.pyd` member is passed over like any other unknown file.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from gesso.config import Config as BaseConfig
from gesso.data.images import SUFFIXES
from gesso.data.source import (
    CAPTION_COLUMNS,
    Entry,
    EntrySource,
    digest,
    find_columns,
    row_captions,
    stamp,
    to_captions,
)
from gesso.types import Bad, Caption, GessoError

_MAX_BYTES = {"picture": 200_000_000, "text": 1_000_000}
_PEEK = 100  # samples looked at before the source is accepted


class Config(BaseConfig):
    """Options of the WebDataset source.

    Attributes:
        path: a tar file (.tar, .tar.gz, ...) or a folder of them, read in order of their names.
        caption_column: keys of the `.json` member to caption by; with several, each key is a kind
            of caption. None: the `.txt` member, or else the usual keys of the `.json` member.
        background: the colour behind transparent pixels.
    """

    path: str
    caption_column: str | list[str] | None = None
    background: str = "white"


class WebDatasetSource(EntrySource):
    """Tars are read front to back; a broken one is reported and the next is read."""

    def __init__(self, options: Config) -> None:
        super().__init__(options.background)
        self._options = options
        path = Path(options.path)
        if not path.exists():
            raise GessoError(f"There is no tar file or folder {options.path!r}: correct 'path'.")
        self._tars = sorted(p for p in path.iterdir() if _is_tar(p)) if path.is_dir() else [path]
        if not self._tars:
            raise GessoError(f"{options.path} holds no tar files: give a .tar or a folder of them.")
        self._columns = self._find_columns()

    def entries(self) -> Iterator[Entry | Bad]:
        for tar in self._tars:
            for item in _groups(tar):
                yield item if isinstance(item, Bad) else self._entry(*item)

    def fingerprint(self) -> str:
        tars = [(p.name, *stamp(p)) for p in self._tars]
        return digest("webdataset", self._options.caption_column, self.background, tars)

    def _find_columns(self) -> list[str]:
        """Keys of the JSON members that hold captions; [] where `.txt` members do."""
        items = (item for tar in self._tars for item in _groups(tar))
        first = list(islice(items, _PEEK))
        pictures = [m for _, m in (i for i in first if not isinstance(i, Bad)) if _picture(m)]
        if not pictures:
            reason = next((f" ({i.reason})" for i in first if isinstance(i, Bad)), "")
            raise GessoError(
                f"{self._options.path} holds no pictures{reason}: give tars with .jpg, .png or "
                f".webp members."
            )
        wanted = self._options.caption_column
        if wanted is None and any(".txt" in m for m in pictures):
            return []
        present = list(dict.fromkeys(key for m in pictures for key in _json(m)))
        return find_columns(wanted, CAPTION_COLUMNS, present, "caption", self._options.path)

    def _entry(self, key: str, members: dict[str, bytes]) -> Entry | Bad:
        picture = _picture(members)
        if picture is None:
            return Bad(key, "The sample has no picture.")
        row = _json(members)
        captions: list[Caption] = row_captions(row, self._columns) if self._columns else []
        if not self._columns:
            captions = to_captions(members.get(".txt", b"").decode("utf-8-sig", "replace"))
        meta = {k: v for k, v in row.items() if k not in self._columns}
        return Entry(key, picture, captions, meta)


def build(options: Config) -> WebDatasetSource:
    """List the tars and look at the first samples.

    Raises:
        GessoError: no such path, no tars, no pictures, or a missing caption key.
    """
    return WebDatasetSource(options)


def _is_tar(path: Path) -> bool:
    return path.is_file() and ".tar" in path.suffixes


def _picture(members: dict[str, bytes]) -> bytes | None:
    return next((data for suffix, data in members.items() if suffix in SUFFIXES), None)


def _json(members: dict[str, bytes]) -> dict[str, Any]:
    try:
        row = json.loads(members.get(".json", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _groups(tar: Path) -> Iterator[tuple[str, dict[str, bytes]] | Bad]:
    """(key, {suffix: bytes}) of neighbouring members that share their name up to the first dot."""
    key, members = "", dict[str, bytes]()
    try:
        with tarfile.open(tar) as file:
            for member in file:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                stem, _, rest = name.name.partition(".")
                if (own := f"{tar.name}/{name.parent / stem}") != key:
                    if members:
                        yield key, members
                    key, members = own, {}
                suffix = f".{rest.lower()}"
                kind = "picture" if suffix in SUFFIXES else "text"
                if kind == "text" and suffix not in (".txt", ".json"):
                    continue
                if member.size > _MAX_BYTES[kind]:
                    yield Bad(member.name, f"The member is too large for a {kind}.")
                    continue
                data = file.extractfile(member)
                assert data is not None  # it is a regular file
                members[suffix] = data.read()
    except (tarfile.TarError, EOFError, OSError) as e:
        yield Bad(tar.name, f"The tar file breaks off or is no tar: {str(e) or type(e).__name__}.")
    if members:
        yield key, members
