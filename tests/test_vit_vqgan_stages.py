"""ViT-VQGAN from the command line: a tokenizer, a transformer over its codes, a painted picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gesso.data.scenes import SHAPES
from gesso.experiments import probe
from gesso.model import Model, checkpoint_in

TOKENIZER = ["depth=1", "hidden_size=32", "num_heads=1", "head_dim=32", "mlp_size=32", "codes=16"]
TOKENIZER = [f"image_encoder.{option}" for option in [*TOKENIZER, "image_size=32"]]
SMALL = ["data.source={name: scenes, count: 12, height: 32, width: 32}", "data.size=32"]
SMALL += ["train.steps=2", "train.batch_size=4", "train.warmup=0", "train.device=cpu"]
SMALL += ["train.dtype=float32", "train.processes=1", "validation.holdout=4"]
VIM = [
    *("backbone.depth=1", "backbone.hidden_size=32", "backbone.grid=[4, 4]"),
    *("text_encoder.width=16", "text_encoder.depth=1", "validation.prompts=[]"),
    *("sample.height=32", "sample.width=32"),
]


@pytest.fixture
def tokenizer(call: Any, tmp_path: Path) -> Path:
    run = tmp_path / "tokenizer"
    options = [*TOKENIZER, *SMALL, "objective.size=32", "objective.discriminator_width=4"]
    code, out, err = call("train", "vit-vqgan", *options, "--run", run, "--json")
    assert code == 0, err
    assert not json.loads(out)["paints"]
    return run


def test_a_trained_tokenizer_serves_a_generator(call: Any, tmp_path: Path, tokenizer: Path) -> None:
    metrics = [json.loads(line) for line in (tokenizer / "metrics.jsonl").read_text().splitlines()]
    told = {key for line in metrics for key in line}
    assert {"validation_usage", "validation_perplexity", "validation_psnr"} <= told
    run = tmp_path / "vim"
    options = [*TOKENIZER, *SMALL, *VIM, f"init={tokenizer}"]
    code, _, err = call("train", "vit-vqgan-vim", *options, "--run", run, "--json")
    assert code == 0, err
    saved, before = (Model.load(checkpoint_in(r)) for r in (run, tokenizer))  # type: ignore[arg-type]
    ours = saved.image_encoder.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in before.image_encoder.state_dict().items())
    out = tmp_path / "painted"
    code, _, err = call("paint", "a red circle", "--model", run, "--out", out, "--seed", 1)
    assert code == 0, err
    (picture,) = out.glob("*.png")
    assert Image.open(picture).size == (32, 32)
    # The same tokenizer, named by its run, is frozen and gives the same codes.
    named = [f"image_encoder.weights={tokenizer}", "init=null", "train.steps=1"]
    options = [*TOKENIZER, *SMALL, *VIM, *named]
    code, _, err = call("train", "vit-vqgan-vim", *options, "--run", tmp_path / "named")
    assert code == 0, err


def test_a_class_may_be_the_condition(call: Any, tmp_path: Path, tokenizer: Path) -> None:
    run, out = tmp_path / "vim", tmp_path / "painted"
    by_class = ["text_encoder={name: classes}", "data.caption_weights=null"]
    by_class += ["data.source={name: scenes, count: 12, height: 32, width: 32, classes: true}"]
    small = [option for option in VIM if not option.startswith("text_encoder")]
    options = [*TOKENIZER, *SMALL, *small, f"init={tokenizer}", *by_class]
    code, _, err = call("train", "vit-vqgan-vim", *options, "--run", run, "--json")
    assert code == 0, err
    loaded = Model.load(checkpoint_in(run))  # type: ignore[arg-type]
    assert loaded.backbone.num_classes == 40
    code, _, err = call("paint", "red circle", "--model", run, "--out", out, "--seed", 1)
    assert code == 0 and len(list(out.glob("*.png"))) == 1, err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["image_encoder.codes=32"], "quantizer.embedding.weight has shape (16, 8)"),
        (["backbone.vocabulary=99"], "made for a tokenizer of 99 codes, and this one has 16"),
        (["backbone.grid=[8, 8]"], "64 codes a picture, a grid of 8x8, and this batch has 16"),
        (["image_encoder={name: tiny}", "init=null"], "its image encoder has none"),
    ],
)
def test_a_generator_that_does_not_fit_is_refused(
    call: Any, tmp_path: Path, tokenizer: Path, changes: list[str], said: str
) -> None:
    options = [*TOKENIZER, *SMALL, *VIM, f"init={tokenizer}", *changes]
    code, _, err = call("train", "vit-vqgan-vim", *options, "--run", tmp_path / "vim")
    assert code == 2 and said in " ".join(err.split()), err
    assert "Traceback" not in err


def test_pictures_of_another_size_are_refused(call: Any, tmp_path: Path, tokenizer: Path) -> None:
    run = tmp_path / "vim"
    options = [*TOKENIZER, *SMALL, *VIM, f"init={tokenizer}"]
    assert call("train", "vit-vqgan-vim", *options, "--run", run)[0] == 0
    code, _, err = call("paint", "a star", "--model", run, "--size", "64x64")
    assert code == 2 and "grid of 4x4, and pictures of this size have 8x8" in " ".join(err.split())


def test_the_probe_is_a_logistic_regression() -> None:
    """On classes that a line separates, and on features that tell nothing."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (400,), generator=g)
    x = torch.randn(400, 5, generator=g)
    noise = probe.probe(x[:200], y[:200], x[200:], y[200:])
    x[:, :3] += 8 * torch.nn.functional.one_hot(y, 3)
    assert probe.probe(x[:200], y[:200], x[200:], y[200:]) == 1
    assert noise < 0.5


def test_probed_features_are_means_over_codes() -> None:
    """Against blocks that are run one after the other by hand."""
    from gesso.systems.vit_vqgan import tiny_vim
    from gesso.train.run import with_vocabulary

    recipe = tiny_vim()
    recipe.backbone = {**recipe.backbone, "grid": [8, 8]}  # type: ignore[dict-item]
    model = Model.from_recipe(with_vocabulary(recipe))
    found, labels = probe.features(model, 0, 3)
    assert len(found) == 3 and found[0].shape == (3, 32)
    scenes = probe._single(0, 3)
    assert labels.tolist() == [SHAPES.index(s.objects[0].shape) for s in scenes]
    from gesso.data.images import to_tensor
    from gesso.data.scenes import render

    with torch.no_grad():
        x = torch.stack([to_tensor(torch.from_numpy(render(s, 64, 64)[None]))[0] for s in scenes])
        codes = model.image_encoder.codes(model.image_encoder.encode(x))
        backbone = model.backbone
        place = torch.arange(64)
        x = backbone.code(codes) + backbone.row(place // 8) + backbone.column(place % 8)
        torch.testing.assert_close(found[0], x.mean(1))
        cond = model.text_encoder(model.text_encoder.prepare([""] * 3))
        prefix, _ = backbone._condition(cond)
        x = torch.cat([prefix, x], dim=1)
        lead = prefix.shape[1]
        bias = torch.full((lead + 64, lead + 64), -1e4).triu(1)
        bias[:lead, :lead] = 0
        for k, block in enumerate(backbone.blocks, 1):
            x = block(x, bias.expand(3, 1, -1, -1))
            torch.testing.assert_close(found[k], x[:, lead:].mean(1), atol=1e-5, rtol=1e-4)
