"""Recipes of several stages, through the command line; and DiT as the start of a PixArt."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from gesso.backbones import dit, pixart
from gesso.config import Recipe, validate
from gesso.convert.origin import Origin
from gesso.convert.starts import adaln_single
from gesso.loading import find
from gesso.model import Model
from gesso.nn.position import sincos_2d
from gesso.train import stages, stages_run
from gesso.train.log import RunLog
from gesso.train.start import make_model
from gesso.types import Cond, GessoError

# DiT -> PixArt.

SIZE = {"depth": 3, "hidden_size": 384, "num_heads": 6, "base_size": 4}  # a published width


def random_dit(**options: Any) -> dit.DiT:
    torch.manual_seed(0)
    model = dit.DiT(dit.Config(**{**SIZE, "num_classes": 10, **options})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.05)
    return model


def converted(model: dit.DiT, time: float = 500) -> pixart.PixArt:
    torch.manual_seed(1)
    backbone = pixart.PixArt(pixart.Config(**SIZE, text_dim=20)).eval()
    tensors = {f"backbone.{k}": v for k, v in model.state_dict().items()}
    origin = Origin("here", {"name": "dit"}, tensors)
    adaln_single.start(adaln_single.Config(time=time), origin, backbone)
    return backbone


def outputs(model: dit.DiT, backbone: pixart.PixArt, time: float) -> tuple[Tensor, Tensor]:
    """Of the DiT without a class, and of the PixArt with some text: value and variance."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    t = torch.full((2,), float(time))
    with torch.no_grad():
        classless = model(x, t, Cond(label=torch.tensor([10, 10])))
        texted = backbone(x, t, Cond(tokens=torch.randn(2, 7, 20)))
    pair = [torch.cat([out.value, out.aux["variance"]], 1) for out in (classless, texted)]
    return pair[0], pair[1]


@pytest.mark.parametrize("time", [500, 850])
def test_reparametrised_network_is_the_classless_dit_at_one_time(time: int) -> None:
    model = random_dit()
    backbone = converted(model, time)
    theirs, ours = outputs(model, backbone, time)
    assert theirs.std() > 0.1
    assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()
    theirs, ours = outputs(model, backbone, 50)
    assert (theirs - ours).abs().max() > 1e-2 * theirs.abs().max()


def test_blocks_agree_at_one_time_and_the_mean_is_nearest_at_others() -> None:
    """Block by block; and no single block's MLP comes as near in the square over all times."""
    model, backbone = random_dit(), converted(random_dit())
    no_class = model.y_embedder.embedding_table.weight[10]
    with torch.no_grad():

        def theirs(i: int, t: Tensor) -> Tensor:  # [T, 6, D]
            c = model.t_embedder(t) + no_class
            return torch.cat(model.blocks[i].adaLN_modulation(c), dim=1).view(len(t), 6, -1)

        def ours(i: int, t: Tensor) -> Tensor:
            shared = backbone.t_block(backbone.t_embedder(t)).view(len(t), 6, -1)
            return shared + backbone.blocks[i].scale_shift_table

        def other(i: int, j: int, t: Tensor) -> Tensor:  # f is block j's MLP
            middle = torch.tensor([500.0])
            return theirs(j, t) + theirs(i, middle) - theirs(j, middle)

        middle, times = torch.tensor([500.0]), torch.arange(0, 1000, 37.0)
        for i in range(3):
            assert torch.allclose(theirs(i, middle), ours(i, middle), atol=1e-5)
        error = sum(float((theirs(i, times) - ours(i, times)).square().sum()) for i in range(3))
        for j in range(3):
            square = sum((theirs(i, times) - other(i, j, times)).square().sum() for i in range(3))
            assert error < float(square)


def recipe(**parts: Any) -> Recipe:
    """PixArt in the size of `random_dit`."""
    values = {
        "name": "test",
        "image_encoder": {"name": "tiny"},
        "text_encoder": {"name": "learned", "words": ["red"], "width": 20, "depth": 1, "heads": 2},
        "backbone": {"name": "pixart", **SIZE},
        "convert": {"name": "adaln_single"},
    }
    made: Recipe = validate(Recipe, values | parts, "test")
    return made


