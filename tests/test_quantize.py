"""Smaller weights, what they cost, and decoding in tiles; on tiny published pipelines."""

import json
import sys

import numpy as np
import pytest
import torch
from published_fakes import pipeline
from torch import nn

import gesso
from gesso import cli
from gesso.nn.quantize import block_linears, quantize_blocks, stored_bytes
from gesso.quality import measure_quantization
from gesso.types import GessoError

CALL = {"seed": 1, "height": 64, "width": 64, "num_inference_steps": 3, "output_type": "np"}
PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny PixArt-alpha with T5, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("quantize") / "alpha"
    pipeline(folder, "alpha")
    return folder


def open_(folder, **options):
    pipe = gesso.load(folder, device="cpu", **({"low_memory": False} | options))
    pipe.model.sample.use_resolution_binning = False
    return pipe


@pytest.fixture
def needs_torchao():
    pytest.importorskip("torchao", reason="int8 weights need torchao: pip install 'gesso[quant]'")


def test_int8_weights_are_rounded_to_one_scale_an_output(needs_torchao):
    layer = nn.Sequential(nn.ModuleList([nn.Linear(32, 24)]))
    weight = layer[0][0].weight.detach().clone()
    bias = layer[0][0].bias.detach().clone()
    assert quantize_blocks(layer, "int8") == ["0.0"]
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(32)
    found = (layer[0][0](eye) - bias).T  # the weight that the layer computes with
    assert ((found - weight).abs() <= scale * 0.51).all()
    assert len(torch.unique((found / scale).round(decimals=2))) <= 256
    assert torch.allclose(layer[0][0](x), x @ found.T + bias, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_only_the_blocks_linear_layers_change(folder, kind, needs_torchao):
    backbone = open_(folder).model.backbone
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    names = quantize_blocks(backbone, kind)
    layers = {"attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear"}
    layers |= {"cross_attn.proj", "mlp.fc1", "mlp.fc2"}
    assert sorted(names) == sorted(f"blocks.{i}.{name}" for i in (0, 1) for name in layers)
    for key, value in backbone.state_dict().items():
        name = key.rpartition(".")[0]
        if name in names and (kind == "bfloat16" or key.endswith("weight")):
            assert type(value) is not torch.Tensor or value.dtype == torch.bfloat16
        else:
            assert torch.equal(value, before[key]) and value.dtype == torch.float32
    float_bytes = sum(4 * v.numel() for v in before.values())
    weights = sum(before[f"{n}.weight"].numel() for n in names)
    outputs = sum(before[f"{n}.weight"].shape[0] for n in names)
    if kind == "int8":  # besides, every output has a scale, and perhaps a zero point
        more = stored_bytes(backbone) - (float_bytes - 3 * weights)
        assert 4 * outputs <= more <= 8 * outputs
    else:
        assert stored_bytes(backbone) == float_bytes - 2 * (weights + outputs)


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_quantised_pictures_stay_close(folder, kind, low_memory, needs_torchao):
    exact = open_(folder)(PROMPT, **CALL).images
    pipe = open_(folder, quantize=kind, low_memory=low_memory)
    rough = pipe(PROMPT, **CALL).images
    assert 0 < np.abs(exact - rough).mean() < 0.02
    quantized = pipe.model.backbone.blocks[0].mlp.fc1.weight
    assert quantized.dtype == torch.bfloat16 or type(quantized.data).__name__ == "Int8Tensor"
    if kind == "int8" and not low_memory:  # T5 as well
        layer = block_linears(pipe.model.text_encoder)[
            "encoder.encoder.block.0.layer.0.SelfAttention.q"
        ]
        assert type(layer.weight.data).__name__ == "Int8Tensor"


def test_the_report_measures_what_it_says(folder, needs_torchao):
    report = measure_quantization(
        "int8", PROMPT, model=str(folder), n=2, steps=2, size=(64, 64), device="cpu", quiet=True
    )
    assert report["pictures"] == 2 and 15 < report["psnr_worst"] <= report["psnr"] < 90
    parts = {name.partition(".")[0] for name in report["layers"]}
    assert parts == {"backbone", "text_encoder"} == set(report["bytes_before"])
    assert all(0 < e < 0.05 for e in report["layers"].values())
    assert report["error_worst"] == max(report["layers"].values())
    mean, worst = report["kinds"]["backbone.blocks.*.mlp.fc1"]
    pair = [report["layers"][f"backbone.blocks.{i}.mlp.fc1"] for i in (0, 1)]
    assert mean == pytest.approx(sum(pair) / 2) and worst == max(pair)
    assert all(report["bytes_after"][p] < report["bytes_before"][p] for p in parts)
    # The PSNR is that of the pictures that the two models paint.
    call = CALL | {"seed": 0, "num_inference_steps": 2, "num_images_per_prompt": 2}
    exact = gesso.load(folder, device="cpu", low_memory=False)(PROMPT, **call).images
    rough = gesso.load(folder, device="cpu", low_memory=False, quantize="int8")(
        PROMPT, **call
    ).images
    psnr = [-10 * np.log10(np.square(a - b).mean()) for a, b in zip(exact, rough, strict=True)]
    assert report["psnr"] == pytest.approx(np.mean(psnr), abs=0.1)


def test_unknown_or_impossible_quantisation_is_one_sentence(folder, monkeypatch):
    with pytest.raises(GessoError, match="no quantisation 'int3': use int8 or bfloat16"):
        open_(folder, quantize="int3")
    with pytest.raises(GessoError, match="no blocks"):
        quantize_blocks(nn.Linear(4, 4), "bfloat16")
    from gesso.nn import quantize

    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GessoError, match="need torchao: pip install"):
        open_(folder, quantize="int8")


