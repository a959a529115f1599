"""A Hugging Face dataset, by its name on the hub or from a local folder, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
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

_HUB = re.compile(r"(zip://[^:]*::)?hf://")  # no other address is fetched for a row


class Config(BaseConfig):
    """Options of the Hugging Face source.

    Attributes:
        path: "user/dataset", a local dataset folder, or what `save_to_disk` wrote.
        subset: the dataset's configuration, where it has several.
        split: which split.
        revision: commit, tag or branch on the hub; fix it, and the data cannot change unnoticed.
        image_column: None: the usual names.
        caption_column: one column, or several (then each column's name is a kind of caption).
        background: the colour behind transparent pixels.
    """

    path: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    caption_column: str | list[str] | None = None
    background: str = "white"


class HfSource(EntrySource):
    """Rows in the dataset's own order; pictures are taken as files and decoded by gesso."""

    def __init__(self, options: Config) -> None:
        super().__init__(options.background)
        self._options = options
        rows = _load(options)
        present = list(_first_row(rows, options.path))
        where = f"The dataset {options.path}"
        [self._image] = find_columns(options.image_column, IMAGE_COLUMNS, present, "image", where)
        self._captions = find_columns(
            options.caption_column, CAPTION_COLUMNS, present, "caption", where
        )
        self._dataset = _undecoded(rows, self._image)

    def entries(self) -> Iterator[Entry | Bad]:
        for number, row in enumerate(_rows(self._dataset, self._options.path)):
            yield self._entry(f"{self._options.split}:{number}", row)

    def fingerprint(self) -> str:
        options = self._options.model_dump(exclude={"background", "path"})
        folder = Path(self._options.path)
        if folder.is_dir():
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            held: Any = [(p.relative_to(folder).as_posix(), *stamp(p)) for p in files]
        else:
            held = [self._options.path, str(self._dataset.info.version)]
        return digest("hf", options, self.background, held)

    def _entry(self, key: str, row: dict[str, Any]) -> Entry | Bad:
        image = row.get(self._image)
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str) and image:
            image = _from_hub(image) if _HUB.match(image) else Path(image)
        if not isinstance(image, (bytes, Path)) or not image:
            return Bad(key, f"The column {self._image!r} holds no picture.")
        used = {self._image, *self._captions}
        meta = {k: v for k, v in row.items() if k not in used and not isinstance(v, bytes)}
        return Entry(key, image, row_captions(row, self._captions), meta)


def build(options: Config) -> HfSource:
    """Open the dataset and look at its first row.

    Raises:
        GessoError: `datasets` is not installed, no such dataset or split, no network, no rows, or
            a missing column.
    """
    return HfSource(options)


def _load(options: Config) -> Any:
    try:
        import datasets
    except ImportError:
        raise GessoError("The hf source needs datasets: pip install 'gesso[data]'.") from None
    try:
        folder = Path(options.path)
        if (folder / "state.json").is_file():  # `Dataset.save_to_disk`
            return datasets.load_from_disk(options.path)
        if (folder / "dataset_dict.json").is_file():  # `DatasetDict.save_to_disk`
            return datasets.load_from_disk(options.path)[options.split]
        return datasets.load_dataset(
            options.path,
            options.subset,
            split=options.split,
            revision=options.revision,
            streaming=True,
        )
    except Exception as e:  # hub, network, files and formats each raise their own
        raise GessoError(
            f"The dataset {options.path!r} cannot be opened ({_line(e)}): correct 'path', 'subset' "
            f"or 'split'."
        ) from None


def _first_row(dataset: Any, path: str) -> dict[str, Any]:
    """A row to see the columns by, undecoded since a first picture may be broken."""
    features = getattr(dataset, "features", None)
    if features:
        return dict(features)
    row = next(_rows(dataset, path), None)
    if row is None:
        raise GessoError(f"The dataset {path} has no rows: choose another split.")
    return row


def _undecoded(dataset: Any, column: str) -> Any:
    """Pictures as {"bytes", "path"}: gesso decodes them itself, to skip those that are broken."""
    import datasets

    features = getattr(dataset, "features", None)
    if features and isinstance(features[column], datasets.Image):
        return dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def _rows(dataset: Iterable[dict[str, Any]], path: str) -> Iterator[dict[str, Any]]:
    rows = iter(dataset)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as e:  # the network, mostly; what was encoded is kept
            raise GessoError(
                f"The dataset {path} could not be read on ({_line(e)}): run again to continue."
            ) from None
        yield row


def _from_hub(url: str) -> bytes | None:
    """A picture of a streamed dataset that lies as a file of its own on the hub."""
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            return file.read()
    except Exception:  # network and archive errors; one picture is missing
        return None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