def test_published_checkpoint_becomes_stage_two(tmp_path: Path) -> None:
    """The whole way: the authors' file, to the model that the second stage trains."""
    model = random_dit()
    positions = sincos_2d(4, 4, 384, 4)[None]
    torch.save({**model.state_dict(), "pos_embed": positions}, tmp_path / "DiT.pt")
    made = make_model(recipe(init=str(tmp_path / "DiT.pt")))
    theirs, ours = outputs(model, made.backbone, 500)
    assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()
    again = make_model(
        recipe(
            init=str(tmp_path / "DiT.pt"),
            convert=None,
            text_encoder={"name": "classes", "classes": [f"class {i}" for i in range(10)]},
            backbone={"name": "dit", **SIZE},
        )
    )
    for key, value in model.state_dict().items():  # and as the first stage itself
        assert torch.equal(again.backbone.state_dict()[key], value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"backbone": {"name": "pixart", **SIZE, "hidden_size": 192}}, "hidden_size 192 .* 384"),
        ({"backbone": {"name": "pixart", **SIZE, "depth": 2}}, "depth 2 .* 3: make them equal"),
        ({"convert": None}, "say how it is converted"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    torch.save(random_dit().state_dict(), tmp_path / "DiT.pt")
    with pytest.raises(GessoError, match=message):
        make_model(recipe(init=str(tmp_path / "DiT.pt"), **parts))


def test_only_a_dit_is_converted(tmp_path: Path) -> None:
    model = Model.from_recipe(recipe(convert=None))
    model.save(tmp_path)
    with pytest.raises(GessoError, match="is pixart: leave out `convert`"):
        make_model(recipe(init=str(tmp_path)))
    with pytest.raises(GessoError, match="nothing to convert"):
        make_model(recipe())


def test_what_learns_is_chosen_by_name() -> None:
    learns = ["*.cross_attn.*", "text_encoder.*"]
    model = make_model(recipe(convert=None, train={"learns": learns}))
    names = [n for n, p in model.backbone.named_parameters() if p.requires_grad]
    assert names and all("cross_attn" in n for n in names)
    assert all(p.requires_grad for p in model.text_encoder.parameters())
    with pytest.raises(GessoError, match="'cross', which no parameter"):
        make_model(recipe(convert=None, train={"learns": [*learns, "cross"]}))


# Stages.

SMALL = {"depth": 2, "hidden_size": 32, "num_heads": 2, "learn_sigma": False}
MINIATURE: dict[str, Any] = {
    "name": "mini",
    "image_encoder": {"name": "tiny"},
    "text_encoder": {"name": "learned", "width": 16, "depth": 1, "heads": 2, "max_tokens": 12},
    "backbone": {"name": "pixart", **SMALL},
    "diffusion": {"path": "flow", "prediction": "flow"},
    "data": {"source": {"name": "scenes", "count": 16, "height": 32, "width": 32}, "size": 32},
    "train": {"steps": 4, "batch_size": 4, "warmup": 1, "device": "cpu"},
    "sample": {"sampler": "euler", "num_inference_steps": 2, "height": 32, "width": 32},
    "validation": {"holdout": 4, "prompts": ["a red circle"]},
    "stages": {
        "labels": {
            "backbone": {"name": "dit", **SMALL},
            "text_encoder": {"name": "classes"},
            "data": {"source": {"classes": True}},
            "validation": {"prompts": ["red circle", ""]},
            "gate": {"validation_loss": 99.0},
        },
        "captions": {"convert": {"name": "adaln_single"}},
        "large": {
            "data": {
                "source": {"where": {"size": ["large"]}, "sizes": [[64, 64], [48, 80]]},
                "size": 64,
                "buckets": True,
            },
            "train": {"steps": 3, "learns": ["*blocks*"]},
        },
    },
}


NULL = 'objective={name: denoise, "null": learned}'


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    file = tmp_path / "mini.yaml"
    file.write_text(yaml.safe_dump(MINIATURE, sort_keys=False))
    return file


def weights(stage: Path) -> dict[str, Tensor]:
    return Model.load(find(stage)).state()


def refused(answer: tuple[int, str, str], *says: str) -> None:
    code, _, err = answer
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    for text in says:
        assert text in err


def test_stages_train_stop_resume_and_are_skipped(call, mini, tmp_path, monkeypatch) -> None:
    code, out, _ = call("train", mini, "--run", "whole", "--json")
    done = json.loads(out)
    assert code == 0 and [s["name"] for s in done["stages"]] == ["labels", "captions", "large"]
    assert [s["steps"] for s in done["stages"]] == [4, 4, 3]
    assert done["stages"][0]["gate"]["validation_loss"] > 0 and done["run"] == "whole"
    places = [tmp_path / "whole" / name for name in ("1-labels", "2-captions", "3-large")]
    assert find(tmp_path / "whole").parent.parent == places[2]
    captions, large = (weights(place) for place in places[1:])
    same = [k for k in large if torch.equal(large[k], captions[k])]
    assert "backbone.x_embedder.proj.weight" in same  # does not learn in the last stage
    assert not any("blocks." in k and "weight" in k for k in same)

    # Terminated in the middle of the second stage, and continued: the same weights bit for bit.
    progress = RunLog.progress

    def terminate(self: RunLog, share: float, step: int, *args: Any, **kwargs: Any) -> None:
        progress(self, share, step, *args, **kwargs)
        if step == 2 and self.file.parent.name == "2-captions":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "progress", terminate)
    code, out, _ = call("train", mini, "--run", "cut", "--json")
    assert code == 128 + signal.SIGTERM and json.loads(out)["interrupted"]
    assert not (tmp_path / "cut" / "3-large").exists()
    refused(call("train", mini, "--run", "cut"), "--resume")
    monkeypatch.setattr(RunLog, "progress", progress)
    before = (tmp_path / "cut/1-labels/stage.json").stat().st_mtime_ns
    code, out, _ = call("train", mini, "--run", "cut", "--resume", "--json")
    assert code == 0
    assert [s["skipped"] for s in json.loads(out)["stages"]] == [True, False, False]
    assert (tmp_path / "cut/1-labels/stage.json").stat().st_mtime_ns == before
    for name, expected in (("2-captions", captions), ("3-large", large)):
        found = weights(tmp_path / "cut" / name)
        assert all(torch.equal(found[k], expected[k]) for k in expected)

    # All done: nothing runs. One stage longer: that one goes on. Another recipe: refused.
    code, out, _ = call("train", mini, "--run", "cut", "--resume", "--json")
    assert [s["skipped"] for s in json.loads(out)["stages"]] == [True] * 3
    longer = ("--stage", "large", "--resume", "stages.large.train.steps=5", "--json")
    code, out, _ = call("train", mini, "--run", "cut", *longer)
    assert [(s["name"], s["steps"]) for s in json.loads(out)["stages"]] == [("large", 5)]
    refused(call("train", mini, "--run", "cut", "--resume", "train.lr=0.5"), "train.lr")
    again = ("--stage", "captions", "--resume", "stages.captions.train.steps=5", "--json")
    code, _, err = call("train", mini, "--run", "cut", *again)
    assert code == 0 and "Stage large started from stage captions as it was before" in err

    # The first stage paints by class name or number, and refuses other ones.
    model = ("--model", places[0], "--seed", 1, "--out", "p.png", "--json")
    assert call("paint", "red circle", *model)[0] == 0
    named = (tmp_path / "p.png").read_bytes()
    assert call("paint", 0, *model)[0] == 0
    from PIL import Image

    (tmp_path / "named.png").write_bytes(named)
    assert Image.open(tmp_path / "p.png").tobytes() == Image.open(tmp_path / "named.png").tobytes()
    refused(call("paint", 40, *model), "class 40 is out of range", "0 to 39")


