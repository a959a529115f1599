"""What a model paints before it is trained on it: the prior of DreamBooth."""

from __future__ import annotations

import shutil
from pathlib import Path

from gesso.config import Recipe, resolve
from gesso.loading import load
from gesso.progress import steps_bar
from gesso.types import GessoError

SEED = 1_000_000  # of the first picture: far from the seeds that people try


def with_prior(recipe: Recipe, folder: Path, quiet: bool = False) -> Recipe:
    """Have a source's prior painted by the model that the training starts from, and filled in.

    A source asks for it by the options `prior`, None so far, `prior_pictures` and `class_prompts`;
    any other recipe is returned as it is. What is painted already is not painted again.

    Args:
        recipe: as it was read.
        folder: for the pictures; the run's own.
        quiet: show no progress.

    Raises:
        GessoError: the recipe starts from no model.
    """
    _, options = resolve("data.sources", recipe.data.source)
    if not getattr(options, "prior_pictures", 0) or options.prior is not None:
        return recipe
    if recipe.init is None:
        raise GessoError(
            "The prior's pictures are painted by the model that the training starts from: set "
            "init to one, or data.source.prior_pictures to 0."
        )
    if not folder.is_dir():
        _paint(recipe, options.class_prompts, options.prior_pictures, folder, quiet)
    source = {**recipe.data.source, "prior": str(folder)}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": source})})


def _paint(recipe: Recipe, prompts: list[str], count: int, folder: Path, quiet: bool) -> None:
    pipe = load(recipe.init)
    texts = [prompts[i % len(prompts)] for i in range(count)]
    with steps_bar("painting the prior", quiet) as show:
        images = pipe(texts, seed=SEED, callback=show).images
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(temporary / f"{i:04d}.png")
    temporary.rename(folder)
