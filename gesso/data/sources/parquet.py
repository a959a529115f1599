"""Parquet tables with a column of pictures (bytes, or paths of files) and columns of captions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gesso.config import Config as BaseConfig
from gesso.data.source import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    Entry,
    EntrySource,
    digest,
    find_columns,
    row_captions,
    stamp,
)
from gesso.types import Bad, GessoError


class Config(BaseConfig):
    """Options of the Parquet source.

    Attributes:
        path: a .parquet file, or a folder with such files, read in order of their names.
        image_column: bytes of picture files, structs with `bytes` (as Hugging Face datasets write
            them), or paths relative to the Parquet file; None: the usual names.
        caption_column: one column, or several (then each column's name is a kind of caption).
        key_column: names the pictures; None: file and row number do.
        background: the colour behind transparent pixels.
    """

    path: str
    image_column: str | None = None
    caption_column: str | list[str] | None = None
    key_column: str | None = None
    background: str = "white"


class ParquetSource(EntrySource):
    """Rows are read in small batches; a file that breaks off is reported and the next is read."""

    def __init__(self, options: Config) -> None:
        super().__init__(options.background)
        self._options = options
        path = Path(options.path)
        if not path.exists():
            raise GessoError(f"There is no file or folder {options.path!r}: correct 'path'.")
        self._root = path if path.is_dir() else path.parent
        self._files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not self._files:
            raise GessoError(f"{options.path} holds no .parquet files: give one, or their folder.")
        self._rows = 0
        present = self._columns_of_all()
        where = options.path
        [self._image] = find_columns(options.image_column, IMAGE_COLUMNS, present, "image", where)
        self._captions = find_columns(
            options.caption_column, CAPTION_COLUMNS, present, "caption", where
        )
        if options.key_column is not None:
            find_columns(options.key_column, (), present, "key", where)
        if not self._rows:
            raise GessoError(f"{options.path} has no rows: give a table with pictures.")

    def __len__(self) -> int:
        return self._rows

    def entries(self) -> Iterator[Entry | Bad]:
        for file in self._files:
            yield from self._entries_of(file)

    def fingerprint(self) -> str:
        files = [(p.relative_to(self._root).as_posix(), *stamp(p)) for p in self._files]
        options = self._options.model_dump(exclude={"path", "background"})
        return digest("parquet", options, self.background, files)

    def _columns_of_all(self) -> list[str]:
        """Columns that every file has; counts the rows on the way."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: list[str] | None = None
        for file in self._files:
            try:
                with pq.ParquetFile(file) as table:
                    self._rows += table.metadata.num_rows
                    names = table.schema_arrow.names
            except (pa.ArrowException, OSError) as e:
                raise GessoError(
                    f"{file} is not a readable Parquet file: {str(e).splitlines()[0][:100]}."
                ) from None
            columns = names if columns is None else [c for c in columns if c in names]
        return columns or []

    def _entries_of(self, file: Path) -> Iterator[Entry | Bad]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        name, number = file.relative_to(self._root).as_posix(), 0
        try:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=64):
                    for row in batch.to_pylist():
                        yield self._entry(file, f"{name}:{number}", row)
                        number += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
            reason = (str(e).splitlines() or [type(e).__name__])[0][:100]
            yield Bad(name, f"The file cannot be read on after {number} rows: {reason}.")

    def _entry(self, file: Path, key: str, row: dict[str, Any]) -> Entry | Bad:
        if self._options.key_column is not None:
            key = str(row[self._options.key_column])
        image = row[self._image]
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str):
            folder = os.path.normpath(file.parent)
            image = Path(os.path.normpath(file.parent / image))
            if not image.is_relative_to(folder):
                return Bad(key, "Its path leaves the folder.")
        if not isinstance(image, (bytes, Path)) or not image:
            return Bad(key, f"The column {self._image!r} holds no picture.")
        used = {self._image, *self._captions}
        meta = {k: v for k, v in row.items() if k not in used and not isinstance(v, bytes)}
        return Entry(key, image, row_captions(row, self._captions), meta)


def build(options: Config) -> ParquetSource:
    """Read the footers of all files.

    Raises:
        GessoError: no such path, no or broken files, no rows, or a missing column.
    """
    return ParquetSource(options)
