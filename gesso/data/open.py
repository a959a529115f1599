"""From what a user names, a recipe or a path, to a source of captioned pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gesso.config import DataConfig, Spec, load_recipe, override, recipes, validate
from gesso.data.images import SUFFIXES
from gesso.data.overlay import OverlaidSamples, lay_over
from gesso.data.source import Source, caption_texts, open_source
from gesso.types import GessoError


def open_data(data: DataConfig) -> Source:
    """The source of a recipe: its pictures, on its background, with captions laid over them.

    Raises:
        GessoError: unknown source or option, no usable pictures, or a bad caption file.
    """
    return lay_over(open_source(data.source, data.background), data.captions)


def words_of(source: Source, split: Callable[[str], list[str]]) -> list[str]:
    """Every word of a source's captions, sorted; a source that lists its own is not read through.

    Args:
        split: a caption to its words.
    """
    if isinstance(source, OverlaidSamples):
        laid = {word for text in source.overlay.texts() for word in split(text)}
        return sorted(laid.union(words_of(source.inner, split)))
    if hasattr(source, "vocabulary"):
        return source.vocabulary()
    return sorted({word for text in caption_texts(source) for word in split(text)})


def data_at(path: str, overrides: list[str] | None = None) -> DataConfig:
    """The data that a path, or a recipe's, name stands for.

    A folder of pictures, of tars or of Parquet files, a saved Hugging Face dataset, a COCO JSON, a
    tar or a Parquet file; else the name or the file of a recipe.

    Args:
        path: see above.
        overrides: key=value pairs: of a recipe's keys for a recipe (data.size=256), else of the
            source's options (caption_column=text) and of `data` (data.captions=[dense.jsonl]).

    Raises:
        GessoError: nothing of the kind is there, or an unknown key.
    """
    place = Path(path)
    if place.suffix in (".yaml", ".yml") or (path in recipes() and not place.exists()):
        return load_recipe(path, overrides).data
    values: dict[str, Any] = {"source": _spec(place)}
    for item in overrides or []:
        inner = item.removeprefix("data.")
        override(values, inner if inner != item else f"source.{item}")
    return validate(DataConfig, values, f"The data of {path}")


def beside(spec: Spec) -> Path:
    """Where captions of a source are kept unless told otherwise.

    In a folder of pictures, `captions.jsonl`; beside any other file or folder NAME, and in the
    current folder for a source without files, `NAME.captions.jsonl`.
    """
    place = spec.get("annotations" if spec["name"] == "coco" else "path")
    if place is None:
        return Path(f"{spec['name']}.captions.jsonl")
    path = Path(place)
    if spec["name"] == "folder":
        return path / "captions.jsonl"
    if not path.parent.is_dir():  # a dataset of the hub
        return Path(f"{path.name}.captions.jsonl")
    return path.with_name(f"{path.name}.captions.jsonl")


def _spec(place: Path) -> Spec:
    if not place.exists():
        raise GessoError(
            f"There is no file, folder or recipe {str(place)!r}: give a folder of pictures, a "
            f".tar, .parquet or COCO .json file, or one of the recipes {', '.join(recipes())}."
        )
    path = str(place)
    if place.is_dir():
        names = [p.name for p in place.iterdir() if p.is_file()]
        if {"state.json", "dataset_dict.json"} & set(names):
            return {"name": "hf", "path": path}
        if any(".tar" in Path(n).suffixes for n in names):
            return {"name": "webdataset", "path": path}
        if any(n.endswith(".parquet") for n in names):
            return {"name": "parquet", "path": path}
        return {"name": "folder", "path": path}
    if ".tar" in place.suffixes:
        return {"name": "webdataset", "path": path}
    if place.suffix == ".parquet":
        return {"name": "parquet", "path": path}
    if place.suffix == ".json":
        return {"name": "coco", "annotations": path, "images": str(place.parent)}
    hint = " its folder" if place.suffix.lower() in SUFFIXES else " a .tar, .parquet or COCO .json"
    raise GessoError(f"{path!r} is no set of captioned pictures: give{hint}.")
