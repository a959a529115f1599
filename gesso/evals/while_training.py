"""Benchmarks during a training, on the averaged weights: `validation.scores` of a recipe.

RUN/scores/<benchmark>/step-000500.json   a result, as `gesso evaluate` writes it
RUN/best/                                 the model with the highest score, ready to paint
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gesso.config import Recipe, ScoreConfig
from gesso.train.observe import Moment, Observer
from gesso.types import GessoError

if TYPE_CHECKING:
    from gesso.model import Model

BEST = "best"
SCORE = "score.json"  # in RUN/best


def scoring(recipes: Sequence[Recipe]) -> list[Observer]:
    """The observer that scores, if a recipe asks for scores.

    Raises:
        GessoError: no such benchmark or judge, several scores to keep the best by, or an interval
            that validations do not fall on.
    """
    from gesso.evals.job import open_benchmark

    for recipe in recipes:
        scores, every = recipe.validation.scores, recipe.train.validate_every
        for score in scores:
            open_benchmark(score.benchmark)
            if score.every and (every == 0 or score.every % every):
                raise GessoError(
                    f"{score.benchmark} is to be scored every {score.every} steps, but validations "
                    f"come every {every}: make it a multiple of train.validate_every."
                )
        if sum(score.best for score in scores) > 1:
            raise GessoError("Several validation.scores have best: true: keep it in one.")
    return [Scoring()] if any(recipe.validation.scores for recipe in recipes) else []


class Scoring(Observer):
    """Runs the recipe's scores at validations, and keeps the best model."""

    def on_validation(self, moment: Moment, model: Model) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for score in moment.recipe.validation.scores:
            if moment.share < 1 and score.every and moment.step % score.every:
                continue
            result = self._evaluate(score, moment, model)
            name = score.benchmark.replace("_", "-")
            values = {"overall": result["overall"], **result["scores"]}
            found |= {f"{name}/{key}": v for key, v in values.items() if v is not None}
            if score.best and result["overall"] is not None:
                keep_best(moment, model, name, result["overall"])
        return found

    def _evaluate(self, score: ScoreConfig, moment: Moment, model: Model) -> dict[str, Any]:
        from gesso.evals.job import Request, evaluate
        from gesso.evals.painting import Settings
        from gesso.evals.types import Options
        from gesso.pipeline import Pipeline

        place = moment.run / "scores" / score.benchmark.replace("_", "-")
        work = place / f"step-{moment.step:06d}"
        shutil.rmtree(work, ignore_errors=True)  # of a run that was cut off here
        (result,) = evaluate(
            Request(
                benchmark=score.benchmark.replace("-", "_"),
                out=work,
                models=(Pipeline(model, source=f"step-{moment.step:06d}"),),
                judges=tuple(score.judges),
                options=Options(
                    prompts=None if score.prompts is None else Path(score.prompts),
                    limit=score.limit,
                    seed=score.seed,
                    level=score.level,
                    per_tag=score.per_tag,
                ),
                settings=Settings(
                    score.num_inference_steps, score.guidance_scale, None, str(moment.device)
                ),
                n=score.n,
                quiet=True,
            )
        )
        Path(result["path"]).replace(work.with_suffix(".json"))
        if not score.keep_pictures:
            shutil.rmtree(work)
        return result


def keep_best(moment: Moment, model: Model, benchmark: str, overall: float) -> None:
    """Put the model into RUN/best if none has scored as high before; it changes at once or not."""
    place = moment.run / BEST
    if (place / SCORE).is_file() and json.loads((place / SCORE).read_text())["overall"] >= overall:
        return
    fresh = moment.run / f"{BEST}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    model.save(fresh, step=moment.step)
    about = {"benchmark": benchmark, "overall": overall, "step": moment.step}
    (fresh / SCORE).write_text(json.dumps(about) + "\n")
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)
    moment.say(f"Best {benchmark} so far, {overall:.3f}, at step {moment.step}: {place}")
