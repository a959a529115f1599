"""Stable Diffusion 3 folders and files through `gesso.load`, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sd3_fakes
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import gesso
from gesso.convert import sd3
from gesso.convert.job import convert
from gesso.types import GessoError

LAYOUTS: dict[str, dict[str, Any]] = {
    "sd3": {},
    "sd3.5": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}
PROMPTS = ["a red circle left of a blue square", "two stars"]


@pytest.fixture(scope="module", params=LAYOUTS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param) / "tiny-sd3"
    return sd3_fakes.pipeline(folder, **LAYOUTS[request.param]), folder


def noise(n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.detach().abs().max()), rtol=0)


def test_text_is_that_of_diffusers(published: Any) -> None:
    pipe, folder = published
    tokens, negative, pooled, negative_pooled = pipe.encode_prompt(
        PROMPTS, None, None, device="cpu", negative_prompt="a hat"
    )
    encoder = gesso.load(folder).model.text_encoder
    cond, other = encoder(encoder.prepare(PROMPTS)), encoder.prepare(["a hat"])
    assert tokens.shape == (2, 77 + 256, sd3_fakes.TEXT_DIM) and pooled.shape == (2, 10)
    close(cond.tokens, tokens)
    close(cond.pooled, pooled)
    close(other.tokens[0], negative[0])
    close(other.pooled[0], negative_pooled[0])
    assert cond.mask is None and encoder.prepare(PROMPTS).mask.all()


@pytest.mark.parametrize("skip", [(), (0, 2)])
def test_latents_and_pictures_are_those_of_diffusers(published: Any, skip: tuple[int]) -> None:
    pipe, folder = published
    ours = gesso.load(folder)
    contract = ours.model.sample
    assert (contract.num_inference_steps, contract.guidance_scale) == (28, 7.0)
    assert (contract.height, contract.width) == (64, 64)
    contract.skip_guidance_layers = skip
    shared = {"num_inference_steps": 11, "guidance_scale": 4.0, "negative_prompt": "a hat"}
    extra = {"skip_guidance_layers": list(skip), "skip_layer_guidance_scale": 2.5} if skip else {}
    theirs = {"height": 64, "width": 64, "latents": noise(), **shared, **extra}
    expected = pipe(PROMPTS, output_type="latent", **theirs).images
    found = ours(PROMPTS, latents=noise(), output_type="latent", **shared).images
    close(found, expected)
    wanted = pipe(PROMPTS, output_type="np", **theirs).images
    painted = ours(PROMPTS, latents=noise(), output_type="np", **shared).images
    assert abs(painted - wanted).max() < 1 / 255
    if skip:
        contract.skip_guidance_layers = ()
        plain = ours(PROMPTS, latents=noise(), output_type="latent", **shared).images
        assert (plain - found).abs().max() > 1e-2


def test_without_t5_its_tokens_are_zeros(tmp_path: Path) -> None:
    pipe = sd3_fakes.pipeline(tmp_path / "sd3", t5=False)
    options = {"num_inference_steps": 3, "guidance_scale": 4.0}
    theirs = {"height": 64, "width": 64, "latents": noise(1), "output_type": "latent"}
    expected = pipe("a red hat", max_sequence_length=256, **theirs, **options).images
    ours = gesso.load(tmp_path / "sd3")
    close(ours("a red hat", latents=noise(1), output_type="latent", **options).images, expected)


def test_single_files_of_the_authors_load(published: Any, tmp_path: Path) -> None:
    pipe, folder = published
    config = gesso.load(folder).model.backbone.config
    state = sd3.from_diffusers(pipe.transformer.state_dict())
    original = sd3.to_original(state, config)
    file = tmp_path / "sd3_tiny_incl_clips.safetensors"
    prefixed = {f"model.diffusion_model.{k}": v.contiguous() for k, v in original.items()}
    others = {"first_stage_model.x": torch.zeros(1), "text_encoders.clip_l.x": torch.zeros(1)}
    save_file(prefixed | others, file)
    if not config.qk_norm:  # 32 wide, and no norm that tells the width of a head
        with pytest.raises(GessoError, match="does not say how many heads"):
            gesso.load(file, vae=folder, text_encoder=folder)
        return
    pipe = gesso.load(file, vae=folder, text_encoder=folder)
    assert pipe.model.backbone.config == config
    shared = {"latents": noise(), "num_inference_steps": 3, "output_type": "latent"}
    assert torch.equal(pipe(PROMPTS, **shared).images, gesso.load(folder)(PROMPTS, **shared).images)


def test_what_lacks_is_told(published: Any, tmp_path: Path) -> None:
    _, folder = published
    with pytest.raises(GessoError, match=r"without an autoencoder.*--vae"):
        gesso.load(folder / "transformer")
    with pytest.raises(GessoError, match=r"without text_encoder.*--text-encoder"):
        gesso.load(folder / "transformer", vae=folder)
    with pytest.raises(GessoError, match="leave out variant"):
        gesso.load(folder, variant="xl-512")


@pytest.mark.parametrize("to", ["original", "comfyui", "diffusers"])
def test_conversions_there_and_back_are_bit_exact(published: Any, tmp_path: Path, to: str) -> None:
    _, folder = published
    there = tmp_path / ("there" if to == "diffusers" else "there.safetensors")
    told = convert(folder, there, to)
    assert told["largest_difference"] <= 1e-5 * told["largest_output"]
    convert(there, tmp_path / "back", "diffusers")
    file = "diffusion_pytorch_model.safetensors"
    before, after = load_file(folder / "transformer" / file), load_file(tmp_path / "back" / file)
    del before["pos_embed.pos_embed"], after["pos_embed.pos_embed"]  # computed anew, to rounding
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_gesso_folder_paints_the_same(published: Any, tmp_path: Path) -> None:
    _, folder = published
    convert(folder, tmp_path / "own", "gesso")
    shared = {"latents": noise(), "num_inference_steps": 3, "output_type": "latent"}
    ours, theirs = gesso.load(tmp_path / "own"), gesso.load(folder)
    assert torch.equal(ours(PROMPTS, **shared).images, theirs(PROMPTS, **shared).images)