def test_a_gate_holds_the_next_stage_back(call, mini, tmp_path, monkeypatch) -> None:
    gate = "stages.labels.gate={validation_loss: 0.01, score: 0.4, per_tag: 3}"
    asked: list[int] = []
    monkeypatch.setattr(
        stages_run, "score", lambda place, gate, quiet: asked.append(gate.per_tag) or 0.3
    )
    says = ("Stage captions does not start", "labels reached a validation loss of", "at most 0.01")
    refused(call("train", mini, "--run", "r", gate), *says)
    assert (tmp_path / "r/1-labels/stage.json").exists() and not (
        tmp_path / "r/2-captions"
    ).exists()
    again = ("train", mini, "--run", "r", "--resume", gate, "stages.labels.gate.validation_loss=99")
    refused(call(*again), "score of 0.3", "at least 0.4")
    refused(call(*again, "--stage", "captions"), "score of 0.3")
    assert asked == [3]  # measured once
    code, out, _ = call(*again, "stages.labels.gate.score=0.2", "--stage", "captions", "--json")
    assert code == 0 and json.loads(out)["stages"][0]["name"] == "captions"


def test_a_score_on_scenes_can_be_the_gate(call, mini) -> None:
    gate = "stages.captions.gate={score: 0.9, per_tag: 1}"
    refused(
        call("train", mini, "--run", "r", gate), "captions reached a score of 0", "at least 0.9"
    )


