"""Class labels and chosen subsets: scenes and folders of classes, into the cache and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gesso.backbones.pixart import Config, PixArt
from gesso.data.scenes import COLORS, class_names, class_of, sample_scene
from gesso.data.source import open_source, read
from gesso.types import Bad, Cond, GessoError, Sample


def test_a_scenes_class_is_its_first_objects_colour_and_shape() -> None:
    names = class_names(1)
    assert len(names) == len(set(names)) == 40 and len(class_names(2)) == 100
    for index in range(200):
        scene = sample_scene(index)
        first = scene.objects[0]
        assert names[class_of(scene)] == f"{first.color} {first.shape}"


def test_scenes_give_labels_and_class_names_as_captions() -> None:
    plain = open_source({"name": "scenes", "count": 5})
    classes = open_source({"name": "scenes", "count": 5, "classes": True})
    for one, other in zip(plain, classes, strict=True):
        assert isinstance(one, Sample) and isinstance(other, Sample)
        assert one.meta["label"] == other.meta["label"]
        [caption] = other.captions
        assert caption == (class_names(1)[other.meta["label"]], "class")
        assert len(one.captions) > 1 and np.array_equal(one.image, other.image)
    assert plain.fingerprint() != classes.fingerprint()


def test_scenes_are_chosen_by_what_they_hold() -> None:
    where = {"size": ["large"], "color": ["red", "blue"], "kind": ["colors", "counting"]}
    chosen = list(open_source({"name": "scenes", "count": 12, "where": where}))
    assert len(chosen) == 12 and len({s.key for s in chosen}) == 12
    for sample in chosen:
        scene = sample.meta["scene"]
        assert scene["kind"] in where["kind"]
        assert all(o["size"] == "large" and o["color"] in where["color"] for o in scene["objects"])
    again = open_source({"name": "scenes", "count": 12, "where": where})
    assert np.array_equal(again[7].image, chosen[7].image)  # in any order
    # Nothing is left out: those of the first scenes that fit come in turn.
    fits = [
        scene.to_dict()
        for scene in map(sample_scene, range(2000))
        if scene.kind in where["kind"]
        and all(o.size == "large" and o.color in ("red", "blue") for o in scene.objects)
    ]
    assert [s.meta["scene"] for s in chosen] == fits[:12]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"colour": ["red"]}, "did you mean 'color'"),
        ({"color": ["mauve"]}, "Hardly any scene of level 1"),
    ],
)
def test_choices_that_leave_nothing_are_refused(where: dict[str, list[str]], message: str) -> None:
    with pytest.raises(GessoError, match=message):
        list(open_source({"name": "scenes", "count": 2, "where": where}))


def test_scenes_in_several_sizes() -> None:
    source = open_source({"name": "scenes", "count": 4, "sizes": [[32, 32], [24, 40]]})
    assert [s.image.shape[:2] for s in source] == [(32, 32), (24, 40)] * 2


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for name in ("n02/b.png", "n01/a.JPG", "n02/deep/c.png", "loose.png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(file)
    (tmp_path / "n02" / "b.txt").write_text("not a caption here")
    source = open_source({"name": "folder", "path": str(tmp_path), "classes": True})
    found = list(read(source))
    bad = [item for item in found if isinstance(item, Bad)]
    assert [item.key for item in bad] == ["loose.png"] and "no folder" in bad[0].reason
    samples = [item for item in found if isinstance(item, Sample)]
    assert [(s.key, s.captions[0].text, s.meta["label"]) for s in samples] == [
        ("n01/a.JPG", "n01", 0),
        ("n02/b.png", "n02", 1),
        ("n02/deep/c.png", "n02", 1),
    ]
    assert source.class_names() == ["n01", "n02"]
    with pytest.raises(GessoError, match="exclude each other"):
        open_source({"name": "folder", "path": str(tmp_path), "classes": True, "where": {"a": "b"}})


def test_training_takes_the_classes_from_the_folder(call, tmp_path: Path) -> None:
    """From `folder/class/*.png` to a picture of a class, through the command line."""
    for color in list(COLORS)[:3]:
        (tmp_path / "set" / color).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), color).save(tmp_path / "set" / color / f"{i}.png")
    (tmp_path / "classes.yaml").write_text(
        "name: classes\n"
        "image_encoder: {name: tiny}\n"
        "text_encoder: {name: classes}\n"
        "backbone: {name: dit, depth: 1, hidden_size: 32, num_heads: 2}\n"
        "data: {source: {name: folder, path: set, classes: true}, size: 32}\n"
        "train: {steps: 2, batch_size: 4, device: cpu}\n"
        "sample: {num_inference_steps: 2, height: 32, width: 32}\n"
        "validation: {holdout: 2}\n"
    )
    assert call("train", "classes.yaml", "--run", "r")[0] == 0
    assert call("paint", "orange", "--model", "r", "--out", "p.png")[0] == 0
    assert Image.open(tmp_path / "p.png").size == (32, 32)
    code, _, err = call("paint", "green", "--model", "r")
    assert code == 2 and "3 classes, 0 to 2" in err
    code, _, err = call("train", "classes.yaml", "--run", "s", "data.source.classes=false")
    assert code == 2 and "data.source.classes" in err


# adaLN of PixArt's blocks.


def test_an_adaln_for_every_block_has_the_parameters_of_dits() -> None:
    """The modulation that adaLN-single does away with: 28 layers of D x 6D, where one was left."""
    options = {"depth": 28, "hidden_size": 1152, "num_heads": 16, "text_dim": 4096}
    with torch.device("meta"):
        single, block = (PixArt(Config(**options, modulation=m)) for m in ("single", "block"))
    counts = [sum(p.numel() for p in m.parameters()) for m in (single, block)]
    layer = 1152 * 6912 + 6912
    assert counts[0] == 610_856_096
    assert counts[1] - counts[0] == 27 * layer - 28 * 6 * 1152 == 214_983_936


def test_an_adaln_for_every_block_modulates_by_its_own_layer() -> None:
    torch.manual_seed(0)
    options = {"depth": 2, "hidden_size": 32, "num_heads": 2, "text_dim": 8}
    single, block = (PixArt(Config(**options, modulation=m)).eval() for m in ("single", "block"))
    with torch.no_grad():
        for p in single.parameters():
            p.normal_(std=0.2)
        own = {k: v for k, v in single.state_dict().items() if k in block.state_dict()}
        block.load_state_dict(block.state_dict() | own)
        for mine, its in zip(block.blocks, single.blocks, strict=True):
            mine.adaLN_modulation[1].weight.copy_(single.t_block[1].weight)
            mine.adaLN_modulation[1].bias.copy_(single.t_block[1].bias)
            mine.adaLN_modulation[1].bias += its.scale_shift_table.flatten()
        x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 900.0]), torch.randn(2, 5, 8)
        outs = [m(x, t, Cond(tokens=cond)).value for m in (single, block)]
        assert torch.allclose(*outs, atol=1e-4 * float(outs[0].abs().max()))
        ready = block.prepare(Cond(tokens=cond), torch.tensor([900.0]))
        both = torch.full((2,), 900.0)
        direct = block(x, both, Cond(tokens=cond)).value
        assert torch.allclose(block(x, both, ready).value, direct, atol=1e-4)
