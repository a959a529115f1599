"""Where a training starts: random weights, another model's, or another architecture's."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import torch

from gesso.config import Recipe, Spec, resolve
from gesso.convert.checkpoint import WEIGHT_SUFFIXES
from gesso.convert.origin import Origin, first_difference, read_origin
from gesso.loading import find
from gesso.model import Model, read_description
from gesso.train.teacher import refuse_teacher
from gesso.types import GessoError


def make_model(recipe: Recipe) -> Model:
    """The model that a recipe starts from, with `train.learns` applied.

    Raises:
        GessoError: there is no such model, it does not fit (says which option or tensor), it
            cannot teach what distils it, or `train.learns` names no parameter.
    """
    model = Model.from_recipe(recipe)
    origin = None if recipe.init is None else origin_of(recipe.init)
    refuse_teacher(recipe, model, origin)
    if origin is not None:
        if origin.adapter is not None:  # the same one learns on
            _refuse_other_adapter(origin, recipe)
            adapt(model, recipe)
        _fill(model, recipe, origin)
    elif recipe.convert is not None:
        raise GessoError(
            "The recipe has `convert` but nothing to convert: set `init`, or the stage's `start`."
        )
    if recipe.adapter is not None and model.description.adapter is None:
        adapt(model, recipe)
    if recipe.train.learns is not None:
        freeze(model, recipe.train.learns)
    return model


def adapt(model: Model, recipe: Recipe) -> None:
    """Attach a recipe's adapter to a model, and let it alone learn.

    Raises:
        GessoError: as `Model.attach`; or the recipe has something that no adapter goes with.
    """
    assert recipe.adapter is not None
    if model.backbone is None:
        raise GessoError("The recipe has an adapter, and no backbone to attach it to: remove it.")
    for key, given in (
        ("learns", recipe.train.learns is not None),
        ("float8", recipe.train.float8),
    ):
        if given:
            raise GessoError(
                f"The recipe has train.{key} and an adapter, which alone learns: remove one."
            )
    for part in model.trained().values():
        part.requires_grad_(False)
    before = {id(p) for p in model.backbone.parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model.attach(recipe.adapter)
    for p in model.backbone.parameters():
        p.requires_grad_(id(p) not in before)


def _refuse_other_adapter(origin: Origin, recipe: Recipe) -> None:
    assert origin.adapter is not None
    own = None if recipe.adapter is None else complete(recipe.adapter, "adapters")
    if own != origin.adapter:
        raise GessoError(
            f"{origin.where} has the adapter {origin.adapter}: set the recipe's adapter to the "
            "same, or start from a model without one."
        )


def origin_of(init: str) -> Origin:
    """What `Recipe.init` names."""
    path = Path(init)
    return read_origin(path if path.suffix in WEIGHT_SUFFIXES else find(init))


def text_encoder_of(init: str) -> Spec | None:
    """The text encoder of what `Recipe.init` names, None where it has none."""
    if Path(init).suffix in WEIGHT_SUFFIXES:
        return None
    return read_description(find(init)).text_encoder


def refuse_misfit(before: Spec | None, where: str, recipe: Recipe, who: str = "The recipe") -> None:
    """Compare the options that decide shapes.

    Args:
        before: the backbone to start from, complete as far as it is known.
        where: whose it is, for messages.
        recipe: the training that starts from it.
        who: what the recipe is called in messages.

    Raises:
        GessoError: names the first option that differs, or says that a conversion is missing.
    """
    after = recipe.backbone
    if before is None or after is None:
        return
    if before["name"] != after["name"] and recipe.convert is None:
        raise GessoError(
            f"{who} has the backbone {after['name']} and starts from {where} with "
            f"{before['name']}: say how it is converted with `convert`."
        )
    options = complete(after)
    key = first_difference(before, options)
    if key is not None:
        raise GessoError(
            f"{who} has backbone.{key} {options[key]} and starts from {where} with {before[key]}: "
            "make them equal."
        )


def complete(part: Spec, kind: str = "backbones") -> Spec:
    """A part's name and options with every default written out."""
    return {**resolve(kind, part)[1].model_dump(mode="json"), **part}


def _fill(model: Model, recipe: Recipe, origin: Origin) -> None:
    """Put an origin's weights into a model; one that is converted keeps its own text encoder."""
    if origin.backbone is None and recipe.backbone is not None and recipe.convert is None:
        _take_image_encoder(model, origin)
        return
    built = recipe.model_copy(update={"backbone": model.description.backbone})
    refuse_misfit(origin.backbone, origin.where, built)
    if recipe.convert is not None:
        module, options = resolve("convert.starts", recipe.convert)
        module.start(options, origin, model.backbone)
        return
    state = dict(origin.tensors)
    if model.text_encoder is not None and origin.text_encoder is None:  # a lone backbone
        state |= {k: v for k, v in model.state().items() if k.startswith("text_encoder.")}
    model.load_state(state, origin.where)


def _take_image_encoder(model: Model, origin: Origin) -> None:
    """A model around a tokenizer, or an autoencoder, that was trained on its own."""
    if "image_encoder" not in model.stored():
        raise GessoError(
            f"{origin.where} is an image encoder alone, and the recipe names another: set "
            "image_encoder.weights to null, or start from a model that has a backbone."
        )
    own = {k: v for k, v in model.state().items() if not k.startswith("image_encoder.")}
    model.load_state(own | origin.tensors, origin.where)


def freeze(model: Model, learns: list[str]) -> None:
    """Let only the parameters train whose names match one of the globs."""
    used: set[str] = set()
    for role, part in model.trained().items():
        for name, parameter in part.named_parameters():
            matching = {glob for glob in learns if fnmatchcase(f"{role}.{name}", glob)}
            parameter.requires_grad_(bool(matching))
            used |= matching
    for glob in learns:
        if glob not in used:
            raise GessoError(f"train.learns has {glob!r}, which no parameter's name matches.")
