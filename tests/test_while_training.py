"""Benchmarks during a training: the checkpoint's own numbers, logged, and the best one kept."""

import json

import pytest
import torch

from gesso.config import ScoreConfig
from gesso.data.images import load_rgb
from gesso.evals.job import Request, evaluate
from gesso.evals.types import Options
from gesso.evals.while_training import keep_best, scoring
from gesso.model import Model
from gesso.train.observe import Moment
from gesso.train.run import train_recipe
from gesso.types import GessoError


@pytest.fixture
def scored_recipe(tiny_recipe):
    tiny_recipe.train.validate_every = 2
    tiny_recipe.validation.scores = [
        ScoreConfig(
            benchmark="scenes", every=2, per_tag=1, n=1, level=1, best=True, keep_pictures=True
        )
    ]
    return tiny_recipe


def test_scores_are_those_of_gesso_evaluate_on_the_checkpoint(scored_recipe, tmp_path):
    run = tmp_path / "run"
    result = train_recipe(scored_recipe, run, quiet=True, observers=scoring([scored_recipe]))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {e["step"]: e for e in lines if "scenes/overall" in e}
    assert sorted(logged) == [2, 4]
    request = Request(
        "scenes", tmp_path / "out", (str(run),), options=Options(per_tag=1, level=1), n=1,
        quiet=True,
    )  # fmt: skip
    (after,) = evaluate(request)
    during = json.loads((run / "scores/scenes/step-000004.json").read_text())
    assert after["overall"] == logged[4]["scenes/overall"] == result["validation"]["scenes/overall"]
    assert after["scores"] == during["scores"] and after["n"] == during["n"] == 6
    kept = sorted((run / "scores/scenes/step-000004/pictures").rglob("*.png"))
    again = sorted((tmp_path / "out/pictures").rglob("*.png"))
    assert [f.name for f in kept] == [f.name for f in again] and len(kept) == 6
    for one, other in zip(kept, again, strict=True):  # the scores of this model are all zero
        assert (load_rgb(one) == load_rgb(other)).all()
    assert any(f.std() > 1 for f in map(load_rgb, kept))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tb"))
    board.Reload()
    assert [e.step for e in board.Scalars("scenes/overall")] == [2, 4]
    best = json.loads((run / "best/score.json").read_text())
    assert best["overall"] == max(e["scenes/overall"] for e in logged.values())


def moment(recipe, run, step, said):
    return Moment(
        step=step, share=0.5, seconds=0.0, pictures=1, run=run, recipe=recipe,
        device=torch.device("cpu"), latest={}, say=said.append, log=lambda values: None,
    )  # fmt: skip


def test_the_best_model_stays_until_a_better_one_comes(tiny_recipe, tiny_model, tmp_path):
    said = []
    scores = [(10, 0.3), (20, 0.5), (30, 0.4), (40, 0.5)]
    for step, overall in scores:
        keep_best(moment(tiny_recipe, tmp_path, step, said), tiny_model, "scenes", overall)
    kept = json.loads((tmp_path / "best/score.json").read_text())
    assert kept == {"benchmark": "scenes", "overall": 0.5, "step": 20}
    assert len(said) == 2 and not (tmp_path / "best.new").exists()
    assert Model.load(tmp_path / "best").description.step == 20


def test_scores_that_cannot_run_are_told_before_the_training(tiny_recipe):
    assert scoring([tiny_recipe]) == []
    tiny_recipe.train.validate_every = 20
    tiny_recipe.validation.scores = [ScoreConfig(benchmark="scens")]
    with pytest.raises(GessoError, match="did you mean 'scenes'"):
        scoring([tiny_recipe])
    tiny_recipe.validation.scores = [ScoreConfig(benchmark="scenes", every=30)]
    with pytest.raises(GessoError, match=r"multiple of train\.validate_every"):
        scoring([tiny_recipe])
    tiny_recipe.validation.scores = [ScoreConfig(benchmark="scenes", best=True)] * 2
    with pytest.raises(GessoError, match="keep it in one"):
        scoring([tiny_recipe])
