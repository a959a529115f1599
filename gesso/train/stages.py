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
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field

from gesso.config import Config, Recipe, nearest, override, read_recipe, validate
from gesso.types import GessoError

PREVIOUS, SCRATCH = "previous", "scratch"
RECORD = "stage.json"  # in the folder of a stage that is done: what it reached
IMPLIED = ("in_channels", "text_dim", "num_classes")  # by encoders, where a recipe leaves them out
LIST = "stages.json"  # in the run's folder: the names of its stages


class Gate(Config):
    """What a stage must reach before the next one may start.

    Attributes:
        validation_loss: at most this.
        score: at least this, as the overall score of a benchmark.
        benchmark: a name of `gesso evaluate`.
        per_tag: its prompts a tag.
    """

    validation_loss: float | None = None
    score: float | None = None
    benchmark: str = "scenes"
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


def train_stages(
    stages: list[Stage],
    run: Path,
    *,
    only: str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is left of the stages, one after the other.

    Args:
        stages: as `load_stages` gives them.
        run: the folder of all.
        only: run this stage alone; those that it starts from must be done.
        resume: go on where an earlier call stopped; what is done is skipped.
        quiet: show no progress.

    Returns:
        What `gesso.train.run.train_recipe` returns of the last stage that ran, or that was done;
        and, where there are stages: `run`, the folder of all, and `stages`: of each that is done
        so far, its name, run, whether it was skipped, steps, seconds and what its gate measured.

    Raises:
        GessoError: bad input, a gate that was not passed, or stages that do not fit each other.
    """
    from gesso.train.folder import refuse_existing
    from gesso.train.run import train_recipe
    from gesso.train.start import complete, refuse_misfit

    if not stages[0].name:
        if only is not None:
            raise GessoError(f"This recipe has no stages: leave out --stage {only}.")
        return train_recipe(stages[0].recipe, run, resume=resume, quiet=quiet)
    names = [stage.name for stage in stages]
    if only is not None and only not in names:
        raise GessoError(f"There is no stage {only!r}: {nearest(only, names)}")
    places = folders(stages, run)
    for earlier, stage in pairwise(stages):
        if stage.start == PREVIOUS and earlier.recipe.backbone is not None:
            before = complete(earlier.recipe.backbone)
            known = {k: v for k, v in before.items() if k not in IMPLIED}
            refuse_misfit(known, f"stage {earlier.name}", stage.recipe, f"Stage {stage.name}")
    if not resume:
        for place in places if only is None else [places[names.index(only)]]:
            refuse_existing(place)
    _write(run / LIST, names)
    result: dict[str, Any] = {}
    report: list[dict[str, Any]] = []
    for i, (stage, place) in enumerate(zip(stages, places, strict=True)):
        if only is not None and stage.name != only:
            continue
        recipe = _recipe(stages, places, i)
        result = finished(place, recipe) or {}
        skipped = bool(result)
        if not skipped:
            if not quiet:
                print(f"Stage {i + 1} of {len(stages)}: {stage.name}")
            again = resume and (place / "recipe.yaml").exists()
            result = train_recipe(recipe, place, resume=again, quiet=quiet)
            if not result["interrupted"]:
                result["recipe"] = recipe.model_dump(mode="json")
                _write(place / RECORD, result)
        measured = {} if result["interrupted"] else measure(stage, place, quiet)
        some = {key: result[key] for key in ("steps", "seconds", "loss")}
        report.append({"name": stage.name, "run": str(place), "skipped": skipped, **some})
        report[-1]["gate"] = measured
        if result["interrupted"]:
            break
    result.pop("recipe", None)
    return {**result, "run": str(run), "stages": report}


def _recipe(stages: list[Stage], places: list[Path], i: int) -> Recipe:
    """The recipe that stage i runs by, once the one before lets it start."""
    stage = stages[i]
    if i and stage.start == PREVIOUS and not (places[i - 1] / RECORD).exists():
        raise GessoError(
            f"Stage {stage.name} starts from stage {stages[i - 1].name}, which is not done in "
            f"{places[i - 1]}: run it first."
        )
    if i and (places[i - 1] / RECORD).exists():
        check_gate(stages[i - 1], places[i - 1], stage.name)
    starts = {SCRATCH: None, PREVIOUS: str(places[i - 1])}
    return stage.recipe.model_copy(update={"init": starts.get(stage.start, stage.start)})


def finished(place: Path, recipe: Recipe) -> dict[str, Any] | None:
    """What a stage reached that was done before, by the same recipe; None if there is more to do.

    Raises:
        GessoError: it was done by another recipe.
    """
    from gesso.train.folder import compare

    file = place / RECORD
    if not file.exists():
        return None
    result: dict[str, Any] = json.loads(file.read_text())
    before = result["recipe"]
    compare(before, recipe, file)
    longer = [before["train"][key] for key in ("steps", "minutes")]
    return result if longer == [recipe.train.steps, recipe.train.minutes] else None


def measure(stage: Stage, place: Path, quiet: bool = True) -> dict[str, float]:
    """What a stage's gate asks about, of the stage as it was done; measured once and kept."""
    gate = stage.gate
    if gate is None:
        return {}
    file = place / RECORD
    record = json.loads(file.read_text())
    measured: dict[str, float] = {}
    if gate.validation_loss is not None:
        if "validation_loss" not in record["validation"]:
            raise GessoError(
                f"The gate of stage {stage.name} asks for a validation loss, and nothing is held "
                "out: set validation.holdout."
            )
        measured["validation_loss"] = record["validation"]["validation_loss"]
    if gate.score is not None:
        scores = record.setdefault("scores", {})
        key = f"{gate.benchmark}/{gate.per_tag}"
        if key not in scores:
            scores[key] = score(place, gate, quiet)
            _write(file, record)
        measured["score"] = scores[key]
    return measured


def score(place: Path, gate: Gate, quiet: bool) -> float:
    """The overall score of a stage's model, by a benchmark that is found by its name."""
    from gesso.config import module

    judge = module("evals", gate.benchmark)
    found = judge.evaluate_model(str(place), per_tag=gate.per_tag, quiet=quiet)
    return float(found["overall"])


def check_gate(stage: Stage, place: Path, following: str) -> None:
    """Refuse to go on where a stage did not reach what its gate asks for.

    Raises:
        GessoError: says which number failed.
    """
    for name, value in measure(stage, place).items():
        assert stage.gate is not None
        bound = getattr(stage.gate, name)
        if not (value <= bound if name == "validation_loss" else value >= bound):
            most = "most" if name == "validation_loss" else "least"
            raise GessoError(
                f"Stage {following} does not start: stage {stage.name} reached a "
                f"{name.replace('_', ' ')} of {value:.4g} and its gate asks for at {most} "
                f"{bound:g}; train it longer or set stages.{stage.name}.gate.{name}."
            )


def _write(file: Path, values: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".tmp")
    part.write_text(json.dumps(values, indent=1) + "\n")
    part.replace(file)
