"""Control pictures: how they are drawn, cached beside the latents, and given to a painting."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gesso
from gesso.config import Recipe, build
from gesso.controls import canny, condition_of, pictures, segmentation, soft_edges
from gesso.data.encode import encode
from gesso.data.scenes import SHAPES, Scene
from gesso.data.shards import open_cache
from gesso.data.sources import scenes
from gesso.experiments.control import edge_iou
from gesso.model import Model
from gesso.train.flops import training_flops
from gesso.train.run import encode_recipe, make_dataset, train_recipe, with_vocabulary
from gesso.types import GessoError, Sample

CANNY = {"name": "controlnet", "condition": {"name": "canny"}, "blocks": 1}


def disc(side: int = 64) -> np.ndarray:
    """[side, side, 3]: a red disc of radius side / 4 on grey."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.where((np.hypot(x, y) < side / 4)[..., None], (216, 35, 42), 180).astype(np.uint8)


def sample(image: np.ndarray, key: str = "a", **meta: Any) -> Sample:
    return Sample(key, image, [], meta)


# How they are drawn.


def test_canny_draws_a_thin_line_around_a_disc() -> None:
    edges = canny.canny(disc())
    assert set(np.unique(edges)) == {0, 255}
    y, x = np.argwhere(edges).T - 31.5
    radius = np.hypot(x, y)
    assert abs(radius - 16).max() < 2
    assert 0.8 < len(radius) / (2 * math.pi * 16) < 1.3  # one pixel wide, all around
    assert not canny.canny(disc(), 2000, 3000).any()  # thresholds are used
    only_blue = np.full((32, 32, 3), 120, np.uint8)
    only_blue[:, 16:, 2] = 200
    assert canny.canny(only_blue).any()  # a step of one channel is enough


def test_soft_edges_are_as_strong_as_the_step() -> None:
    step = np.zeros((32, 32, 3), np.uint8)
    for height in (255, 100):
        step[:, 16:, 1] = height
        for sigma in (0.0, 0.5, 1.0, 2.0):
            row = soft_edges.soft_edges(step, sigma)[16]
            assert abs(int(row.max()) - height) <= 0.07 * height, (height, sigma)
            assert row.argmax() in (15, 16)
    wide = (soft_edges.soft_edges(step, 2.0)[16] > 10).sum()
    assert wide > (soft_edges.soft_edges(step, 0.5)[16] > 10).sum()


def test_segmentation_shows_shapes_and_no_colours() -> None:
    source = scenes.build(scenes.Config(count=12, split="test"))
    draw = segmentation.build(segmentation.Config())
    for index in range(12):
        found = source[index]
        scene = Scene.from_dict(found.meta["scene"])
        layout = draw(found, (64, 64))
        colours = {tuple(c) for c in layout.reshape(-1, 3).tolist()}
        wanted = {tuple(segmentation.PALETTE[1 + SHAPES.index(o.shape)]) for o in scene.objects}
        assert colours == wanted | {(0, 0, 0)}
    assert len({tuple(c) for c in segmentation.PALETTE}) == len(segmentation.PALETTE)
    with pytest.raises(GessoError, match="no scene"):
        draw(sample(disc()), (64, 64))


