"""The run folder: its recipe, and who may write into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gesso.config import Recipe, load_recipe
from gesso.train import checkpoint
from gesso.types import GessoError

RECIPE = "recipe.yaml"

FREE = {
    *("train.steps", "train.minutes", "train.log_every", "train.validate_every"),
    *("train.save_every", "train.keep", "train.max_skipped", "train.device", "train.compile"),
    *("train.processes", "train.shard", "train.timeout", "train.workers", "train.keep_every"),
    *("train.save_async", "train.checkpoint_activations", "validation.scores", "init"),
}
"""Keys that may change when a run is resumed: how long, where, what is reported; and where the
model lies now that it started from."""


def open_run(run: Path, recipe: Recipe, resume: bool) -> Path | None:
    """Make or check a run's folder and write its recipe.

    Returns:
        The checkpoint to continue from; None: start at step 0.

    Raises:
        GessoError: there is a run already, or none to resume, or it has another recipe.
    """
    file = run / RECIPE
    if not resume:
        refuse_existing(run)
        run.mkdir(parents=True, exist_ok=True)
    elif not file.exists():
        raise GessoError(f"There is no run in {run} to resume: leave out --resume to start it.")
    else:
        compare(load_recipe(str(file)).model_dump(mode="json"), recipe, file)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    temporary.replace(file)
    checkpoint.clean(run)
    return next(reversed(checkpoint.checkpoints(run)), None)


def refuse_existing(run: Path) -> None:
    """Raise a GessoError if there is a run in a folder."""
    if (run / RECIPE).exists() or checkpoint.checkpoints(run):
        raise GessoError(
            f"There is a run in {run} already: continue it with --resume, or choose another "
            "folder with --run."
        )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as `train.lr`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def compare(earlier: dict[str, Any], recipe: Recipe, file: Path) -> None:
    """Refuse to continue a run by a recipe that differs in more than `FREE` keys.

    Args:
        earlier: the run's own recipe, as its model dumps it.
        recipe: of now.
        file: where the earlier one stands.

    Raises:
        GessoError: names the key that differs.
    """
    before = flat(earlier)
    now = flat(recipe.model_dump(mode="json"))
    for key in sorted(before.keys() | now.keys()):
        if key not in FREE and before.get(key) != now.get(key):
            raise GessoError(
                f"The run was started with {key} = {before.get(key)!r}, not {now.get(key)!r} "
                f"({file}): resume with its own recipe, or start a new run."
            )
