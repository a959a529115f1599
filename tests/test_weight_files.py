"""Files that are not what they should be: each is refused in one sentence, and none is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from published_fakes import pipeline
from safetensors.torch import save_file

import gesso
from gesso import cli
from gesso.convert import checkpoint
from gesso.convert.families import name_family
from gesso.encoders.text import t5
from gesso.types import GessoError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "alpha"
    pipeline(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "alpha")
    return tmp_path / "alpha"


class Malicious:
    """Makes a folder when it is unpickled by a reader that runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["x.pth", "x.bin", "x.ckpt", "x.safetensors"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, name: str, zipped: bool) -> None:
    trace, file = tmp_path / "trace", tmp_path / name
    state = {"state_dict": {"t_block.1.weight": torch.ones(2)}, "optimizer": Malicious(trace)}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(GessoError) as said:
        gesso.load(file)
    assert not trace.exists()
    if name != "x.safetensors":
        assert "gesso runs none" in str(said.value) and "mkdir" in str(said.value)
    with file.open("rb") as opened:
        torch.load(opened, weights_only=False)
    assert trace.exists()  # so the trap was armed


def test_a_bare_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "x.pth"
    file.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(GessoError):
        gesso.load(file)
    assert not trace.exists()


def test_a_malicious_autoencoder_does_not_run(whole: Path, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trace, file = tmp_path / "trace", folder / "vae" / "diffusion_pytorch_model.safetensors"
    state, weights = load_file(file), file.with_suffix(".bin")
    file.unlink()
    torch.save(state, weights)
    assert gesso.load(folder, device="cpu")("a", seed=1, num_inference_steps=1).images
    torch.save(state | {"x": Malicious(trace)}, weights)
    with pytest.raises(GessoError, match="KL autoencoder"):
        gesso.load(folder)
    assert not trace.exists()


def test_a_malicious_text_encoder_does_not_run(whole: Path, folder: Path, tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    trace = tmp_path / "trace"
    state = T5EncoderModel.from_pretrained(whole / "text_encoder").state_dict()
    (folder / "text_encoder" / "model.safetensors").unlink()
    weights = folder / "text_encoder" / "pytorch_model.bin"
    torch.save(state, weights)
    options = {"path": str(folder), "tokenizer": str(folder / "tokenizer")}
    plain = t5.build(t5.Config(**options)).state_dict()  # a harmless pickle is read
    assert torch.equal(plain["encoder.shared.weight"], state["shared.weight"])
    torch.save(state | {"x": Malicious(trace)}, weights)
    with pytest.raises(GessoError, match="text encoder"):
        gesso.load(folder)
    assert not trace.exists()


def test_code_that_a_tokenizer_brings_along_does_not_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, words = tmp_path / "trace", tmp_path / "words"
    words.mkdir()
    (words / "theirs.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Theirs: ...\n")
    named = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    (words / "tokenizer_config.json").write_text(json.dumps(named))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever asks is told to run it
    with pytest.raises(GessoError, match="tokenizer"):
        t5.build(t5.Config(path=str(whole), tokenizer=str(words)))
    assert not trace.exists()


# Damaged files


def damage_truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def damage_empty(file: Path) -> None:
    file.write_bytes(b"")


def damage_page(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html>404</html>")


def damage_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2444\n")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_truncate, "truncated"),
        (damage_header, "truncated or"),
        (damage_empty, "truncated or"),
        (damage_page, "is a web page"),
        (damage_pointer, "Git LFS pointer"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: Any, says: str) -> None:
    file, tensors = tmp_path / name, {"t_block.1.weight": torch.ones(300, 300)}
    save_file(tensors, file) if file.suffix == ".safetensors" else torch.save(tensors, file)
    damage(file)
    with pytest.raises(GessoError, match=says):
        gesso.load(file)


@pytest.mark.parametrize(
    ("remove", "says"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "half-downloaded"),
        ("transformer/config.json", "half-downloaded"),
        ("vae/diffusion_pytorch_model.safetensors", r"no weights of an autoencoder.*\(--vae\)"),
        ("vae", r"comes without an autoencoder.*vae=\.\.\. \(--vae\)"),
        ("text_encoder/model.safetensors", r"no weights of a text encoder.*\(--text-encoder\)"),
        ("text_encoder", r"comes without a text encoder.*text_encoder=\.\.\. \(--text-encoder\)"),
        ("tokenizer", r"no tokenizer beside .*\(--text-encoder\)"),
    ],
)
def test_incomplete_folders_say_what_is_missing(folder: Path, remove: str, says: str) -> None:
    gone = folder / remove
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(GessoError, match=says):
        gesso.load(folder)


def test_what_is_missing_can_be_given(folder: Path, whole: Path) -> None:
    shutil.rmtree(folder / "vae")
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    pipe = gesso.load(folder, vae=whole / "vae", text_encoder=whole / "text_encoder", device="cpu")
    same = gesso.load(whole, device="cpu")
    one, two = (p("a red circle", seed=1, output_type="pt").images for p in (pipe, same))
    assert torch.equal(one, two)


def test_encoders_of_other_widths_are_refused(folder: Path) -> None:
    for file, change, says in (
        ("text_encoder", {"d_model": 32}, r"is 32 wide, but .* reads 16: .*\(--text-encoder\)"),
        ("vae", {"latent_channels": 16}, r"has 16 latent channels, but .* takes 4: .*\(--vae\)"),
    ):
        config = folder / file / "config.json"
        kept = config.read_text()
        config.write_text(json.dumps(json.loads(kept) | change))
        with pytest.raises(GessoError, match=says):
            gesso.load(folder)
        config.write_text(kept)
    config.write_text(json.dumps(json.loads(kept) | {"scaling_factor": 0.13025}))
    with pytest.warns(UserWarning, match=r"by 0\.13025, PixArt-alpha's by 0\.18215"):
        gesso.load(folder, device="cpu")


def test_a_missing_shard_is_counted(folder: Path) -> None:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    shutil.rmtree(folder / "transformer")
    model.save_pretrained(folder / "transformer", max_shard_size="40KB")
    shards = sorted((folder / "transformer").glob("*-of-*"))
    shards[1].unlink()
    with pytest.raises(GessoError, match=rf"half-downloaded: 1 of {len(shards)} .*00002-of"):
        gesso.load(folder)


def test_another_noise_schedule_is_refused(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_schedule": "scaled_linear"}))
    with pytest.raises(GessoError, match="beta_schedule scaled_linear, PixArt's is linear"):
        gesso.load(folder)


# Other models

NAMES = {
    "Stable Diffusion 1 or 2": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.output_blocks.0.0.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "first_stage_model.decoder.conv_in.weight",
    ],
    "Stable Diffusion XL": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.label_emb.0.0.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    ],
    "Flux": [
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.0.linear1.weight",
        "img_in.weight",
    ],
    "LTX-Video": ["adaln_single.linear.weight", "patchify_proj.weight"],
    "a PixArt ControlNet": ["controlnet.0.copied_block.attn.qkv.weight"],
    "a LoRA or another adapter": ["base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight"],
    "an autoencoder (give it as --vae)": ["decoder.conv_in.weight", "encoder.conv_in.weight"],
}


@pytest.mark.parametrize("family", sorted(NAMES))
def test_other_models_are_named(tmp_path: Path, family: str) -> None:
    tensors = {k: torch.zeros(2) for k in NAMES[family]}
    assert name_family(tensors) == family
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        with pytest.raises(GessoError) as said:
            gesso.load(tmp_path / name, vae=tmp_path, text_encoder=tmp_path)
        assert f"is {family}, not the weights of a PixArt transformer" in str(said.value)


def flux() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 8),
        norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        **options,
    )