def test_the_quantize_verb_and_repainting(folder, monkeypatch, capsys, tmp_path, needs_torchao):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["gesso", *map(str, args)])
        cli.main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    args = ("--model", folder, "--steps", 1, "--size", 64, "--device", "cpu")
    with pytest.raises(SystemExit):
        call("quantize", PROMPT, *args, "-n", 1, "--to", "bfloat16")
    assert "PSNR" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call("paint", PROMPT, *args, "--seed", 1, "--quantize", "int8", "--out", "a.png")
    with pytest.raises(SystemExit):
        call("paint", "--like", "a.png", "--out", "b.png", "--device", "cpu")
    from PIL import Image

    a, b = (Image.open(f) for f in ("a.png", "b.png"))
    assert json.loads(a.text["gesso"])["quantize"] == "int8"
    assert np.array_equal(np.asarray(a), np.asarray(b))


# Tiles.


def test_tiled_decoding_is_close_and_really_tiled(folder):
    plain, tiled = open_(folder), open_(folder, tiling=True)
    vae = tiled.model.image_encoder.vae
    vae.tile_sample_min_size, vae.tile_latent_min_size = 128, 16
    shapes = []
    vae.decoder.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[2:])))
    call = CALL | {"height": 256, "width": 320, "num_inference_steps": 1}
    whole, pieces = (pipe(PROMPT, **call).images for pipe in (plain, tiled))
    assert len(shapes) > 1 and max(max(s) for s in shapes) <= 16
    assert whole.shape == pieces.shape == (1, 256, 320, 3)
    # Group norms see other neighbours in a tile, so equal they are not.
    assert np.abs(whole - pieces).mean() < 0.1 * whole.std()
    assert np.abs(whole - pieces).max() < 0.2


def test_low_memory_decodes_one_picture_at_a_time(folder):
    pipe = open_(folder, low_memory=True)
    sizes = []
    pipe.model.image_encoder.vae.decoder.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    images = pipe([PROMPT] * 3, **CALL).images
    assert sizes == [1, 1, 1]
    assert np.abs(images - open_(folder)([PROMPT] * 3, **CALL).images).max() < 1 / 255


def test_an_encoder_that_cannot_tile_says_so(model_folder):
    with pytest.raises(GessoError, match="too small to tile"):
        gesso.load(model_folder, device="cpu", tiling=True)
