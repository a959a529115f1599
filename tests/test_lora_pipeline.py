"""LoRAs where users meet them: gesso.load, the pipeline and the command line."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import gesso
from gesso.loading import split_weight
from gesso.types import GessoError


def lora(file, seed, width=32):
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, rows in (("blocks.0.attn.qkv", 3 * width), ("blocks.1.cross_attn.proj", width)):
        tensors[f"{path}.lora_A.weight"] = torch.randn(4, width, generator=g)
        tensors[f"{path}.lora_B.weight"] = torch.randn(rows, 4, generator=g)
        tensors[f"{path}.alpha"] = torch.tensor(2.0)
    save_file(tensors, file)
    return file


@pytest.fixture
def files(tmp_path):
    return [lora(tmp_path / f"{name}.safetensors", i) for i, name in enumerate(("one", "two"))]


def paint(pipe):
    return pipe("a red circle", seed=3, output_type="pt").images


def test_load_fuse_unfuse_and_remove(model_folder, files):
    pipe = gesso.load(model_folder)
    plain = paint(pipe)
    assert pipe.load_lora(files[0], weight=0.5) == "one"
    assert pipe.load_lora(files[0]) == "one-2"
    assert pipe.load_lora(files[1], name="style") == "style"
    changed = paint(pipe)
    assert (changed - plain).abs().max() > 0.02
    assert [(a.name, a.weight) for a in pipe.loras] == [
        ("one", 0.5),
        ("one-2", 1.0),
        ("style", 1.0),
    ]
    pipe.unfuse_lora()
    assert torch.equal(paint(pipe), plain) and pipe.lora_metadata() == []
    pipe.fuse_lora()
    assert torch.equal(paint(pipe), changed)
    pipe.remove_lora("one-2")
    pipe.remove_lora("style")
    pipe.set_lora("one", 1.0)
    assert torch.equal(paint(pipe), paint(gesso.load(model_folder, lora=files[0])))
    pipe.remove_lora()
    assert torch.equal(paint(pipe), plain) and pipe.loras == []


def test_low_memory_paints_the_same(model_folder, files):
    both = [f"{files[0]}:0.5", (files[1], -1.0)]
    pipe = gesso.load(model_folder, lora=both)
    little = gesso.load(model_folder, lora=both, low_memory=True)
    assert torch.equal(paint(pipe), paint(little))
    for p in (pipe, little):
        p.set_lora("two", 2.0)
    assert torch.equal(paint(pipe), paint(little))
    little.unfuse_lora()
    assert torch.equal(paint(little), paint(gesso.load(model_folder)))


def test_a_saved_model_holds_what_is_fused(model_folder, files, tmp_path):
    pipe = gesso.load(model_folder, lora=[files[0]])
    (tmp_path / "merged").mkdir()
    pipe.model.save(tmp_path / "merged")
    assert torch.equal(paint(gesso.load(tmp_path / "merged")), paint(pipe))


def test_a_weight_stands_behind_the_last_colon():
    assert split_weight("a.safetensors:0.8") == ("a.safetensors", 0.8)
    assert split_weight("a.safetensors") == ("a.safetensors", 1.0)
    assert split_weight(r"C:\a.safetensors") == (r"C:\a.safetensors", 1.0)
    assert split_weight("a:b:-1") == ("a:b", -1.0)


def test_weights_are_numbers(model_folder, files):
    with pytest.raises(GessoError, match="is a number, not nan"):
        gesso.load(model_folder, lora=f"{files[0]}:nan")


def test_paint_with_loras_and_repaint_like(call, model_folder, files, tmp_path):
    base = ("paint", "a red circle", "--model", model_folder, "--seed", 3, "--json")
    loras = ("--lora", f"{files[0]}:0.5", "--lora", files[1])
    code, _, err = call(*base, *loras, "--out", "with.png")
    assert code == 0, err
    call(*base, "--out", "without.png")
    pixels = {n: np.asarray(Image.open(n)).astype(int) for n in ("with.png", "without.png")}
    assert np.abs(pixels["with.png"] - pixels["without.png"]).max() > 4
    carried = json.loads(Image.open("with.png").text["gesso"])["lora"]
    assert [(a["path"], a["weight"]) for a in carried] == [(str(files[0]), 0.5), (str(files[1]), 1)]
    code, _, err = call("paint", "--like", "with.png", "--out", "again.png")
    assert code == 0, err
    assert np.abs(np.asarray(Image.open("again.png")) - pixels["with.png"]).max() <= 1
    lora(files[1], seed=9)
    code, _, err = call("paint", "--like", "with.png")
    assert code == 2 and "have changed since" in err and "Traceback" not in err
    files[1].unlink()
    code, _, err = call("paint", "--like", "with.png")
    assert code == 2 and f"{files[1]} is no file" in err
    code, _, err = call("paint", "--like", "with.png", "--lora", files[0], "--out", "other.png")
    assert code == 0, err


def test_convert_a_lora(call, files):
    code, out, err = call("convert", files[0], "kohya.safetensors", "--to", "kohya")
    assert code == 0, err
    assert "2 layers, largest difference 0.0e+00" in out
    assert "lora_unet_blocks_0_attn_qkv.lora_down.weight" in load_file("kohya.safetensors")
    code, out, err = call("convert", "kohya.safetensors", "o", "--to", "official", "--json")
    assert code == 0, err
    assert json.loads(out)["largest_difference"] == 0
    code, _, err = call("convert", files[0], "x.safetensors", "--to", "kohia")
    assert code == 2 and "There is no LoRA format 'kohia'" in err


def broken(file, up=None, **more):
    """A LoRA of one layer with some tensors replaced."""
    up = torch.zeros(96, 4) if up is None else up
    tensors = {"lora_down.weight": torch.zeros(4, 32), "lora_up.weight": up} | more
    save_file({f"blocks.0.attn.qkv.{name}": value for name, value in tensors.items()}, file)
    return file


def test_a_wrong_lora_is_one_sentence(call, model_folder, tmp_path):
    wide = lora(tmp_path / "wide.safetensors", 0, width=64)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(wide.read_bytes()[:-10])
    for file, says in (
        (wide, "blocks.0.attn.qkv is 192x64 where the model has 96x32"),
        (cut, "truncated"),
        (tmp_path / "none.safetensors", "is no file"),
        (broken(tmp_path / "ranks.safetensors", up=torch.zeros(96, 3)), "do not fit each other"),
        (broken(tmp_path / "flat.safetensors", up=torch.zeros(96)), "tensors of wrong shapes"),
        (broken(tmp_path / "alphas.safetensors", alpha=torch.ones(3)), "tensors of wrong shapes"),
        (broken(tmp_path / "nan.safetensors", alpha=torch.tensor(math.nan)), "holds NaN"),
    ):
        code, out, err = call("paint", "x", "--model", model_folder, "--lora", file)
        assert code == 2 and says in err and out == ""
        assert len(err.strip().splitlines()) == 1
