"""A folder of pictures with captions in `.txt` files beside them, or in one table.

The table is `metadata.jsonl` or `metadata.csv` in the folder, or the file that `metadata` names.
Rows about the same picture are joined, so a table may have one caption or several in a row.
Without a table, `a/cat.png` is captioned by `a/cat.txt`. With `classes`, the folder holds a folder
for each class, as ImageNet's does.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from gesso.config import Config as BaseConfig
from gesso.config import nearest
from gesso.data.images import SUFFIXES
from gesso.data.source import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    Entry,
    EntrySource,
    digest,
    find_columns,
    row_captions,
    stamp,
    to_captions,
)
from gesso.types import Bad, GessoError

_TABLES = ("metadata.jsonl", "metadata.csv")
_MAX_CAPTION_BYTES = 1_000_000


class Config(BaseConfig):
    """Options of the folder source.

    Attributes:
        path: the folder; pictures are looked for in its subfolders too.
        metadata: a .jsonl or .csv table, relative to `path`; None: found by itself.
        file_column: the column with the picture's path relative to `path`; None: the usual names.
        caption_column: one column, or several (then each column's name is a kind of caption).
        caption_lines: each line of a .txt file is a caption of its own.
        classes: pictures lie in one subfolder a class, whose name is their only caption; labels are
            the places of those names in alphabetical order.
        where: keep only rows whose column has one of the given values: {style: [noto, fluent3d]}.
        background: the colour behind transparent pixels.
    """

    path: str
    metadata: str | None = None
    file_column: str | None = None
    caption_column: str | list[str] | None = None
    caption_lines: bool = False
    classes: bool = False
    where: dict[str, Any] = Field(default_factory=dict)
    background: str = "white"


class FolderSource(EntrySource):
    """Entries are listed when the source is built; pictures are decoded one at a time."""

    def __init__(self, options: Config) -> None:
        super().__init__(options.background)
        self._options = options
        self._root = Path(options.path)
        if not self._root.is_dir():
            raise GessoError(f"There is no folder {options.path!r}: give a path that exists.")
        self._classes = sorted(p.name for p in self._root.iterdir() if p.is_dir())
        self._table = None if options.classes else _find_table(self._root, options.metadata)
        if options.classes and (options.metadata or options.where):
            raise GessoError(
                f"The options 'classes' and 'metadata' exclude each other: {options.path} is either"
                " a folder of classes or has a table."
            )
        if options.classes:
            self._entries = list(_class_entries(self._root, self._classes))
        elif self._table is None:
            if options.where:
                raise GessoError(
                    f"The option 'where' needs a table, and {options.path} has none: add "
                    f"metadata.jsonl or name a table with 'metadata'."
                )
            self._entries = list(_sidecar_entries(self._root, options.caption_lines))
        else:
            self._entries = list(_table_entries(self._root, self._table, options))

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> Iterator[Entry | Bad]:
        return iter(self._entries)

    def class_names(self) -> list[str]:
        """The names of the labels, by number; none without `classes`."""
        return self._classes if self._options.classes else []

    def fingerprint(self) -> str:
        files = [
            (e.key, *stamp(e.image), e.captions)
            if isinstance(e, Entry) and isinstance(e.image, Path)
            else e
            for e in self._entries
        ]
        options = self._options.model_dump(exclude={"path", "background"})  # a folder may move
        table = stamp(self._table) if self._table else None
        return digest("folder", options, self.background, table, files)


def build(options: Config) -> FolderSource:
    """List the folder.

    Raises:
        GessoError: no such folder or table, no pictures, a missing column, no row left by `where`.
    """
    return FolderSource(options)


def _find_table(root: Path, metadata: str | None) -> Path | None:
    if metadata is None:
        return next((root / name for name in _TABLES if (root / name).is_file()), None)
    table = root / metadata
    if not table.is_file():
        raise GessoError(f"There is no table {metadata!r} in {root}: correct 'metadata'.")
    if table.suffix not in (".jsonl", ".csv"):
        raise GessoError(
            f"The table {table} is neither .jsonl nor .csv: convert it to one of them."
        )
    return table


def _pictures(root: Path) -> list[Path]:
    """Every picture in a folder and its subfolders."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    pictures = [p for p in files if p.suffix.lower() in SUFFIXES]
    if not pictures:
        kinds = sorted({p.suffix or "no suffix" for p in files})[:5]
        held = f"{len(files)} files ({', '.join(kinds)}) but no pictures" if files else "no files"
        raise GessoError(f"{root} holds {held}: give a folder with .png, .jpg or .webp pictures.")
    return pictures


def _class_entries(root: Path, classes: list[str]) -> Iterator[Entry | Bad]:
    labels = {name: number for number, name in enumerate(classes)}
    for picture in _pictures(root):
        key = picture.relative_to(root)
        if len(key.parts) == 1:
            yield Bad(key.as_posix(), "It lies in no folder of a class.")
            continue
        name = key.parts[0]
        yield Entry(key.as_posix(), picture, to_captions(name, "class"), {"label": labels[name]})


def _sidecar_entries(root: Path, lines: bool) -> Iterator[Entry | Bad]:
    for picture in _pictures(root):
        key = picture.relative_to(root).as_posix()
        sidecar = picture.with_suffix(".txt")
        text, without = "", f"It has no caption: its file {sidecar.name} is empty."
        try:
            if not sidecar.is_file():
                without = f"It has no caption file {sidecar.name}."
            elif sidecar.stat().st_size > _MAX_CAPTION_BYTES:
                without = f"Its caption file {sidecar.name} is over 1 MB."
            else:
                text = sidecar.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            without = f"Its caption file {sidecar.name} is not readable as UTF-8 text."
        captions = to_captions(text.splitlines() if lines else text)
        yield Entry(key, picture, captions, {}, without)


def _table_entries(root: Path, table: Path, options: Config) -> Iterator[Entry | Bad]:
    rows = _read_csv(table) if table.suffix == ".csv" else _read_jsonl(table)
    present = list(dict.fromkeys(c for row in rows if isinstance(row, dict) for c in row))
    name = str(table)
    [file_column] = find_columns(options.file_column, FILE_COLUMNS, present, "file", name)
    captions = find_columns(options.caption_column, CAPTION_COLUMNS, present, "caption", name)
    for column in options.where:
        if column not in present:
            raise GessoError(
                f"'where' asks for a column {column!r} that {name} does not have: "
                f"{nearest(column, present)}"
            )
    kept = [r for r in rows if isinstance(r, Bad) or _matches(r, options.where)]
    if not any(isinstance(r, dict) for r in kept):
        raise GessoError(f"No row of {name} is left: it is empty or 'where' matches nothing.")
    used = {file_column, *captions}
    entries: dict[str, Entry] = {}  # rows about the same file are one picture
    for row in kept:
        if isinstance(row, Bad):
            yield row
            continue
        file = row.get(file_column)
        if not isinstance(file, str) or not file:
            yield Bad(str(file), f"A row of {table.name} names no file in {file_column!r}.")
            continue
        path = Path(os.path.normpath(root / file))
        if not path.is_relative_to(os.path.normpath(root)):
            yield Bad(file, "Its path leaves the folder.")
            continue
        if file in entries:
            entries[file].captions.extend(row_captions(row, captions))
            continue
        meta = {k: v for k, v in row.items() if k not in used}
        entries[file] = Entry(file, path, row_captions(row, captions), meta)
    yield from entries.values()


def _matches(row: dict[str, Any], where: dict[str, Any]) -> bool:
    """Values are compared as text, since a CSV has only text; a list matches by any member."""
    for column, allowed in where.items():
        allowed = {str(a) for a in (allowed if isinstance(allowed, list) else [allowed])}
        value = row.get(column)
        values = value if isinstance(value, list) else [value]
        if not allowed & {str(v) for v in values}:
            return False
    return True


def _read_jsonl(table: Path) -> list[dict[str, Any] | Bad]:
    rows: list[dict[str, Any] | Bad] = []
    for number, line in enumerate(_text(table).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        ok = isinstance(row, dict)
        rows.append(row if ok else Bad(f"{table.name}:{number}", "The line is not a JSON object."))
    return rows


def _read_csv(table: Path) -> list[dict[str, Any] | Bad]:
    try:
        return list(csv.DictReader(io.StringIO(_text(table), newline=""), restkey="_more"))
    except csv.Error as e:
        raise GessoError(f"{table} is not a readable CSV table: {e}.") from None


def _text(table: Path) -> str:
    try:
        return table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise GessoError(f"{table} is not UTF-8 text: save it as UTF-8.") from None
