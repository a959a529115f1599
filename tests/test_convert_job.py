"""`gesso convert`: round trips, the proof, atomic writing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from published_fakes import pipeline, transformer
from safetensors.torch import load_file, save_file
from torch import Tensor

import gesso
from gesso import cli
from gesso.backbones.pixart import Config, PixArt
from gesso.convert import pixart
from gesso.convert.job import convert
from gesso.model import Model
from gesso.types import GessoError

ENDINGS = {"original": ".pth", "comfyui": ".safetensors", "diffusers": "", "gesso": ""}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with micro-conditions."""
    folder = tmp_path_factory.mktemp("convert") / "alpha"
    pipeline(folder, sample_size=16, use_additional_conditions=True, interpolation_scale=2)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("chain", [["original"], ["comfyui"], ["gesso"], ["gesso", "comfyui"]])
def test_round_trips_are_bit_exact(source, tmp_path, chain, dtype) -> None:
    from diffusers import PixArtTransformer2DModel

    start = tmp_path / "start"
    PixArtTransformer2DModel.from_pretrained(
        source / "transformer", torch_dtype=dtype
    ).save_pretrained(start)
    here, given = start, {"vae": source, "text_encoder": source, "variant": "xl-1024"}
    for i, to in enumerate([*chain, "diffusers"]):
        there = tmp_path / f"{i}-{to}{ENDINGS[to]}"
        done = convert(here, there, to, **given)
        assert done["to"] == to and done["out"] == str(there)
        assert done["largest_difference"] <= 1e-5 < done["largest_output"]
        here = there
    assert equal(weights(here), weights(start))
    again = PixArtTransformer2DModel.from_pretrained(here)  # as any user of diffusers does
    expected = PixArtTransformer2DModel.from_pretrained(start)
    assert equal(dict(again.named_buffers()), dict(expected.named_buffers()))  # positions
    names = ("sample_size", "num_attention_heads", "interpolation_scale", "out_channels")
    assert [again.config[n] for n in names] == [expected.config[n] for n in names]


def test_original_to_original_keeps_the_null_caption(source, tmp_path) -> None:
    early = weights(source / "transformer") | {
        "caption_projection.y_embedding": torch.randn(120, 16)
    }
    (tmp_path / "early").mkdir()
    config = (source / "transformer" / "config.json").read_text()
    (tmp_path / "early" / "config.json").write_text(config)
    save_file(early, tmp_path / "early" / "diffusion_pytorch_model.safetensors")
    convert(tmp_path / "early", tmp_path / "a.pth", "original")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "original")
    convert(tmp_path / "b.safetensors", tmp_path / "c.pth", "original")
    first, last = (
        torch.load(tmp_path / f, weights_only=True)["state_dict"] for f in ("a.pth", "c.pth")
    )
    assert "y_embedder.y_embedding" in first and first["pos_embed"].shape == (1, 64, 24)
    assert equal(first, last)


def test_a_trained_gesso_model_becomes_a_diffusers_transformer(tiny_model: Model, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    tiny_model.save(tmp_path / "model")
    done = convert(tmp_path / "model", tmp_path / "d", "diffusers")
    assert done["from"] == "gesso" and 0 < done["largest_difference"] < 1e-5
    with pytest.raises(GessoError, match="is a gesso model already"):
        convert(tmp_path / "model", tmp_path / "again", "gesso")


def swapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = pixart.to_diffusers(state)
    key, value = (f"transformer_blocks.0.attn2.to_{n}.weight" for n in "kv")
    tensors[key], tensors[value] = tensors[value], tensors[key]
    return tensors


def scaled(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    return pixart.to_original({**state, "t_block.1.bias": 1.5 * state["t_block.1.bias"]}, config)


def test_a_conversion_that_differs_is_refused(source, tmp_path, monkeypatch) -> None:
    from gesso.convert.layouts import pixart as layout

    out = tmp_path / "out.safetensors"
    out.write_text("kept")
    monkeypatch.setattr(layout, "pixart", Wrong(to_original=scaled, to_diffusers=swapped))
    with pytest.raises(GessoError, match=r"changes t_block\.1\.bias .*nothing was written"):
        convert(source, out, "original")
    with pytest.raises(GessoError, match=r"changes blocks\.0\.cross_attn\.kv_linear\.weight"):
        convert(source, tmp_path / "folder", "diffusers")
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]
    assert out.read_text() == "kept"


class Wrong:
    """The module `pixart` with some functions replaced."""

    def __init__(self, **functions: Any) -> None:
        self.__dict__.update(vars(pixart) | functions)


def test_a_map_that_is_wrong_both_ways_is_caught_by_diffusers_class(
    source, tmp_path, monkeypatch
) -> None:
    table = dict(pixart.BLOCK_MODULES)
    table["attn.qkv"] = ("attn1.to_k", "attn1.to_q", "attn1.to_v")
    monkeypatch.setattr(pixart, "BLOCK_MODULES", table)
    monkeypatch.setattr(pixart, "_BLOCK_INVERSE", pixart._inverse(table))
    with pytest.raises(GessoError, match="computes something else"):
        convert(source, tmp_path / "a.pth", "original")
    assert not list(tmp_path.iterdir())


def test_kv_compressed_sigma_goes_everywhere_but_to_diffusers(tmp_path) -> None:
    options = {"depth": 3, "hidden_size": 72, "num_heads": 1, "text_dim": 16, "null_tokens": 300}
    config = Config(**options, base_size=4, kv_compress=2, kv_blocks=[1, 2])
    network = PixArt(config)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.15)
    tensors = pixart.to_original(network.state_dict(), config)
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")  # as the authors do, without options
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "comfyui")
    done = convert(tmp_path / "b.safetensors", tmp_path / "c.pth", "original")
    assert done["from"] == "comfyui" and done["largest_output"] > 0.1
    again = torch.load(tmp_path / "c.pth", weights_only=True)["state_dict"]
    assert "blocks.2.attn.sr.weight" in again and equal(again, tensors)
    with pytest.raises(GessoError, match=r"no place for blocks\.1\.attn\.norm\.bias"):
        convert(tmp_path / "c.pth", tmp_path / "d", "diffusers")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "b.safetensors", "c.pth"]