def test_own_pictures_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    Image.fromarray(disc()[..., 0]).save(tmp_path / "sub" / "a.png")  # grey: any mode will do
    Image.fromarray(disc(32)).save(tmp_path / "b.png")
    own = pictures.build(pictures.Config(path=str(tmp_path)))
    drawn = own(sample(disc(), "sub/a.jpg"), (32, 32))
    assert drawn.shape == (32, 32, 3) and (drawn[..., 0] == drawn[..., 2]).all()
    with pytest.raises(GessoError, match="no control picture"):
        own(sample(disc(), "c.jpg"), (32, 32))
    with pytest.raises(GessoError, match="has 32x32 pixels where the picture has 64x64"):
        own(sample(disc(), "b.jpg"), (32, 32))
    before = own.fingerprint()
    Image.fromarray(disc(16)).save(tmp_path / "b.png")
    assert own.fingerprint() != before
    with pytest.raises(GessoError, match="no folder of control pictures"):
        pictures.build(pictures.Config(path=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(GessoError, match="holds no control pictures"):
        pictures.build(pictures.Config(path=str(tmp_path / "empty")))


def test_an_unknown_condition_names_the_nearest() -> None:
    with pytest.raises(GessoError, match="canny"):
        condition_of({"name": "controlnet", "condition": {"name": "cany"}})
    assert condition_of(None) is None
    assert condition_of({"name": "controlnet"}) is None
    assert condition_of({"name": "lora"}) is None


def test_tolerant_iou() -> None:
    line, far = np.zeros((2, 16, 16), bool)
    line[:, 4] = True
    far[:, 9] = True
    assert edge_iou(line, line) == 1
    assert edge_iou(line, far) == 0
    assert edge_iou(line, np.roll(line, 1, axis=1)) == 1  # one pixel beside
    assert edge_iou(line, np.roll(line, 2, axis=1)) == 0
    assert edge_iou(line, line | far) == pytest.approx(1 / 2)  # |A and B| / |A or B|
    half = line.copy()
    half[8:] = False
    assert edge_iou(line, half, tolerance=0) == pytest.approx(1 / 2)
    nothing = np.zeros((16, 16), bool)
    assert edge_iou(nothing, nothing) == 1 and edge_iou(nothing, line) == 0


# Into training.


def test_the_cache_holds_their_latents(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = with_vocabulary(tiny_recipe.model_copy(update={"adapter": CANNY}))
    recipe.data = recipe.data.model_copy(update={"cache": str(tmp_path / "cache")})
    encode_recipe(recipe, tmp_path / "cache", quiet=True)
    model = Model.from_recipe(recipe)
    dataset = make_dataset(recipe, model, tmp_path, quiet=True)
    encoder = model.image_encoder
    source = scenes.build(scenes.Config(count=24))
    by_key = {item.key: item for item in source}
    batches = [dataset.batch(0, 4, 0), *dataset.validation_batches(4)]
    for batch in batches:
        edges = np.stack([canny.canny(by_key[key].image) for key in batch.keys])
        pixels = torch.from_numpy(edges)[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
        with torch.no_grad():
            wanted = encoder.sample(encoder.encode(pixels))
        assert torch.allclose(batch.cond.control, wanted, atol=0.02)  # stored as float16
    own = dataset.batch(0, 4, 0, slice(1, 3))  # of one process among several
    assert torch.equal(own.cond.control, batches[0].cond.control[1:3])

    def opened(condition: Any) -> None:
        open_cache(
            tmp_path / "cache",
            image_encoder=encoder,
            text_encoder=model.text_encoder,
            size=64,
            buckets=False,
            condition=condition,
        )

    opened(condition_of(CANNY))
    for other in (None, soft_edges.build(soft_edges.Config())):
        with pytest.raises(GessoError, match="another kind of control pictures"):
            opened(other)


def test_what_has_no_control_picture_is_skipped_with_its_reason(
    tiny_model: Model, tmp_path: Path
) -> None:
    source = scenes.build(scenes.Config(count=3))
    (tmp_path / "own").mkdir()
    for key, side in (("scene-0-0", 64), ("scene-0-1", 32)):
        Image.fromarray(disc(side)).save(tmp_path / "own" / f"{key}.png")
    parts = tiny_model.image_encoder, tiny_model.text_encoder
    own = pictures.build(pictures.Config(path=str(tmp_path / "own")))
    report = encode(source, *parts, tmp_path / "cache", size=64, condition=own)
    assert report["pictures"] == 1 and report["skipped"] == 2
    listed = dict(json.loads((tmp_path / "cache" / "cache.json").read_text())["bad"])
    assert "32x32" in listed["scene-0-1"] and "no control picture" in listed["scene-0-2"]


def test_costs_count_the_branch(tiny_recipe: Recipe) -> None:
    recipe = with_vocabulary(tiny_recipe)
    one, two = (
        training_flops(recipe.model_copy(update={"adapter": {**CANNY, "blocks": blocks}}))
        for blocks in (1, 2)
    )
    assert two > 1.3 * one


# Into painting.


@pytest.fixture
def steered(tiny_model: Model, tmp_path: Path) -> Path:
    """A folder of the tiny model with a branch that is not silent."""
    tiny_model.attach(CANNY)
    with torch.no_grad():
        for p in tiny_model.backbone.controlnet.parameters():
            p.normal_(std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    folder = tmp_path / "steered"
    folder.mkdir()
    tiny_model.save(folder)
    return folder


def test_a_painting_depends_on_its_own_control_alone(steered: Path) -> None:
    pipe = gesso.load(steered)
    edges, other = canny.canny(disc()), np.zeros((64, 64), np.uint8)
    prompts: dict[str, Any] = {"prompt": ["a red circle", "two stars"], "output_type": "np"}
    pair = pipe(**prompts, seed=[1, 2], control_image=[edges, other]).images
    alone = pipe("two stars", seed=2, control_image=Image.fromarray(other), output_type="np").images
    assert abs(pair[1:] - alone).max() < 1e-5
    shared = pipe(**prompts, seed=[1, 2], control_image=edges, batch_size=1).images
    assert abs(shared[0] - pair[0]).max() < 1e-5 and abs(shared[1] - pair[1]).max() > 1e-3
    free = pipe(**prompts, seed=[1, 2]).images
    silent = pipe(**prompts, seed=[1, 2], control_image=edges, control_scale=0.0).images
    assert (free == silent).all() and abs(free - pair).max() > 1e-3


def test_from_the_shell_and_again(steered: Path, tmp_path: Path, call: Any) -> None:
    Image.fromarray(disc()).save(tmp_path / "disc.png")
    command = ["paint", "a red circle", "-m", str(steered), "--seed", "3", "--json", "--out"]
    code, out, _ = call(*command, "one", "--control-from", "disc.png", "--control-scale", "0.5")
    assert code == 0
    drawn = tmp_path / "one" / "disc-control.png"
    assert (np.asarray(Image.open(drawn))[..., 0] == canny.canny(disc())).all()
    code, again, _ = call(*command, "two", "--control", str(drawn), "--control-scale", "0.5")
    assert code == 0
    first, second = (Path(json.loads(text)["images"][0]) for text in (out, again))
    assert (np.asarray(Image.open(first)) == np.asarray(Image.open(second))).all()
    code, like, _ = call("paint", "--like", str(first), "--out", "three", "--json")
    assert code == 0
    third = json.loads(like)["images"][0]
    assert (np.asarray(Image.open(first)) == np.asarray(Image.open(third))).all()
    Image.fromarray(disc(48)).resize((64, 64)).save(drawn)
    code, _, err = call("paint", "--like", str(first), "--out", "four")
    assert code == 2 and "has changed since" in err and "--control" in err


def test_bad_control_pictures_are_one_sentence(steered: Path, tmp_path: Path, call: Any) -> None:
    Image.fromarray(disc(32)).save(tmp_path / "small.png")
    Image.fromarray(disc()).save(tmp_path / "disc.png")
    Image.fromarray(np.zeros((64, 64), np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "text.png").write_text("no picture")
    for arguments, said in (
        (["--control", "small.png"], "has 32x32 pixels where 64x64 are painted"),
        (["--control", "none.png"], "none.png cannot be used as a control picture"),
        (["--control", "text.png"], "not a picture"),
        (["--control", "float.tiff"], "floating-point pixels"),
        (["--control", "disc.png", "--control-from", "disc.png"], "exclude each other"),
        (["--control", "disc.png", "--control-scale", "-1"], "no number from 0 on"),
        (["--control-scale", "1"], "needs something to scale"),
        (["--control", "disc.png", "--size", "32"], "has 64x64 pixels where 32x32 are painted"),
    ):
        code, _, err = call("paint", "a red circle", "-m", str(steered), *arguments)
        assert code == 2 and said in err and "Traceback" not in err, arguments
        assert len(err.strip().splitlines()) == 1, err
    for flag in ("--control", "--control-from"):
        code, _, err = call("paint", "a red circle", flag, "disc.png")
        assert code == 2 and "control branch" in err  # of the shipped model
    pipe = gesso.load(steered)
    for picture in (np.zeros((64, 64, 3), np.float32), np.zeros((64, 64, 4), np.uint8), "disc.png"):
        with pytest.raises(GessoError, match="A control picture is a PIL image"):
            pipe("a red circle", control_image=picture)
    with pytest.raises(GessoError, match="2 control pictures for 1 prompts"):
        pipe("a red circle", control_image=[disc(), disc()])


def test_a_training_without_usable_control_pictures_says_so(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    Image.fromarray(disc()).save(tmp_path / "own" / "x.png")
    condition = {"name": "pictures", "path": str(tmp_path / "own")}
    tiny_recipe.adapter = {**CANNY, "condition": condition}
    with pytest.raises(GessoError, match=r"24 skipped.*no control picture"):
        train_recipe(tiny_recipe, tmp_path / "run", quiet=True)


def test_conditions_are_found_by_name() -> None:
    for name in ("canny", "soft_edges", "soft-edges", "segmentation"):
        drawn = build("controls", {"name": name})
        assert drawn.fingerprint() == build("controls", {"name": name}).fingerprint()
