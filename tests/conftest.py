"""Shared fixtures: small models that are built in milliseconds, and the real data where it is."""

import sys
from pathlib import Path

import pytest
import torch

from gesso import cli
from gesso.config import Recipe, load_recipe
from gesso.model import Model

SHARED = Path(__file__).parents[2] / "shared" / "data"

WORDS = ["a", "above", "blue", "circle", "of", "photo", "red", "square", "star", "two"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real pictures and weights."""
    if not SHARED.is_dir():
        pytest.skip("the real data is not beside this checkout")
    return SHARED


@pytest.fixture
def tiny_recipe() -> Recipe:
    """A whole model of a few thousand parameters, with every part real."""
    recipe = load_recipe("demo")
    recipe.text_encoder = {
        "name": "learned",
        "width": 32,
        "depth": 1,
        "heads": 2,
        "max_tokens": 12,
        "words": WORDS,
    }
    recipe.backbone = {
        "name": "pixart",
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "learn_sigma": False,
    }
    recipe.train.compile = False
    recipe.train.minutes = None
    recipe.train.steps = 4
    recipe.train.batch_size = 4
    recipe.train.dtype = "float32"
    recipe.data.source = {"name": "scenes", "level": 1, "count": 24}
    recipe.validation.prompts = ["a red circle", "two blue stars", "", "a star above a square"]
    recipe.validation.holdout = 4
    recipe.sample.num_inference_steps = 3
    return recipe


@pytest.fixture
def tiny_model(tiny_recipe: Recipe) -> Model:
    """The recipe's model, away from its zero initialisation, so that prompts matter."""
    model = Model.from_recipe(tiny_recipe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture
def model_folder(tiny_model: Model, tmp_path: Path) -> Path:
    """A checkpoint folder of the tiny model."""
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_model.save(folder)
    return folder


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The command line inside this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["gesso", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run