def test_the_authors_code_is_told_about_a_missing_null_caption(source, tmp_path) -> None:
    done = convert(source, tmp_path / "a.pth", "original")
    assert any("has no null caption" in note for note in done["notes"])
    state = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    assert "pos_embed" in state and "y_embedder.y_embedding" not in state


def test_an_untrained_model_is_compared_by_its_tensors(tmp_path) -> None:
    model = transformer()
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    model.save_pretrained(tmp_path / "new")
    done = convert(tmp_path / "new", tmp_path / "a.pth", "original")
    assert done["largest_output"] == 0
    assert any("outputs are zero" in note for note in done["notes"])


@pytest.mark.parametrize(
    ("out", "to", "says"),
    [
        ("a.txt", "original", r"cannot hold the format original: name a \.safetensors file or a"),
        ("a.pth", "comfyui", r"name a \.safetensors file"),
        ("a.pth", "gesso", "name a folder"),
        ("full", "diffusers", "is a folder with something in it"),
        ("a.pth", "onnx", "no format 'onnx': use one of original, diffusers, comfyui, gesso"),
    ],
)
def test_places_and_formats_that_do_not_fit(source, tmp_path, out, to, says) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(GessoError, match=says):
        convert(source, tmp_path / out, to)


def test_a_source_is_not_replaced_by_its_result(source, tmp_path) -> None:
    file = tmp_path / "a.pth"
    convert(source, file, "original")
    before = file.read_bytes()
    with pytest.raises(GessoError, match="is the source itself"):
        convert(file, file, "original")
    assert file.read_bytes() == before


def test_a_converted_model_finds_its_encoders_from_anywhere(source, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(source)
    convert(".", tmp_path / "model", "gesso")
    monkeypatch.chdir(tmp_path)
    assert gesso.load("model", device="cpu").model.text_encoder is not None


def test_the_command_line(source, tmp_path, monkeypatch, capsys) -> None:
    def run(*args: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gesso", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    args = ("convert", source, tmp_path / "a.pth", "--to", "original")
    code, out, _ = run(*args)
    assert code == 0 and "largest difference" in out and f"In {tmp_path / 'a.pth'}" in out
    code, out, _ = run(*args, "--json")
    done = json.loads(out)
    assert code == 0 and done["from"] == "diffusers" and done["tensors"] == 54
    code, out, err = run("convert", tmp_path / "a.pth", tmp_path / "model", "--to", "gesso")
    assert (code, out) == (2, "") and "--vae" in err and len(err.strip().splitlines()) == 1
    given = ("--vae", source, "--text-encoder", source)
    code, _, err = run("convert", tmp_path / "a.pth", tmp_path / "model", "--to", "gesso", *given)
    assert code == 0, err
    code, out, err = run(
        *("paint", "a red circle", "--model", tmp_path / "model", "--seed", 1, "--steps", 1),
        *("--size", "64", "--out", tmp_path / "p.png"),
    )
    assert code == 0 and (tmp_path / "p.png").is_file(), err
