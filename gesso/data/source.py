"""What all sources of captioned pictures share: skipping what is broken, and finding columns.

A source yields `Sample`s in a fixed order, and `Bad(key, reason)` for what cannot be used; it
never raises over one file. What is wrong with the source as a whole raises `GessoError` in
`build`. Sources in `gesso/data/sources/` do not import each other; they meet here.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from gesso.config import Spec, nearest, resolve
from gesso.data.images import background_rgb, load_rgb
from gesso.types import Bad, Caption, GessoError, Sample

FILE_COLUMNS = ("file_name", "file", "filename", "path", "image")
IMAGE_COLUMNS = ("image", "jpg", "png", "img", "picture", "file_name", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt", "annotation")


T = TypeVar("T", Sample, "Entry")


class Source(Protocol):
    """What `encode` and `PixelDataset` read."""

    def __iter__(self) -> Iterator[Sample | Bad]: ...

    def fingerprint(self) -> str:
        """Changes when the pictures, captions or options change. Cheap: nothing is decoded."""
        ...


class Entry(NamedTuple):
    """A picture that is not decoded yet; `uncaptioned` is what to say if it has no caption."""

    key: str
    image: Path | bytes
    captions: list[Caption]
    meta: dict[str, Any]
    uncaptioned: str = "It has no caption."


class EntrySource(ABC):
    """A source that knows its entries and decodes each only when it is iterated over.

    Attributes:
        background: the colour behind transparent pixels.
    """

    def __init__(self, background: str = "white") -> None:
        background_rgb(background)  # an unknown colour is the user's mistake, not the pictures'
        self.background = background

    @abstractmethod
    def entries(self) -> Iterator[Entry | Bad]:
        """Undecoded entries in a fixed order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the pictures, captions or options change."""

    def __iter__(self) -> Iterator[Sample | Bad]:
        return read(self)

    def decode(self, entry: Entry) -> Sample | Bad:
        """Load the picture of an entry that has a caption."""
        if not entry.captions:
            return Bad(entry.key, entry.uncaptioned, "caption")
        return self.load(entry)

    def load(self, entry: Entry) -> Sample | Bad:
        """Load the picture of an entry."""
        try:
            image = load_rgb(entry.image, self.background)
        except GessoError as e:
            return Bad(entry.key, str(e))
        return Sample(entry.key, image, entry.captions, entry.meta)


def read(
    source: Source, skip: Container[str] = (), *, captioned: bool = True
) -> Iterator[Sample | Bad]:
    """Everything in a source except keys in `skip`, which are passed over undecoded if possible.

    A key that was seen before comes out as `Bad`, since caches are looked up by key. So does a
    picture without captions, unless `captioned` is False: then it has an empty list of them.
    """
    if isinstance(source, EntrySource):
        return _decode_ahead(source, new(source.entries(), skip), captioned)
    return new(source, skip)


def new(items: Iterable[T | Bad], skip: Container[str] = ()) -> Iterator[T | Bad]:
    """The items whose keys are not in `skip`; those whose key was there before, as `Bad`."""
    seen: set[str] = set()
    for item in items:
        if isinstance(item, Bad):
            yield item
        elif item.key in seen:
            yield Bad(item.key, "Another picture of the source has the same key.", "key")
        else:
            seen.add(item.key)
            if item.key not in skip:
                yield item


def first(items: Iterator[Sample | Bad], limit: int | None) -> Iterator[Sample | Bad]:
    """Up to the limit-th `Sample`; None: everything."""
    left = limit
    while left is None or left > 0:
        item = next(items, None)
        if item is None:
            return
        if left is not None and isinstance(item, Sample):
            left -= 1
        yield item


def _decode_ahead(
    source: EntrySource, items: Iterator[Entry | Bad], captioned: bool
) -> Iterator[Sample | Bad]:
    """Decode on threads (Pillow lets go of the interpreter), a few ahead, in the same order."""

    load = source.decode if captioned else source.load

    def decode(item: Entry | Bad) -> Sample | Bad:
        return item if isinstance(item, Bad) else load(item)

    workers = min(8, os.cpu_count() or 1)
    ahead: deque[Future[Sample | Bad]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            ahead.append(pool.submit(decode, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # also when the reader has enough
        pool.shutdown(cancel_futures=True)


def caption_texts(source: Source) -> Iterator[str]:
    """Every caption of a source, without decoding pictures where that is possible."""
    for item in source.entries() if isinstance(source, EntrySource) else source:
        if not isinstance(item, Bad):
            yield from (caption.text for caption in item.captions)


def open_source(spec: Spec, background: str = "white") -> Source:
    """Build the source that a recipe's `data.source` names, with `data.background`.

    Raises:
        GessoError: unknown source or option, or a source without usable pictures.
    """
    module, options = resolve("data.sources", spec)
    if "background" in type(options).model_fields and "background" not in spec:
        options.background = background
    return module.build(options)


def to_captions(value: Any, kind: str = "caption") -> list[Caption]:
    """A string, or a list of strings, as captions; what is empty or no text is left out."""
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = (v.strip() for v in values if isinstance(v, str))
    return [Caption(text, kind) for text in texts if text]


def row_captions(row: Mapping[str, Any], columns: list[str]) -> list[Caption]:
    """Captions of a table row. With several columns, a caption's kind is its column's name."""
    if len(columns) == 1:
        return to_captions(row.get(columns[0]))
    return [c for column in columns for c in to_captions(row.get(column), column)]


def find_columns(
    wanted: str | list[str] | None, usual: Iterable[str], present: list[str], what: str, where: str
) -> list[str]:
    """The wanted columns, or the first usual one that is there.

    Raises:
        GessoError: a wanted column, or every usual one, is missing; names the columns present.
    """
    if wanted is None:
        found = next((c for c in usual if c in present), None)
        if found is None:
            raise GessoError(
                f"{where} has no {what} column that is known by name: set the option "
                f"{what}_column to one of {', '.join(present) or '(it has no columns)'}."
            )
        return [found]
    columns = [wanted] if isinstance(wanted, str) else wanted
    for column in columns:
        if column not in present:
            raise GessoError(
                f"{where} has no {what} column {column!r} but {', '.join(present)}: "
                f"{nearest(column, present)}"
            )
    return columns


def digest(*parts: Any) -> str:
    """A short hash of JSON-like values, for fingerprints."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp(path: Path) -> tuple[int, int]:
    """(bytes, modification time) of a file; (-1, 0) where there is none."""
    try:
        status = path.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
