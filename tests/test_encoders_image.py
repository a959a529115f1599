"""Published image encoders: parity with diffusers, file formats, broken files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from gesso.draws import Draws
from gesso.encoders.image import kl, taesd
from gesso.types import GessoError


def seeded(seed: int) -> Draws:
    return Draws("cpu", seed)


def psnr(x: Tensor, y: Tensor) -> float:
    """dB between pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (x - y.clamp(-1, 1)).square().mean()))


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.13025,
        shift_factor=0.0609,
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


# Published KL autoencoders


def test_kl_equals_diffusers_with_its_scaling(vae_folder):
    from diffusers import AutoencoderKL

    reference = AutoencoderKL.from_pretrained(vae_folder).eval()
    model = kl.build(kl.Config(path=str(vae_folder)))
    assert (model.factor, model.channels, model.raw_channels) == (2, 4, 8)
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = reference.encode(pixels).latent_dist
        raw = model.encode(pixels)
        latents = (posterior.mean - 0.0609) * 0.13025
        assert torch.allclose(model.sample(raw), latents, atol=1e-6)
        drawn = (posterior.sample(seeded(3)._generator) - 0.0609) * 0.13025
        assert torch.allclose(model.sample(raw, seeded(3)), drawn, atol=1e-6)
        decoded = reference.decode(latents / 0.13025 + 0.0609).sample
        assert torch.allclose(model.decode(latents), decoded, atol=1e-5)


def test_kl_of_a_pipeline_folder_and_channel_statistics(vae_folder, tmp_path):
    folder = tmp_path / "vae"
    folder.mkdir()
    for file in vae_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    values |= {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5] * 4}
    (folder / "config.json").write_text(json.dumps(values))
    model = kl.build(kl.Config(path=str(tmp_path)))
    raw = torch.cat([torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2)], dim=1)
    expected = (1 - torch.tensor([1.0, 2.0, 3.0, 4.0])) / 0.5 * 0.13025
    assert torch.allclose(model.sample(raw)[0, :, 0, 0], expected)


def test_kl_refuses_missing_truncated_and_incomplete_weights(vae_folder, tmp_path):
    with pytest.raises(GessoError, match=r"KL autoencoder .* could not be loaded"):
        kl.build(kl.Config(path=str(tmp_path)))
    (tmp_path / "config.json").write_bytes((vae_folder / "config.json").read_bytes())
    weights = vae_folder / "diffusion_pytorch_model.safetensors"
    (tmp_path / weights.name).write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(GessoError, match=r"KL autoencoder .* could not be loaded"):
        kl.build(kl.Config(path=str(tmp_path)))
    state = load_file(weights)
    del state["quant_conv.bias"]
    save_file(state, tmp_path / weights.name)
    with pytest.raises(GessoError, match=r"quant_conv\.bias"):
        kl.build(kl.Config(path=str(tmp_path)))


# TAESD


def random_taesd(folder: Path, name: str = "taesd") -> dict[str, Tensor]:
    """Write a random TAESD in its author's format; returns the diffusers state."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    state = AutoencoderTiny().state_dict()
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for key, value in state.items():
        part, _, layer, rest = key.split(".", 3)
        number = int(layer) + (part == "decoder")
        parts[part][f"{number}.{rest}"] = value
    for part, tensors in parts.items():
        save_file(tensors, folder / f"{name}_{part}.safetensors")
    return state


def test_taesd_reads_the_authors_files_and_diffusers_folders(tmp_path):
    from diffusers import AutoencoderTiny

    state = random_taesd(tmp_path)
    model = taesd.build(taesd.Config(path=str(tmp_path)))
    assert (model.factor, model.channels, model.raw_channels) == (8, 4, 4)
    reference = AutoencoderTiny()
    reference.load_state_dict(state)
    reference.save_pretrained(tmp_path / "diffusers")
    same = taesd.build(taesd.Config(path=str(tmp_path / "diffusers")))
    assert same.fingerprint() == model.fingerprint()
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        raw = model.encode(pixels)
        assert torch.equal(raw, reference.eval().encode(pixels).latents)
        assert model.sample(raw, seeded(0)).shape == (1, 4, 2, 3)
        assert torch.equal(model.decode(raw), reference.decode(raw).sample)


def test_taesd_broken_files(tmp_path):
    with pytest.raises(GessoError, match=r"holds neither taesd_encoder\.safetensors"):
        taesd.build(taesd.Config(path=str(tmp_path)))
    random_taesd(tmp_path)
    decoder = tmp_path / "taesd_decoder.safetensors"
    whole = decoder.read_bytes()
    decoder.write_bytes(whole[:5000])
    with pytest.raises(GessoError, match=r"taesd_decoder\.safetensors.*truncated"):
        taesd.build(taesd.Config(path=str(tmp_path)))
    decoder.unlink()
    with pytest.raises(GessoError, match="There is no weight file"):
        taesd.build(taesd.Config(path=str(tmp_path)))


def test_taesd_refuses_another_variant(tmp_path):
    from diffusers import AutoencoderTiny

    AutoencoderTiny().save_pretrained(tmp_path)
    with pytest.raises(GessoError, match="4 latent channels where variant 'flux' has 16"):
        taesd.build(taesd.Config(path=str(tmp_path), variant="flux"))


@pytest.mark.parametrize("variant", sorted(taesd.NAMES))
def test_taesd_round_trip_on_emoji(shared, variant):
    pictures = []
    for file in sorted((shared / "emoji" / "noto").rglob("*.png"))[:4]:
        picture = Image.open(file).convert("RGBA")
        flat = Image.new("RGBA", picture.size, "white")
        flat.alpha_composite(picture)
        pictures.append(np.asarray(flat.convert("RGB").resize((128, 128))))
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    model = taesd.build(taesd.Config(variant=variant, path=str(shared / "weights" / "taesd")))
    with torch.no_grad():
        latents = model.sample(model.encode(pixels))
        assert psnr(pixels, model.decode(latents)) > 20
    assert 0.5 < latents.std() < 2  # already normalised, as trained models expect
