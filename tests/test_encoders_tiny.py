"""The tiny autoencoder: the contract, the shipped weights, broken files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gesso import config
from gesso.draws import Draws
from gesso.encoders.image import tiny
from gesso.types import GessoError


def seeded(seed: int) -> Draws:
    return Draws("cpu", seed)


def psnr(x: Tensor, y: Tensor) -> float:
    """dB between pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (x - y.clamp(-1, 1)).square().mean()))


def scenes(level: int, count: int = 16) -> Tensor:
    """[count, 3, 64, 64] in [-1, 1], from the test split."""
    source = config.build(
        "data.sources",
        {"name": "scenes", "level": level, "split": "test", "count": count, "seed": 99},
    )
    pictures = np.stack([s.image for s in source])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def shipped() -> tiny.TinyAutoencoder:
    return tiny.build(tiny.Config())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (4, 8)])
def test_tiny_shapes_at_any_size_that_four_divides(shipped, height, width):
    pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        raw = shipped.encode(pixels)
        latents = shipped.sample(raw)
        decoded = shipped.decode(latents)
    assert raw.shape == (2, shipped.raw_channels, height // 4, width // 4)
    assert latents.shape == (2, shipped.channels, height // 4, width // 4)
    assert decoded.shape == pixels.shape
    assert raw.dtype == latents.dtype == decoded.dtype == torch.float32


def test_tiny_refuses_other_sizes(shipped):
    with pytest.raises(GessoError, match=r"30x64 pixels.*multiples of 4"):
        shipped.encode(torch.zeros(1, 3, 64, 30))


@pytest.mark.parametrize(("level", "expected"), [(1, 32.5), (2, 32.5), (3, 32.0)])
def test_shipped_weights_keep_scenes(shipped, level, expected):
    pixels = scenes(level)
    with torch.no_grad():
        latents = shipped.sample(shipped.encode(pixels))
        assert psnr(pixels, shipped.decode(latents)) > expected
        # A diffusion model's latents are never exact: small errors must stay small.
        noisy = latents + 0.1 * torch.randn(
            latents.shape, generator=torch.Generator().manual_seed(0)
        )
        assert psnr(pixels, shipped.decode(noisy)) > expected - 1


def test_shipped_colours_survive(shipped):
    """The judge reads colours: a large square of each colour comes back within 3 % of the range."""
    from gesso.data.scenes import COLORS

    pixels = scenes(1, len(COLORS))
    inside = (..., slice(16, 48), slice(16, 48))
    for picture, colour in zip(pixels, COLORS.values(), strict=True):
        picture[inside] = torch.tensor(colour).view(3, 1, 1) / 127.5 - 1
    with torch.no_grad():
        decoded = shipped.decode(shipped.sample(shipped.encode(pixels)))
    core = (..., slice(20, 44), slice(20, 44))
    assert (decoded[core].mean((2, 3)) - pixels[core].mean((2, 3))).abs().max() < 0.06


def test_shipped_latents_are_normalised(shipped):
    with torch.no_grad():
        latents = shipped.sample(shipped.encode(scenes(3, 64)), seeded(0))
    assert latents.mean((0, 2, 3)).abs().max() < 0.2
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_shipped_asset_is_small_and_frozen(shipped):
    assert tiny.SHIPPED["scenes"].stat().st_size < 1_000_000
    assert sum(p.numel() for p in shipped.parameters()) < 400_000
    assert not any(p.requires_grad for p in shipped.parameters())


def test_tiny_sampling_draws_from_the_posterior():
    model = tiny.TinyAutoencoder(tiny.Config(width=8, depth=1, weights=None))
    model.shift += torch.tensor([1.0, 2.0, 3.0, 4.0])
    model.scale *= 2
    mean, std = (
        torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)),
        torch.full((1, 4, 64, 64), 0.3),
    )
    raw = torch.cat([mean, std], dim=1)
    expected = (mean - model.shift.view(-1, 1, 1)) / 2
    assert torch.equal(model.sample(raw), expected)
    drawn = model.sample(raw, seeded(1))
    assert torch.equal(drawn, model.sample(raw, seeded(1)))
    assert not torch.equal(drawn, model.sample(raw, seeded(2)))
    assert abs((drawn - expected).std().item() - 0.15) < 0.01


def test_tiny_starts_as_a_mosaic_of_mean_colours():
    """Untrained, decode(encode(x)) is each cell's colour but for the small random branches."""
    torch.manual_seed(0)
    model = tiny.TinyAutoencoder(tiny.Config(weights=None))
    pixels = scenes(1, 4)
    mosaic = torch.nn.functional.avg_pool2d(pixels, 4).repeat_interleave(4, 2)
    mosaic = mosaic.repeat_interleave(4, 3)
    with torch.no_grad():
        assert psnr(mosaic, model.decode(model.sample(model.encode(pixels)))) > 15


def test_tiny_weights_from_file_and_checkpoint_folder(tmp_path):
    options = tiny.Config(width=8, depth=1, weights=None)
    model = tiny.build(options)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    save_file({f"image_encoder.{k}": v for k, v in state.items()}, tmp_path / "model.safetensors")
    for weights in (tmp_path / "a.safetensors", tmp_path):
        loaded = tiny.build(tiny.Config(width=8, depth=1, weights=str(weights)))
        assert loaded.fingerprint() == model.fingerprint()
    with pytest.raises(GessoError, match="width 16 and depth 1"):
        tiny.build(tiny.Config(width=16, depth=1, weights=str(tmp_path)))


def test_tiny_broken_weights(tmp_path):
    with pytest.raises(GessoError, match=r"no weight file .*nowhere"):
        tiny.build(tiny.Config(weights=str(tmp_path / "nowhere.safetensors")))
    whole = tiny.SHIPPED["scenes"].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GessoError, match="truncated"):
        tiny.build(tiny.Config(weights=str(tmp_path / "cut.safetensors")))


def test_fingerprint_is_stable_across_processes_and_sees_a_small_change(shipped):
    code = "from gesso.encoders.image import tiny; print(tiny.build(tiny.Config()).fingerprint())"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert out.stdout.strip() == shipped.fingerprint()
    changed = tiny.build(tiny.Config())
    with torch.no_grad():
        for p in changed.parameters():
            p += 1e-4
    assert changed.fingerprint() != shipped.fingerprint()
