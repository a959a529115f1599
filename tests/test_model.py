"""Checkpoint folders: strict, self-contained, and honest about what is wrong with them."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from gesso.loading import find, load
from gesso.model import Model, fingerprint, read_description
from gesso.types import GessoError


def test_a_saved_model_comes_back_bit_for_bit(tiny_model, model_folder):
    again = Model.load(model_folder)
    before, after = tiny_model.state(), again.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert read_description(model_folder).fingerprint == fingerprint(before)


def test_loading_casts_the_backbone_and_leaves_the_file_alone(tiny_model, model_folder):
    half = Model.load(model_folder, dtype=torch.bfloat16)
    before = tiny_model.state()
    for key, value in half.state().items():
        dtype = torch.bfloat16 if key.startswith("backbone.") else torch.float32
        assert torch.equal(value, before[key].to(dtype))
        assert value.dtype == dtype
    whole = Model.load(model_folder)
    assert all(p.requires_grad and p.device.type == "cpu" for p in whole.backbone.parameters())
    with torch.no_grad():
        for p in whole.backbone.parameters():  # mapped from the file
            p.add_(1)
    again = Model.load(model_folder).state()
    assert all(torch.equal(again[key], before[key]) for key in before)


def test_the_description_has_every_default_written_out(model_folder):
    written = json.loads((model_folder / "gesso.json").read_text())
    assert written["backbone"]["mlp_ratio"] == 4.0
    assert written["backbone"]["text_dim"] == 32  # follows from the text encoder
    assert written["sample"]["num_inference_steps"] == 3
    assert written["encoder_fingerprints"].keys() == {"image_encoder"}


def test_the_same_seed_builds_the_same_model(tiny_recipe):
    one, two = Model.from_recipe(tiny_recipe), Model.from_recipe(tiny_recipe)
    tiny_recipe.seed = 1
    other = Model.from_recipe(tiny_recipe)
    assert fingerprint(one.state()) == fingerprint(two.state()) != fingerprint(other.state())


def change(folder, f):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    f(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda t: t.pop("backbone.blocks.0.attn.qkv.weight"), "lacks.*attn.qkv.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown tensors extra"),
        (
            lambda t: t.update({"backbone.blocks.1.mlp.fc1.bias": torch.zeros(7)}),
            r"fc1.bias has shape \(7,\) where the model has \(128,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(model_folder, f, says):
    change(model_folder, f)
    with pytest.raises(GessoError, match=says):
        load(model_folder)


def test_a_truncated_file_is_one_sentence(model_folder):
    file = model_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(GessoError, match="truncated"):
        load(model_folder)


def test_a_pickle_is_never_run(model_folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("owned").write_text, ("x",))

    (model_folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(GessoError, match="not a safetensors file"):
        load(model_folder)
    assert not (tmp_path / "owned").exists()


def test_another_autoencoder_is_refused(model_folder):
    file = model_folder / "gesso.json"
    written = json.loads(file.read_text())
    written["encoder_fingerprints"]["image_encoder"] = "0123"
    file.write_text(json.dumps(written))
    with pytest.raises(GessoError, match="another image_encoder"):
        load(model_folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not readable JSON"),
        ('{"format": 99}', "newer gesso"),
        ('{"format": 1, "nam": 2}', "did you mean 'name'"),
        ("[]", "not a description"),
    ],
)
def test_a_broken_description_is_one_sentence(model_folder, text, says):
    (model_folder / "gesso.json").write_text(text)
    with pytest.raises(GessoError, match=says):
        load(model_folder)


def test_names_and_folders_that_are_no_models(tmp_path):
    with pytest.raises(GessoError, match="no model folder or shipped model"):
        find("nothing-here")
    with pytest.raises(GessoError, match=r"no gesso.json"):
        find(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(GessoError, match="no checkpoint yet"):
        find(tmp_path)


def test_a_run_means_its_newest_checkpoint(model_folder, tmp_path):
    run = tmp_path / "run"
    for step in (5, 20):
        (run / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
        for file in model_folder.iterdir():
            target = run / "checkpoints" / f"step-{step:06d}" / file.name
            target.write_bytes(file.read_bytes())
    (run / "recipe.yaml").write_text("")
    assert find(run).name == "step-000020"
