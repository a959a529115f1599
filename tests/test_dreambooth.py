"""DreamBooth: the source that balances subject and prior, and the prior that the model paints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gesso.config import Recipe, load_recipe
from gesso.data.source import open_source
from gesso.loading import load
from gesso.model import Model
from gesso.systems import MINIATURE, miniature
from gesso.train.run import train_recipe, with_vocabulary
from gesso.types import Bad, GessoError

PROMPT, CLASS = "a photo of a sks star", "a photo of a star"


def pictures(folder: Path, count: int, colour: tuple[int, int, int] = (200, 30, 30)) -> Path:
    folder.mkdir()
    for i in range(count):
        image = np.full((32, 32, 3), colour, np.uint8)
        image[4 : 12 + i, 4:12] = 20 * i
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def spec(path: Path, **options: Any) -> dict[str, Any]:
    own = {"path": str(path), "prompt": PROMPT, "class_prompts": [CLASS], **options}
    return {"name": "dreambooth", **own}


def test_subject_and_prior_are_equally_many(tmp_path: Path) -> None:
    subject, prior = pictures(tmp_path / "subject", 3), pictures(tmp_path / "prior", 8)
    source = open_source(spec(subject, prior=str(prior), class_prompts=[CLASS, "two stars"]))
    samples = [s for s in source if not isinstance(s, Bad)]
    texts = [s.captions[0].text for s in samples]
    assert len(source) == len(samples) == 16 and len({s.key for s in samples}) == 16
    assert texts == [PROMPT] * 8 + [CLASS, "two stars"] * 4
    first = [s.image.tobytes() for s in samples[:8]]
    assert first[0] == first[3] == first[6] != first[1]  # the three in turn
    alone = open_source(spec(subject))
    assert [s.captions[0].text for s in alone] == [PROMPT] * 3
    assert alone.fingerprint() != source.fingerprint()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of scenes."""
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    recipe = miniature("scenes", "backbone.depth=2", "backbone.hidden_size=32")
    torch.manual_seed(0)
    model = Model.from_recipe(with_vocabulary(recipe))
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.save(folder)
    return folder


def recipe_for(base: Path, subject: Path, **source: Any) -> Recipe:
    small = [o for o in MINIATURE if not o.startswith(("init", "data.source"))]
    own = ["backbone.depth=2", "backbone.hidden_size=32", "sample.num_inference_steps=2"]
    recipe = load_recipe("dreambooth", [*small, *own, f"init={base}", "train.steps=2"])
    recipe.data.source = spec(subject, **source)
    return recipe


def test_the_model_paints_its_prior_first(base: Path, tmp_path: Path) -> None:
    subject, run = pictures(tmp_path / "subject", 3), tmp_path / "run"
    recipe = recipe_for(base, subject, prior_pictures=6)
    train_recipe(recipe, run, quiet=True)
    painted = sorted((run / "prior").glob("*.png"))
    own = load(base)([CLASS] * 6, seed=1_000_000).images
    assert len(painted) == 6
    assert np.array_equal(np.asarray(Image.open(painted[2])), np.asarray(own[2]))
    before = [p.stat().st_mtime_ns for p in painted]
    recipe.train.steps = 4
    result = train_recipe(recipe, run, resume=True, quiet=True)  # which paints nothing anew
    assert result["steps"] == 4
    assert [p.stat().st_mtime_ns for p in sorted((run / "prior").glob("*.png"))] == before
    assert (Path(result["checkpoint"]) / "lora/adapter_model.safetensors").is_file()


def test_an_unknown_word_is_one_of_its_own(base: Path) -> None:
    encoder = load(base).model.text_encoder
    named, plain = encoder.prepare([PROMPT]), encoder.prepare([CLASS])
    assert named.ids[0, 4] == encoder._ids["<unk>"] and named.ids[0, 4] not in plain.ids[0].tolist()
    with torch.no_grad():
        apart = encoder(named).tokens[0, 4] - encoder(plain).tokens[0, 4]
    assert apart.norm() > 0.1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"path": "nowhere"}, "There is no folder 'nowhere': set data.source.path"),
        ({"path": "empty"}, "has no pictures: put three to ten"),
        ({"prior": "empty"}, "has no pictures"),
        ({"class_prompts": []}, "class_prompts"),
        ({"promt": "x"}, "did you mean 'prompt'"),
    ],
)
def test_bad_input_is_one_sentence(
    changes: dict[str, Any], says: str, base: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    options = {"path": str(pictures(tmp_path / "subject", 3)), **changes}
    with pytest.raises(GessoError, match=says):
        train_recipe(recipe_for(base, **{"subject": options.pop("path"), **options}), Path("run"))


def test_a_prior_needs_a_model(base: Path, tmp_path: Path) -> None:
    recipe = recipe_for(base, pictures(tmp_path / "subject", 3))
    recipe.init = None
    with pytest.raises(GessoError, match="set init to one"):
        train_recipe(recipe, tmp_path / "run", quiet=True)
