"""STAR's recipe from the first stage to a picture: what one stage hands on to the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gesso.config import Recipe
from gesso.loading import load
from gesso.systems import MINIATURE
from gesso.systems.star import TOKENIZER
from gesso.train.plan.estimate import plan_recipe
from gesso.train.run import train_recipe
from gesso.train.stages import Stage, load_stages
from gesso.train.stages_run import train_stages
from gesso.types import GessoError

SMALL = [
    *(item for item in MINIATURE if not item.startswith(("init", "text_encoder"))),
    TOKENIZER,
    *(
        f"stages.{stage}.{key}"
        for stage in ("generator", "sampler")
        for key in (
            "text_encoder={name: learned, width: 16, depth: 1, heads: 2}",
            "backbone={name: star, depth: 1, hidden_size: 16, num_heads: 2}",
        )
    ),
    "stages.sampler.adapter={name: stable_sampler, depth: 1}",
]


def stages() -> list[Stage]:
    return load_stages("star", SMALL)


def weights(run: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = run.glob("checkpoints/*")
    return load_file(checkpoint / "model.safetensors")


def test_stages_hand_on_the_tokenizer_and_the_base(tmp_path: Path) -> None:
    result = train_stages(stages(), tmp_path, quiet=True)
    assert [stage["name"] for stage in result["stages"]] == ["tokenizer", "generator", "sampler"]
    first, second, third = (weights(Path(stage["run"])) for stage in result["stages"])
    assert all(key.startswith("image_encoder.") for key in first)
    for key, value in first.items():
        assert torch.equal(value, second[key]) and torch.equal(value, third[key])
    for key, value in second.items():  # the stable sampler alone has learnt
        assert torch.equal(value, third[key])
    assert {k.split(".")[1] for k in third.keys() - second.keys()} == {"sampler"}

    moved = tmp_path.with_name("moved")  # a checkpoint needs no file beside its own
    tmp_path.rename(moved)
    image = load(str(moved))("a red circle", seed=0, output_type="np").images
    assert image.shape == (1, 32, 32, 3) and np.isfinite(image).all()


def test_a_generator_starts_from_a_tokenizer_of_its_shape(tmp_path: Path) -> None:
    tokenizer, generator, _ = (stage.recipe for stage in stages())
    train_recipe(tokenizer, tmp_path / "tokenizer", quiet=True)

    def start(**image_encoder: object) -> None:
        changed: Recipe = generator.model_copy(deep=True)
        changed.image_encoder |= image_encoder
        changed.init = str(tmp_path / "tokenizer")
        train_recipe(changed, tmp_path / "generator", quiet=True)

    with pytest.raises(GessoError, match=r"quantizer\.codebook\.embedding\.weight has shape"):
        start(codes=64)
    with pytest.raises(GessoError, match=r"set image_encoder\.weights to null"):
        start(weights=str(tmp_path / "tokenizer"))


def test_a_plan_of_every_stage_keeps_to_the_size_of_the_tokenizer() -> None:
    for stage in stages():
        plan = plan_recipe(stage.recipe, gpu="t4", table=True)
        assert plan["flops_per_picture"] > 0
        sizes = {row["size"] for row in plan["table"]}
        assert sizes == {32} or stage.name == "tokenizer"
