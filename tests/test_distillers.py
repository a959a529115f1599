"""What a teacher must be, for every objective that distils one: told through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gesso.config import DiffusionConfig, Recipe, load_recipe
from gesso.encoders.image.tiny import SHIPPED
from gesso.model import Model
from gesso.train.run import with_vocabulary

Call = Callable[..., tuple[int, str, str]]

RECIPES = {"pixart-delta": "lcm", "sim": "sim"}
SMALL = [
    "data.source={name: scenes, level: 1, count: 8}",
    "text_encoder={name: learned, width: 32, depth: 1, heads: 2, max_tokens: 8, words: [red]}",
    "backbone.depth=1",
    "backbone.hidden_size=32",
    "train.steps=1",
    "train.compile=false",
    "train.device=cpu",
    "train.processes=1",
]


def small(name: str, *overrides: str) -> Recipe:
    recipe = load_recipe(name, [*SMALL, *overrides, "init=null"])
    return with_vocabulary(recipe)


@pytest.fixture(params=list(RECIPES))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def refused(call: Call, name: str, tmp_path: Path) -> Callable[..., None]:
    """`gesso train` from a model ends with one sentence, exit code 2 and no run."""

    def check(teacher: Model | None, *says: str, overrides: list[str] | None = None) -> None:
        init = "null"
        if teacher is not None:
            (tmp_path / "teacher").mkdir()
            teacher.save(tmp_path / "teacher")
            init = str(tmp_path / "teacher")
        options = [*SMALL, *(overrides or []), f"init={init}"]
        code, _, err = call("train", name, "--run", tmp_path / "run", *options)
        assert code == 2 and len(err.strip().splitlines()) == 1, err
        for text in (*says, RECIPES[name] if "Objective" in err else ""):
            assert text in err, err
        assert not (tmp_path / "run" / "checkpoints").exists()

    return check


def test_none(refused: Callable[..., None]) -> None:
    refused(None, "distils a trained model", "init=scenes")


@pytest.mark.parametrize(
    ("diffusion", "key"),
    [
        ({"path": "ddpm", "prediction": "epsilon"}, "diffusion.path"),
        ({"path": "flow", "prediction": "v"}, "diffusion.prediction"),
    ],
)
def test_another_path_or_prediction(
    refused: Callable[..., None], name: str, diffusion: dict[str, Any], key: str
) -> None:
    """Its weights would load, and what they predict be read as something else."""
    recipe = small(name)
    recipe.diffusion = DiffusionConfig(**diffusion)
    field = key.partition(".")[2]
    says = f"{key} flow, and its teacher", f"{key}={diffusion[field]}"
    refused(Model.from_recipe(recipe), *says)


def test_a_path_that_the_method_does_not_support(
    call: Call, refused: Callable[..., None], name: str
) -> None:
    recipe = small(name)
    edm = {"path": "edm", "prediction": "edm", "timesteps": "lognormal"}
    recipe.diffusion = DiffusionConfig(**edm)
    if name == "sim":  # goes on all three: the recipe's path is what does not fit
        refused(Model.from_recipe(recipe), "diffusion.path flow", "diffusion.path=edm")
    else:
        own = [f"diffusion={{{', '.join(f'{k}: {v}' for k, v in edm.items())}}}"]
        refused(Model.from_recipe(recipe), "the paths ddpm, flow", "is on edm", overrides=own)


def test_one_that_reads_no_text(refused: Callable[..., None]) -> None:
    refused(Model.from_recipe(load_recipe("tiny-autoencoder")), "has no backbone")


def test_latents_of_another_shape(refused: Callable[..., None], name: str) -> None:
    other = Model.from_recipe(small(name, "backbone.in_channels=8"))
    refused(other, "backbone.in_channels 4", "with 8: make them equal")


def test_latents_of_another_encoder(
    refused: Callable[..., None], name: str, tmp_path: Path
) -> None:
    """Of the same shape, so that the weights alone would fit."""
    file = tmp_path / "other.safetensors"
    save_file({k: 1.1 * v for k, v in load_file(SHIPPED["scenes"]).items()}, file)
    other = Model.from_recipe(small(name, f"image_encoder={{name: tiny, weights: {file}}}"))
    refused(other, "another image_encoder", "set image_encoder as")


def test_a_network_of_another_shape(refused: Callable[..., None], name: str) -> None:
    other = Model.from_recipe(small(name, "backbone.hidden_size=64"))
    refused(other, "backbone.hidden_size 32", "with 64")