def test_stages_that_cannot_run_say_why(call, mini, tmp_path) -> None:
    misfit = "stages.captions.backbone.hidden_size=48"
    says = ("Stage captions has backbone.hidden_size 48", "stage labels with 32")
    refused(call("train", mini, "--run", "r", misfit), *says)
    assert not (tmp_path / "r").exists()  # told before the first stage trains
    refused(call("train", mini, "--run", "r", "--stage", "captions"), "labels", "is not done")
    refused(call("train", mini, "--run", "r", "--resume"), "no run in r to resume")
    assert not (tmp_path / "r").exists()
    refused(call("train", mini, "--run", "r", "--stage", "caption"), "did you mean 'captions'?")
    refused(call("train", mini, "stages.caption.seed=1"), "did you mean 'captions'?")
    refused(call("train", mini, "stages.captions.train.step=1"), "stage captions", "steps")
    refused(call("train", mini, "stages.captions=3"), "names no key of the stage")
    refused(call("train", mini, "stages.labels.gate.benchmark=x"), "stage labels", "'scenes'")
    held = ("validation.holdout=0", "stages.labels.gate.validation_loss=1")
    refused(call("train", mini, *held), "stage labels", "set validation.holdout")
    refused(call("train", mini, "stages.labels=null"), "set `init`, or the stage's `start`")
    refused(call("train", "demo", "--stage", "captions"), "has no stages")
    refused(call("encode", mini), "labels, captions, large")


def test_labels_out_of_range_are_refused(call, mini) -> None:
    only = ("--run", "r", "--stage", "labels")
    few = "stages.labels.text_encoder.classes=[red circle, blue star]"
    refused(call("train", mini, *only, few), "There is no class", "2 classes, 0 to 1")
    learned = "stages.labels.text_encoder={name: learned, width: 16, depth: 1, heads: 2}"
    small = ("stages.labels.backbone.num_classes=5", NULL)
    says = ("The picture scene-0-", "has the class label", "5 classes, 0 to 4")
    refused(call("train", mini, *only, "--run", "s", learned, *small), *says)


def test_a_backbone_learns_from_labels_beside_a_caption_encoder(call, mini) -> None:
    learned = "stages.labels.text_encoder={name: learned, width: 16, depth: 1, heads: 2}"
    size = ("stages.labels.backbone.num_classes=40", "validation.prompts=[]")
    only = ("train", mini, "--run", "r", "--stage", "labels", learned, *size)
    refused(call(*only), "objective.null to learned")
    code, out, err = call(*only, NULL, "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 4


def test_overrides_fall_on_all_stages_or_on_one(mini) -> None:
    def steps(*overrides: str) -> list[int]:
        return [s.recipe.train.steps for s in stages.load_stages(str(mini), list(overrides))]

    assert steps() == [4, 4, 3]
    assert steps("train.steps=9") == [9, 9, 9]
    assert steps("stages.captions.train.steps=7", "train.steps=9") == [9, 7, 9]
    assert steps("stages.large=null") == [4, 4]
    names = [s.recipe.backbone["name"] for s in stages.load_stages(str(mini))]
    assert names == ["dit", "pixart", "pixart"]
    assert stages.load_stages("demo")[0].name == ""


@pytest.mark.parametrize("name", ["pixart-alpha", "pixart-alpha-xl"])
def test_shipped_recipes_fit(name: str) -> None:
    found = stages.load_stages(name)
    assert [s.start for s in found] == ["scratch"] + ["previous"] * (len(found) - 1)
    stages_run.refuse_misfits(found)
    assert all(s.gate is not None for s in found[:-1])
