"""The micro-budget system: recipes in four phases, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gesso.backbones.microdit import SIZES, Config, MicroDiT
from gesso.config import resolve
from gesso.loading import load
from gesso.systems import load_stages
from gesso.systems.micro_budget import claim

SHORT = [
    "data.source.count=24",
    "train.minutes=null",
    "train.steps=3",
    "train.processes=1",
    "train.batch_size=4",
    "train.device=cpu",
    "validation.holdout=4",
    "validation.prompts=[a star]",
    "sample.num_inference_steps=2",
]


def test_the_recipe_trains_all_phases_and_paints(call, tmp_path: Path) -> None:
    code, out, err = call("train", "micro-budget", "--run", "run", "--json", *SHORT)
    assert code == 0, err
    folders = sorted(p.name for p in (tmp_path / "run").iterdir() if p.is_dir())
    assert folders == ["1-masked-32", "2-unmasked-32", "3-masked-64", "4-unmasked-64"]
    assert json.loads(out.strip().splitlines()[-1])
    pipe = load("run")
    network = pipe.model.backbone
    assert isinstance(network, MicroDiT) and network.config.experts == 4
    pictures = pipe(["a red star"], seed=1, num_inference_steps=2, output_type="latent").images
    assert pictures.shape == (1, 4, 16, 16) and pictures.isfinite().all()
    # Loaded and run again it is the same network, and a second load the same picture.
    again = load("run")(["a red star"], seed=1, num_inference_steps=2, output_type="latent").images
    assert torch.equal(pictures, again)


def test_the_published_recipe_is_the_published_schedule() -> None:
    stages = load_stages("micro-budget-xl")
    rows = [
        (
            s.recipe.data.size,
            s.recipe.objective["mask_ratio"],
            s.recipe.train.steps,
            s.recipe.train.lr,
            s.recipe.train.batch_size * s.recipe.train.accumulate,
            s.recipe.train.clip,
            s.recipe.train.ema > 0,
            (s.recipe.diffusion.p_mean, s.recipe.diffusion.p_std),
        )
        for s in stages
    ]
    assert rows == [
        (256, 0.75, 250_000, 2.4e-4, 2048, 0.25, False, (-0.6, 1.2)),
        (256, 0.0, 30_000, 8e-5, 2048, 0.25, False, (-0.6, 1.2)),
        (512, 0.75, 50_000, 8e-5, 2048, 0.5, True, (0.0, 0.6)),
        (512, 0.0, 5_000, 8e-5, 2048, 0.5, True, (0.0, 0.6)),
    ]
    for stage in stages:
        _, options = resolve("backbones", stage.recipe.backbone)
        assert options == SIZES["xl"] and isinstance(options, Config)


def test_the_claim_names_its_arms() -> None:
    (experiment,) = claim()
    names = {arm.name for arm in experiment.arms}
    assert {"deferred-0.75", "naive-0.75", "small", "dense"} <= names
    for line in ("deferred", "naive"):
        assert sorted(a.at for a in experiment.arms if a.line == line) == [0.25, 0.5, 0.75, 0.875]