def sdxl() -> Any:
    return unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16,
    )


@pytest.mark.parametrize(
    ("build", "family"),
    [
        (flux, "Flux"),
        (unet, "Stable Diffusion 1 or 2"),
        (sdxl, "Stable Diffusion XL"),
    ],
)
def test_diffusers_models_of_other_families_are_named(tmp_path, build, family) -> None:
    model = build()
    assert name_family(model.state_dict()) == family
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(GessoError, match=f"is a {type(model).__name__}, not a PixArt"):
        gesso.load(tmp_path / "m")


def test_a_pipeline_of_another_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(GessoError, match="is a FluxPipeline: gesso loads PixArt and Stable"):
        gesso.load(tmp_path)


def test_folders_of_nothing_or_too_much(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match="holds no weights"):
        gesso.load(tmp_path)
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(GessoError, match="holds 2 weight files"):
        gesso.load(tmp_path)


def test_prefixes_are_stripped_only_where_they_are_known() -> None:
    marker = "t_block.1.weight"
    for prefix in ("", "module.", "model.", "base_model.model.", "model.diffusion_model."):
        found = checkpoint.Checkpoint({prefix + marker: torch.ones(1)}, "x")
        assert set(checkpoint.strip_prefix(found, [marker]).tensors) == {marker}
        assert found.prefix == prefix
    found = checkpoint.Checkpoint({"unet_of_someone." + marker: torch.ones(1)}, "x")
    assert set(checkpoint.strip_prefix(found, [marker]).tensors) == {"unet_of_someone." + marker}


def test_the_command_line_says_it_in_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    save_file({k: torch.zeros(2) for k in NAMES["Flux"]}, tmp_path / "flux.safetensors")
    for model, says in (("flux.safetensors", "is Flux"), ("nowhere.pth", "nowhere.pth")):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["gesso", "paint", "x", "--model", model, "--vae", "v"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        err = capsys.readouterr().err
        assert stop.value.code == 2 and len(err.strip().splitlines()) == 1
        assert says in err or "--vae" in err or "'v'" in err, err
