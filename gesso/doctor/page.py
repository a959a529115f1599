"""The page of `gesso doctor`: what was found, with the worst pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gesso.data.source import Entry, EntrySource, Source, new
from gesso.report import data_uri, duration, write_page
from gesso.types import Sample

_SIDE = 120  # of a thumbnail


def write(file: Path, result: dict[str, Any], source: Source) -> None:
    """Write the page; the pictures that it shows are decoded once more.

    Args:
        file: the HTML file.
        result: of `gesso.doctor.job.examine`.
        source: the pictures.
    """
    worst = [f for kind in result["kinds"] for f in kind["worst"]]
    keys = {f["key"] for f in worst} | {f["other"] for f in worst if f["other"]}
    thumbs = {key: data_uri(_thumb(image)) for key, image in _pictures(source, keys)}
    found = sum(kind["count"] or 0 for kind in result["kinds"])
    write_page(
        file,
        "doctor.html.j2",
        title=f"Doctor: {result['path']}",
        cards=[
            {"name": "pictures looked at", "value": f"{result['pictures']:,}"},
            {"name": "skipped", "value": f"{result['skipped']:,}"},
            {"name": "findings", "value": f"{found:,}"},
            {"name": "took", "value": duration(result["seconds"])},
        ],
        kinds=result["kinds"],
        notes=result["notes"],
        thumbs=thumbs,
    )


def _pictures(source: Source, keys: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Those of the keys that can be decoded."""
    left = set(keys)
    items = new(source.entries()) if isinstance(source, EntrySource) else new(iter(source))
    for item in items:
        if not left:
            return
        if item.key not in left:
            continue
        if isinstance(item, Entry) and isinstance(source, EntrySource):
            item = source.load(item)
        if isinstance(item, Sample):
            left.discard(item.key)
            yield item.key, item.image


def _thumb(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image)
    small.thumbnail((_SIDE, _SIDE))
    return np.asarray(small)
