"""Recipes of several stages, each an ordinary run that may start from the one before.

A recipe file may end with `stages:`, a mapping from names to changes of what stands above it:

    stages:
      pixel-dependency:                  # the first starts from scratch
        backbone: {name: dit}
        gate: {validation_loss: 0.5}     # the next one starts only at or below this
      text-alignment:                    # the others start from the one before
        convert: {name: adaln_single}    # where its architecture is another
        train: {lr: 2.0e-5, learns: ["*cross_attn*"]}

Changes are merged key by key; a part with another name takes the place of the part, and null
removes a value. Stage i lies in RUN/i-NAME.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gesso.config import Config, Recipe, nearest, override, read_recipe, validate
from gesso.types import GessoError

PREVIOUS, SCRATCH = "previous", "scratch"


class Gate(Config):
    """What a stage must reach before the next one may start.

    Attributes:
        validation_loss: at most this.
        score: at least this, as the overall score of a benchmark.
        benchmark: GenEval's rules on scenes are what gates can ask for so far.
        per_tag: its prompts a tag.
    """

    validation_loss: float | None = None
    score: float | None = None
    benchmark: Literal["scenes"] = "scenes"
    per_tag: int = Field(default=10, ge=1)


class Stage(Config):
    """One stage.

    Attributes:
        name: "" for the only stage of a recipe without stages.
        recipe: whole and validated; its `init` is filled in when the stage runs.
        start: "previous", "scratch", or as `Recipe.init`.
        gate: None: the next stage starts whatever this one reached.
    """

    name: str
    recipe: Recipe
    start: str = SCRATCH
    gate: Gate | None = None


def load_stages(name_or_path: str, overrides: list[str] | None = None) -> list[Stage]:
    """The stages of a recipe, in order; a recipe without stages is one.

    Args:
        name_or_path: as for `gesso.config.load_recipe`.
        overrides: `key=value` changes every stage, `stages.NAME.key=value` one of them.

    Raises:
        GessoError: as `load_recipe`, or an override of a stage that is not there.
    """
    path, values = read_recipe(name_or_path)
    where = f"Recipe {path.name}"
    changes = values.pop("stages", None)
    items = overrides or []
    if changes is None:
        for item in items:
            override(values, item)
        recipe = validate(Recipe, values, where)
        return [Stage(name="", recipe=recipe, start=recipe.init or SCRATCH)]
    if not isinstance(changes, dict) or not all(isinstance(c, dict) for c in changes.values()):
        raise GessoError(f"{where}: stages is no mapping from names to changes: write it as one.")
    common = [item for item in items if not item.startswith("stages.")]
    own: dict[str, list[str]] = {name: [] for name in changes}
    for item in items:
        if item not in common:
            name, _, inner = item.removeprefix("stages.").partition("=")[0].partition(".")
            if name not in own:
                raise GessoError(f"{where} has no stage {name!r}: {nearest(name, list(own))}")
            if not inner and item != f"stages.{name}=null":
                raise GessoError(
                    f"The override {item!r} names no key of the stage: write "
                    f"stages.{name}.train.lr=1e-4, or stages.{name}=null to leave it out."
                )
            own[name].append(item.removeprefix(f"stages.{name}{'.' if inner else ''}"))
    stages: list[Stage] = []
    for name, change in changes.items():
        if "=null" in own[name]:
            continue
        merged = copy.deepcopy(merge(values, change))
        for item in common + own[name]:
            override(merged, item)
        merged["name"] = f"{merged.get('name', path.stem)}-{name}"
        default = PREVIOUS if stages else SCRATCH
        start, gate = merged.pop("start", default), merged.pop("gate", None)
        recipe = validate(Recipe, merged, f"{where}, stage {name}")
        asks = isinstance(gate, dict) and gate.get("validation_loss") is not None
        if asks and not recipe.validation.holdout:
            raise GessoError(
                f"{where}: the gate of stage {name} asks for a validation loss, and nothing is"
                " held out: set validation.holdout."
            )
        stage = {"name": name, "recipe": recipe, "start": start, "gate": gate}
        stages.append(validate(Stage, stage, f"{where}, stage {name}"))
    if not stages or stages[0].start == PREVIOUS:
        raise GessoError(f"{where} has no stage to start with: the first starts from scratch.")
    return stages


def merge(values: Any, changes: Any) -> dict[str, Any]:
    """`values` with `changes`, key by key; a part with another name replaces the whole part."""
    merged = dict(values)
    for key, new in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, new) if _same_part(old, new) else new
    return merged


def _same_part(old: Any, new: Any) -> bool:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return False
    return bool(new.get("name", old.get("name")) == old.get("name"))


def default_run(stages: list[Stage]) -> Path:
    """runs/NAME of the recipe."""
    name = stages[0].recipe.name
    return Path("runs") / (name.removesuffix(f"-{stages[0].name}") if stages[0].name else name)


def folders(stages: list[Stage], run: Path) -> list[Path]:
    """Where each stage lies."""
    if len(stages) == 1 and not stages[0].name:
        return [run]
    return [run / f"{i}-{stage.name}" for i, stage in enumerate(stages, 1)]
