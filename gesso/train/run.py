"""The jobs behind `gesso train` and `gesso encode`: a recipe becomes model, data and painter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gesso.config import Recipe, Spec, ValidationConfig, resolve
from gesso.controls import condition_of
from gesso.data.dataset import CachedDataset, PixelDataset
from gesso.data.encode import EncodeReport, encode
from gesso.data.open import open_data, words_of
from gesso.data.shards import open_cache
from gesso.data.source import open_source
from gesso.device import pick_device
from gesso.encoders.text.learned import split_words
from gesso.model import Model
from gesso.pipeline import Pipeline
from gesso.progress import steps_bar
from gesso.train import launch, parallel
from gesso.train.feed import Dataset
from gesso.train.folder import refuse_existing
from gesso.train.labels import class_names, refuse_labels
from gesso.train.loop import train
from gesso.train.observe import Observer
from gesso.train.parallel import Group
from gesso.train.plan.compare import AgainstPlan
from gesso.train.prior import with_prior
from gesso.train.report import Painter
from gesso.train.start import make_model, text_encoder_of


def train_recipe(
    recipe: Recipe,
    run: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    observers: Sequence[Observer] = (),
) -> dict[str, Any]:
    """Build what a recipe names and train it.

    Pictures are encoded first, into `data.cache` or else into the run's own `cache/`.

    Args:
        recipe: as `gesso.config.load_recipe` gives it.
        run: the run's folder.
        resume: continue the run.
        quiet: show no progress.
        observers: see `gesso.train.observe`.

    Returns:
        See `gesso.train.loop.train`; and `paints`: whether the result is a text-to-image model.

    Raises:
        GessoError: bad input anywhere on the way.
    """
    recipe = with_processes(with_vocabulary(recipe))
    size, args = recipe.train.processes, (recipe, run, resume, True)
    with launch.start(size, train_together, args, recipe.train.timeout) as group:
        return train_together(group, recipe, run, resume, quiet, observers)


def train_together(
    group: Group,
    recipe: Recipe,
    run: Path,
    resume: bool,
    quiet: bool,
    observers: Sequence[Observer] = (),
) -> dict[str, Any]:
    """What every process of `train_recipe` does. The leader encodes the pictures for all."""
    quiet = quiet or not group.leads
    if group.leads and not resume:
        refuse_existing(run)
    model = make_model(recipe)
    with group.one_first():
        recipe = with_prior(recipe, run / "prior", quiet)
        dataset = make_dataset(recipe, model, run / "cache", quiet=quiet)
    painter = None
    if model.backbone is not None and recipe.validation.prompts:
        painter = make_painter(recipe.validation)
    result = train(
        recipe,
        run,
        model=model,
        dataset=dataset,
        painter=painter,
        observers=[*observers, AgainstPlan(run)],
        group=group,
        resume=resume,
        quiet=quiet,
    )
    return {**result, "paints": model.backbone is not None}


def with_processes(recipe: Recipe) -> Recipe:
    """Put the number in where `train.processes` is 0: one a core."""
    train = recipe.train
    n = parallel.count(train.processes, train.batch_size, pick_device(train.device, "train.device"))
    return recipe.model_copy(update={"train": train.model_copy(update={"processes": n})})


def encode_recipe(recipe: Recipe, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Write the feature cache of a recipe's pictures; an interrupted one continues.

    Returns:
        cache (its folder) and what `gesso.data.encode.EncodeReport` has.
    """
    recipe = with_vocabulary(recipe)
    return {"cache": str(out), **_encode(recipe, make_model(recipe), out, quiet)}


LISTS = {"learned": "words", "classes": "classes"}
"""Text encoders that know a list, and the option that holds it."""


def with_vocabulary(recipe: Recipe) -> Recipe:
    """Fill in the words of a `learned` text encoder, or the names of a `classes` one; of several
    that are joined, of each.

    They are those of the model that the training starts from, or else of the source.

    Raises:
        GessoError: the source tells no classes, or the encoder is none.
    """
    spec = recipe.text_encoder
    filled = None if spec is None else _with_lists(spec, recipe)
    return recipe if filled == spec else recipe.model_copy(update={"text_encoder": filled})


def _with_lists(spec: Spec, recipe: Recipe) -> Spec:
    groups = getattr(resolve("encoders.text", spec)[1], "encoders", None)
    if groups is not None:
        filled = [[_with_lists(part, recipe) for part in group] for group in groups]
        return {**spec, "encoders": filled}
    key = LISTS.get(spec["name"])
    if key is None or key in spec:
        return spec
    before = text_encoder_of(recipe.init) if recipe.init is not None else None
    parts = [before or {}, *(p for group in (before or {}).get("encoders", []) for p in group)]
    found = next((part[key] for part in parts if part.get("name") == spec["name"]), None)
    if found is None and key == "words":
        found = words_of(open_data(recipe.data), split_words)
    elif found is None:
        found = class_names(open_source(recipe.data.source, recipe.data.background))
    return {**spec, key: found}


def make_dataset(recipe: Recipe, model: Model, cache: Path, *, quiet: bool = False) -> Dataset:
    """The batches that a recipe's objective learns from.

    A recipe without a backbone learns from pictures, any other from cached latents and text.
    """
    data = recipe.data
    if model.backbone is None:
        source = open_data(data)
        return PixelDataset(
            source, size=data.size, limit=data.limit, holdout=recipe.validation.holdout
        )
    folder = Path(data.cache) if data.cache else cache
    if not data.cache:
        _encode(recipe, model, folder, quiet)
    source = open_data(data)
    opened = open_cache(
        folder,
        image_encoder=model.image_encoder,
        text_encoder=model.text_encoder,
        condition=condition_of(recipe.adapter),
        size=data.size,
        buckets=data.buckets,
        source_fingerprint=source.fingerprint(),
        limit=data.limit,
    )
    refuse_labels(opened, model, recipe.objective)
    return CachedDataset(
        opened,
        image_encoder=model.image_encoder,
        coded=model.coded,
        caption_weights=data.caption_weights,
        holdout=recipe.validation.holdout,
    )


def make_painter(validation: ValidationConfig) -> Painter:
    """Paints the validation prompts into one grid, picture i with seed `seed + i`, row by row."""

    def paint(model: Model, file: Path) -> None:
        from PIL import Image

        prompts = validation.prompts
        seeds = [validation.seed + i for i in range(len(prompts))]
        images = Pipeline(model)(prompts, seed=seeds).images
        width, height = images[0].size
        columns = grid_columns(len(images))
        rows = math.ceil(len(images) / columns)
        sheet = Image.new("RGB", (columns * width, rows * height), "white")
        for i, image in enumerate(images):
            sheet.paste(image, (i % columns * width, i // columns * height))
        sheet.save(file)

    return paint


def grid_columns(n: int) -> int:
    """How wide a validation grid of n pictures is."""
    return min(n, max(4, math.ceil(math.sqrt(n))))


def _encode(recipe: Recipe, model: Model, out: Path, quiet: bool) -> EncodeReport:
    data = recipe.data
    with steps_bar("encoding", quiet) as show:
        return encode(
            open_data(data),
            model.image_encoder,
            model.text_encoder,
            out,
            size=data.size,
            buckets=data.buckets,
            limit=data.limit,
            condition=condition_of(recipe.adapter),
            progress=show,
        )
