"""Captions that lie beside a source: JSONL files whose lines add captions to pictures by key.

    {"key": "a/cat.png", "text": "A grey cat asleep on a red cushion.", "kind": "dense"}

`gesso caption` writes them. A first line `{"about": {...}}` tells how they were made. A last line
without its end was cut short by a kill and is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any

from gesso.data.source import Entry, EntrySource, Source, digest
from gesso.types import Bad, Caption, GessoError, Sample

_PEEK = 1000  # pictures of which one should have a caption in the overlay


class Overlay:
    """The captions of some files by key, held in memory; a caption without text is left out.

    Attributes:
        fingerprint: changes when the files' contents change, wherever they lie.

    Raises:
        GessoError: no such file, or a line that is no caption.
    """

    def __init__(self, files: Sequence[Path | str]) -> None:
        self.names = ", ".join(str(f) for f in files)
        self._captions: dict[str, list[Caption]] = {}
        hashed = hashlib.sha256()
        for file in map(Path, files):
            for row, line in read_rows(file):
                hashed.update(line)
                caption = _caption(row, file)
                if caption.text:
                    self._captions.setdefault(row["key"], []).append(caption)
        self.fingerprint = hashed.hexdigest()[:16]

    def __len__(self) -> int:
        """Pictures that have captions here."""
        return len(self._captions)

    def __contains__(self, key: str) -> bool:
        return key in self._captions

    def add(self, key: str, captions: list[Caption]) -> list[Caption]:
        """A picture's own captions and those of the overlay, each once."""
        return list(dict.fromkeys([*captions, *self._captions.get(key, ())]))

    def texts(self) -> Iterator[str]:
        """All captions."""
        return (c.text for captions in self._captions.values() for c in captions)


class OverlaidEntries(EntrySource):
    """A source of entries under an overlay; a picture without captions of its own may get some."""

    def __init__(self, inner: EntrySource, overlay: Overlay) -> None:
        super().__init__(inner.background)
        self.inner = inner
        self.overlay = overlay
        first = [e for e in islice(inner.entries(), _PEEK) if isinstance(e, Entry)]
        if first and not any(e.key in overlay for e in first):
            raise GessoError(
                f"{overlay.names} has captions for none of the first {len(first)} pictures, such "
                f"as {first[0].key!r}: they are of another data set, or a folder apart."
            )

    def entries(self) -> Iterator[Entry | Bad]:
        for item in self.inner.entries():
            if isinstance(item, Entry):
                yield item._replace(captions=self.overlay.add(item.key, item.captions))
            else:
                yield item

    def fingerprint(self) -> str:
        return digest("captions", self.inner.fingerprint(), self.overlay.fingerprint)


class SizedOverlaidEntries(OverlaidEntries):
    """Over a source that knows how many pictures it has."""

    inner: Any

    def __len__(self) -> int:
        return len(self.inner)


class OverlaidSamples:
    """A source that makes its pictures as they are read, such as scenes, under an overlay."""

    def __init__(self, inner: Any, overlay: Overlay) -> None:
        self.inner = inner
        self.overlay = overlay

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Sample | Bad]:
        for item in self.inner:
            if isinstance(item, Sample):
                item.captions = self.overlay.add(item.key, item.captions)
            yield item

    def fingerprint(self) -> str:
        return digest("captions", self.inner.fingerprint(), self.overlay.fingerprint)


def lay_over(source: Source, files: Sequence[Path | str]) -> Source:
    """A source whose pictures also have the captions of some JSONL files.

    Args:
        source: any.
        files: as `gesso caption` writes them; none gives the source itself.

    Raises:
        GessoError: no such file, a line that is no caption, or captions of other pictures only.
    """
    if not files:
        return source
    overlay = Overlay(files)
    if not isinstance(source, EntrySource):
        return OverlaidSamples(source, overlay)
    wrap = SizedOverlaidEntries if isinstance(source, Sized) else OverlaidEntries
    return wrap(source, overlay)


def read_rows(file: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """(row, its line) of a caption file, without the one that tells about it.

    Raises:
        GessoError: no such file, or a whole line that is no JSON object.
    """
    try:
        lines = file.open("rb")
    except OSError as e:
        raise GessoError(
            f"The caption file {str(file)!r} cannot be read ({e.strerror}): make it with `gesso "
            f"caption`, or take it out of data.captions."
        ) from None
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") or not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise GessoError(f"{file}, line {number}, is not a JSON object: remove the line.")
            if "about" not in row:
                yield row, line


def _caption(row: dict[str, Any], file: Path) -> Caption:
    text, kind = row.get("text"), row.get("kind", "dense")
    if not isinstance(row.get("key"), str) or not isinstance(text, str) or not kind:
        raise GessoError(
            f"{file} has a line without the texts 'key' and 'text' ({str(row)[:60]}): each line is "
            '{"key": ..., "text": ..., "kind": ...}.'
        )
    return Caption(" ".join(text.split()), str(kind))
