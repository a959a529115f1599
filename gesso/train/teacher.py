"""Whether the model that a recipe starts from can teach: of objectives that distil it."""

from __future__ import annotations

from gesso.config import Recipe, module
from gesso.convert.origin import Origin
from gesso.model import Model
from gesso.types import GessoError

MEANING = ("path", "prediction", "sigma_data")  # of what the teacher's network says


def refuse_teacher(recipe: Recipe, model: Model, origin: Origin | None) -> None:
    """Check the teacher of an objective that has `TEACHER`, the paths that it can be on.

    Args:
        recipe: of any objective; one that does not distil is left alone.
        model: as the recipe builds it.
        origin: what `Recipe.init` names.

    Raises:
        GessoError: there is none, it reads no text, its latents are others, its path is none of
            those, or the recipe reads its predictions as something else than it was trained for.
    """
    name = recipe.objective["name"]
    paths = getattr(module("objectives", name), "TEACHER", None)
    if paths is None:
        return
    if origin is None:
        raise GessoError(
            f"Objective {name!r} distils a trained model: name one as `init`, such as init=scenes."
        )
    where, before = origin.where, origin.description
    if before is None or before.backbone is None or before.text_encoder is None:
        lacks = "backbone" if before is not None and before.backbone is None else "text encoder"
        raise GessoError(
            f"Objective {name!r} distils a text-to-image model, and {where} has no {lacks}: name"
            " another one as `init`."
        )
    for part, found in model.description.encoder_fingerprints.items():
        if before.encoder_fingerprints.get(part, found) != found:
            raise GessoError(
                f"{where} was trained with another {part} than the recipe's, so its latents or"
                f" features are others: set {part} as {where} has it."
            )
    if before.diffusion is None or before.diffusion.path not in paths:
        on = "generates codes" if before.diffusion is None else f"is on {before.diffusion.path}"
        raise GessoError(
            f"Objective {name!r} distils models on the paths {', '.join(paths)}, and {where} {on}:"
            " name another one as `init`."
        )
    for key in MEANING:
        theirs, ours = getattr(before.diffusion, key), getattr(recipe.diffusion, key, None)
        if theirs != ours:
            raise GessoError(
                f"The recipe has diffusion.{key} {ours}, and its teacher {where} was trained with"
                f" {theirs}: set diffusion.{key}={theirs}."
            )
