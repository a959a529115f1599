"""Running a recipe's stages one after the other, and the gates between them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from gesso.config import Recipe, module, nearest
from gesso.model import STAGES
from gesso.train import parallel
from gesso.train.folder import compare, refuse_existing
from gesso.train.observe import Observer
from gesso.train.run import train_recipe
from gesso.train.stages import PREVIOUS, SCRATCH, Gate, Stage, folders
from gesso.train.start import complete, refuse_misfit
from gesso.types import GessoError

RECORD = "stage.json"  # in the folder of a stage that is done: what it reached
IMPLIED = ("in_channels", "text_dim", "num_classes")  # by encoders, where a recipe leaves them out


def train_stages(
    stages: list[Stage],
    run: Path,
    *,
    only: str | None = None,
    resume: bool = False,
    quiet: bool = False,
    observers: Sequence[Observer] = (),
) -> dict[str, Any]:
    """Run what is left of the stages, one after the other.

    Under a launcher such as torchrun, one stage a launch: the next that is not done, or `only`.

    Args:
        stages: as `load_stages` gives them.
        run: the folder of all.
        only: run this stage alone; those that it starts from must be done.
        resume: go on where an earlier call stopped; what is done is skipped.
        quiet: show no progress.
        observers: see `gesso.train.observe`.

    Returns:
        What `gesso.train.run.train_recipe` returns of the last stage that ran, or that was done;
        and, where there are stages: `run`, the folder of all, and `stages`: of each that is done
        so far, its name, run, whether it was skipped, steps, seconds and what its gate measured.

    Raises:
        GessoError: bad input, a gate that was not passed, or stages that do not fit each other.
    """
    if not stages[0].name:
        if only is not None:
            raise GessoError(f"This recipe has no stages: leave out --stage {only}.")
        recipe = stages[0].recipe
        return train_recipe(recipe, run, resume=resume, quiet=quiet, observers=observers)
    names = [stage.name for stage in stages]
    if only is not None and only not in names:
        raise GessoError(f"There is no stage {only!r}: {nearest(only, names)}")
    refuse_misfits(stages)
    places = folders(stages, run)
    if parallel.launched() and only is None:  # every process must come to the same one
        undone = [n for n, p in zip(names, places, strict=True) if not (p / RECORD).exists()]
        only = undone[0] if undone else names[-1]
    leads = parallel.leads()
    if leads:
        if not resume:
            for place in places if only is None else [places[names.index(only)]]:
                refuse_existing(place)
        if resume and not any(place.exists() for place in places):
            raise GessoError(f"There is no run in {run} to resume: leave out --resume to start it.")
    result: dict[str, Any] = {}
    report: list[dict[str, Any]] = []
    for i, (stage, place) in enumerate(zip(stages, places, strict=True)):
        if only is not None and stage.name != only:
            continue
        recipe = _recipe(stages, places, i)
        before = finished(place, recipe)
        if before is None:
            if leads:
                _write(run / STAGES, names)
                _tell_outdated(stages, places, i)
                if not quiet:
                    print(f"Stage {i + 1} of {len(stages)}: {stage.name}")
            again = resume and (place / "recipe.yaml").exists()
            result = train_recipe(recipe, place, resume=again, quiet=quiet, observers=observers)
            if leads and not result["interrupted"]:
                _write(place / RECORD, {**result, "recipe": recipe.model_dump(mode="json")})
        else:
            result = before
        some = {key: result[key] for key in ("steps", "seconds", "loss")}
        report.append(
            {"name": stage.name, "run": str(place), "skipped": before is not None, **some}
        )
        report[-1]["gate"] = (
            measure(stage, place, quiet) if leads and not result["interrupted"] else {}
        )
        if result["interrupted"]:
            break
    result.pop("recipe", None)
    return {**result, "run": str(run), "stages": report}


def _tell_outdated(stages: list[Stage], places: list[Path], i: int) -> None:
    """Before a finished stage is trained longer: the next one has started from it as it was."""
    later = i + 1
    if not (places[i] / RECORD).exists() or later == len(stages):
        return
    if stages[later].start == PREVIOUS and (places[later] / RECORD).exists():
        warnings.warn(
            f"Stage {stages[later].name} started from stage {stages[i].name} as it was before and "
            f"stays as it is: delete {places[later]} to train it again.",
            stacklevel=2,
        )


def refuse_misfits(stages: list[Stage]) -> None:
    """Raise a GessoError if a backbone does not fit the one of the stage that it starts from."""
    for earlier, stage in pairwise(stages):
        if stage.start == PREVIOUS and earlier.recipe.backbone is not None:
            before = complete(earlier.recipe.backbone)
            known = {k: v for k, v in before.items() if k not in IMPLIED}
            refuse_misfit(known, f"stage {earlier.name}", stage.recipe, f"Stage {stage.name}")


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
