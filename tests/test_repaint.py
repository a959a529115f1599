"""Pictures painted over, sizes and buckets, and few-step samplers in a pipeline."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from gesso.data.buckets import published_table
from gesso.diffusion.schedules import make_schedule
from gesso.model import Model
from gesso.pipeline import Pipeline
from gesso.repaint import resize_and_crop
from gesso.sizes import fitting_size
from gesso.types import Cond, GessoError

PROMPTS = ["a red circle", "two blue stars", "a star above a square", "blue", ""] * 2
CALL = {"num_inference_steps": 4, "seed": 7, "output_type": "np"}


@pytest.fixture
def pipe(tiny_recipe, tiny_model):
    """A model of the ddpm path, which published ones are."""
    tiny_model.description.diffusion = tiny_recipe.diffusion.model_copy(
        update={"path": "ddpm", "prediction": "epsilon", "shift": 1.0}
    )
    # Weights at random shout; x0 = (x - sigma eps) / alpha would drown pictures in rounding.
    with torch.no_grad():
        tiny_model.backbone.final_layer.linear.weight.mul_(0.1)
        tiny_model.backbone.final_layer.linear.bias.mul_(0.1)
    tiny_model.sample.sampler = "dpm_solver"
    return Pipeline(tiny_model)


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Smooth colours, as an autoencoder likes them."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def mask(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """White in a rectangle that no latent cell's edge meets."""
    white = np.zeros(size, np.uint8)
    white[10:30, 22:50] = 255
    return Image.fromarray(white)


LCM = {"sampler": "lcm", "spacing": "lcm", "guidance_scale": 1.0}
DMD = {"sampler": "one_step", "timesteps": (400,), "num_inference_steps": 1, "guidance_scale": 1.0}


@pytest.mark.parametrize(
    ("contract", "call"),
    [
        ({}, {}),
        ({"spacing": "continuous", "final": "sigma_min"}, {}),
        (LCM, {}),
        (DMD, {"num_inference_steps": 1}),
        ({}, {"image": picture(1), "strength": 0.6}),
        (LCM, {"image": picture(1), "strength": 0.6}),
        ({}, {"image": [picture(i) for i in range(10)], "mask_image": mask()}),
        (LCM, {"image": picture(1), "mask_image": mask(), "strength": 0.8}),
    ],
)
def test_a_picture_depends_on_its_own_prompt_and_seed_only(pipe, contract, call):
    pipe.model.sample = pipe.model.sample.model_copy(update=contract)
    call = CALL | call
    together = pipe(PROMPTS, **call).images
    for i in (0, 4, 9):
        image = call.get("image")
        own = {"image": image[i]} if isinstance(image, list) else {}
        alone = pipe(PROMPTS[i], **(call | own | {"seed": 7 + i})).images[0]
        assert np.abs(together[i] - alone).max() < 1 / 255
    in_threes = pipe(PROMPTS, batch_size=3, **call).images
    assert np.abs(together - in_threes).max() < 1 / 255
    assert np.abs(together[0] - together[5]).max() > 1 / 255  # same prompt, another seed


def test_typed_and_learned_null_conditions_do_not_depend_on_neighbours(tiny_recipe):
    tiny_recipe.backbone["null_tokens"] = 12
    tiny_recipe.sample.null = "learned"
    model = Model.from_recipe(tiny_recipe)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    pipe = Pipeline(model)
    call = {"output_type": "np", "guidance_scale": 4.0}
    both = pipe(["a red circle", "a star"], ["blue", ""], seed=[1, 2], **call).images
    typed = pipe("a red circle", "blue", seed=1, **call).images[0]
    learned = pipe("a star", seed=2, **call).images[0]
    assert np.abs(both[0] - typed).max() < 1 / 255
    assert np.abs(both[1] - learned).max() < 1 / 255
    empty = pipe.model.sample.model_copy(update={"null": "empty"})
    pipe.model.sample = empty
    assert np.abs(pipe("a star", seed=2, **call).images[0] - learned).max() > 1 / 255


def test_the_learned_null_stands_under_the_prompts_mask(tiny_recipe):
    tiny_recipe.backbone["null_tokens"] = 12
    backbone = Model.from_recipe(tiny_recipe).backbone
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    null = backbone.null(Cond(tokens=torch.zeros(2, 5, 32), mask=mask))
    assert torch.equal(null.mask, mask)
    assert torch.equal(null.tokens, backbone.y_embedder.y_embedding[:5].expand(2, -1, -1))


def test_one_step_is_the_estimate_at_its_time(pipe):
    pipe.model.sample = pipe.model.sample.model_copy(update=DMD)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    ours = pipe("a red circle", latents=noise, output_type="latent").images
    with torch.inference_mode():
        encoder = pipe.model.text_encoder
        cond = encoder(encoder.prepare(["a red circle"]))
        eps = pipe.model.backbone(noise, torch.tensor([400.0]), cond).value
    alpha_bar = pipe.model.path.log_alpha_bar[400].exp().item()
    wanted = (noise - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    assert torch.allclose(ours, wanted, atol=1e-4)
    with pytest.raises(GessoError, match="in one step"):
        pipe("a red circle", num_inference_steps=4)


def test_every_text_is_encoded_once_a_batch(pipe, monkeypatch):
    seen, encoder = [], pipe.model.text_encoder
    prepare = encoder.prepare
    monkeypatch.setattr(encoder, "prepare", lambda texts: seen.append(texts) or prepare(texts))
    pipe(["a red circle", "blue"], num_images_per_prompt=3, **CALL)
    assert seen == [["a red circle", "blue"], [""]]
    seen.clear()
    pipe(["a red circle", "blue"], guidance_scale=1, **CALL)
    assert seen == [["a red circle", "blue"]]


def test_guidance_of_one_or_less_is_none(pipe):
    by_scale = [pipe("a red circle", guidance_scale=s, **CALL).images for s in (0.0, 1.0, 3.0)]
    assert np.array_equal(by_scale[0], by_scale[1])
    assert np.abs(by_scale[1] - by_scale[2]).max() > 1 / 255


def test_strength_says_how_much_of_the_picture_is_left(pipe):
    image = picture(1)
    seen = np.asarray(image) / 255

    def distance(strength: float) -> float:
        out = pipe(
            "a red circle",
            image=image,
            strength=strength,
            **(CALL | {"num_inference_steps": 20}),
        )
        assert out.strength == strength
        return float(np.abs(out.images[0] - seen).mean())

    apart = [distance(s) for s in (0.05, 0.3, 0.9)]
    assert apart[0] < apart[1] < apart[2]
    whole = pipe("a red circle", image=image, strength=1.0, **CALL).images
    assert np.array_equal(whole, pipe("a red circle", **CALL).images)  # begins with noise


def test_image_to_image_starts_from_the_noised_picture_as_diffusers_does(pipe):
    """The same loop by hand: posterior mean, add_noise at the first of the last steps, solver."""
    from diffusers import DPMSolverMultistepScheduler

    image, steps = picture(1), 10
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    ours = pipe(
        "a red circle",
        image=image,
        strength=0.5,
        latents=noise,
        guidance_scale=1,
        num_inference_steps=steps,
        output_type="latent",
    ).images
    peer = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02)
    peer.set_timesteps(steps)
    peer.set_begin_index(steps // 2)
    with torch.inference_mode():
        pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 127.5 - 1
        encoder = pipe.model.image_encoder
        start = encoder.sample(encoder.encode(pixels))
        cond = pipe.model.text_encoder(pipe.model.text_encoder.prepare(["a red circle"]))
        x = peer.add_noise(start, noise, peer.timesteps[steps // 2 : steps // 2 + 1])
        for t in peer.timesteps[steps // 2 :]:
            eps = pipe.model.backbone(x, t.float()[None], cond).value
            x = peer.step(eps, t, x).prev_sample
    assert torch.allclose(ours, x, atol=2e-3)


@pytest.mark.parametrize("contract", [{}, LCM, {"final": "sigma_min"}, {"sampler": "ddim"}])
@pytest.mark.parametrize("strength", [None, 0.5])
def test_what_the_mask_leaves_black_stays(pipe, contract, strength):
    pipe.model.sample = pipe.model.sample.model_copy(update=contract)
    image, white = picture(1), np.asarray(mask()) > 0
    call = {"image": image, "mask_image": mask(), "strength": strength}
    painted = pipe("a red circle", **call, **CALL).images[0]
    before = np.asarray(image) / 255
    assert np.abs(painted - before)[~white].max() < 1e-6
    assert np.abs(painted - before)[white].max() > 0.05
    # And the latents, exactly, wherever no pixel of a cell is white.
    latents = pipe("a red circle", **call, **(CALL | {"output_type": "latent"})).images[0]
    with torch.inference_mode():
        encoder = pipe.model.image_encoder
        clean = encoder.sample(
            encoder.encode(torch.tensor(before).permute(2, 0, 1)[None].float() * 2 - 1)
        )
    kept = F.max_pool2d(torch.tensor(white)[None, None].float(), 4)[0, 0] == 0
    assert torch.allclose(latents[:, kept], clean[0][:, kept], atol=1e-5)
    assert not torch.allclose(latents[:, ~kept], clean[0][:, ~kept], atol=0.05)


def test_masked_painting_equals_replacing_after_every_step(pipe):
    """diffusers' way: after a step, put the picture noised to the next time back in."""
    image, noise = picture(1), torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    pipe.model.sample = pipe.model.sample.model_copy(update={"sampler": "euler"})
    ours = pipe(
        "a red circle",
        image=image,
        mask_image=mask(),
        latents=noise,
        guidance_scale=1,
        num_inference_steps=6,
        output_type="latent",
    ).images
    model = pipe.model
    with torch.inference_mode():
        pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 127.5 - 1
        clean = model.image_encoder.sample(model.image_encoder.encode(pixels))
        cond = model.text_encoder(model.text_encoder.prepare(["a red circle"]))
        denoise = model.denoiser().bind(cond)
        paint = F.max_pool2d(torch.tensor(np.asarray(mask()) > 0)[None, None].float(), 4).bool()
        x = noise
        for t, a, s, a1, s1 in make_schedule(model.path, 6).pairs():
            x = torch.where(paint, x, a * clean + s * noise)
            out = denoise(x, torch.tensor([t]).float())
            x = x + (a1 - a) * out.x0 + (s1 - s) * out.noise
        x = torch.where(paint, x, clean)
    assert torch.allclose(ours, x, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"mask_image": mask((64, 56))}, "mask has 64x56 pixels where the picture has 64x64"),
        ({"mask_image": mask(), "image": None}, "give an image"),
        ({"image": None, "strength": 0.5}, "give an image"),
        ({"image": [picture(0)] * 2}, "2 pictures for 1 prompts"),
        ({"image": []}, "list of pictures is empty"),
        ({"image": "file.png"}, "PIL image or an"),
        ({"strength": 0.0}, "strength 0.0 is not above 0"),
        ({"strength": 0.1}, "leaves none of 4 steps"),
        ({"height": 0}, "height 0 is no multiple of 8"),
    ],
)
def test_what_cannot_be_painted_over_is_refused(pipe, call, says):
    with pytest.raises(GessoError, match=says):
        pipe("a red circle", **({"image": picture(1)} | call), **CALL)


def test_a_picture_is_cut_to_the_size_that_is_asked_for(pipe):
    wide = picture(1, (40, 120))
    out = pipe("a red circle", image=wide, height=64, width=96, **CALL)
    assert out.images.shape == (1, 64, 96, 3)
    # Left open: its shape, at the area that the model usually paints.
    out = pipe("a red circle", image=wide, **CALL)
    assert out.images.shape == (1, 40, 112, 3)
    assert (out.contract.height, out.contract.width) == (40, 112)
    contract = pipe.model.sample.model_copy(update={"bucket_size": 1024})
    assert fitting_size(pipe.model, contract, (3000, 2000)) == (1216, 832)


# Buckets.


@pytest.mark.parametrize("base", [256, 512, 1024, 2048])
def test_buckets_are_those_of_diffusers(base):
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma

    name = f"ASPECT_RATIO_{base}_BIN"
    theirs = getattr(sigma if base == 2048 else alpha, name)
    ours = published_table(base)
    assert {f"{k}": list(map(float, v)) for k, v in ours.items()} == {
        f"{float(k)}": v for k, v in theirs.items()
    }


@pytest.mark.parametrize("size", [(64, 64), (90, 131), (200, 60)])
def test_cropping_equals_diffusers(size):
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtImageProcessor

    pixels = torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    theirs = PixArtImageProcessor.resize_and_crop_tensor(pixels, size[1], size[0])
    assert torch.equal(resize_and_crop(pixels, size), theirs)


def test_binning_paints_in_a_bucket_and_gives_the_size_asked_for(pipe):
    pipe.model.sample.bucket_size = 128
    call = {"height": 50, "width": 101, "use_resolution_binning": True, **CALL}
    assert pipe("a red circle", **call).images.shape == (1, 50, 101, 3)
    height, width = published_table(128)[0.5]
    latents = pipe("a red circle", **(call | {"output_type": "latent"})).images
    assert latents.shape == (1, 4, height // 4, width // 4)


def test_sizes_beyond_the_buckets_warn(pipe):
    pipe.model.sample.bucket_size = 64
    with pytest.warns(UserWarning, match="16x16 is far from .* 64x64 is the nearest"):
        pipe("a red circle", height=16, width=16, **CALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("a red circle", height=64, width=64, **CALL)


def test_micro_conditions_are_the_painted_size(pipe, monkeypatch):
    seen = []
    backbone = pipe.model.backbone
    forward = backbone.forward

    def spy(x, t, cond):
        seen.append(cond)
        return forward(x, t, cond)

    monkeypatch.setattr(backbone, "forward", spy)
    monkeypatch.setattr(backbone, "prepare", lambda cond, times=None: cond, raising=False)
    pipe("a red circle", height=32, width=96, guidance_scale=1, **CALL)
    assert seen[0].size.tolist() == [[32.0, 96.0]]
    assert seen[0].aspect.tolist() == [[pytest.approx(32 / 96)]]


def test_the_lcm_sampler_needs_its_own_times(pipe):
    pipe.model.sample = pipe.model.sample.model_copy(update={"sampler": "lcm"})
    with pytest.raises(GessoError, match="spacing to lcm or lcm_reference"):
        pipe("a red circle", **CALL)


def test_one_generator_for_all_serves_each_picture_its_own_noise(pipe):
    pipe.model.sample = pipe.model.sample.model_copy(update=LCM)

    def paint(size: int):
        g = torch.Generator().manual_seed(4)
        call = {k: v for k, v in CALL.items() if k != "seed"}
        return pipe(PROMPTS[:4], generator=g, batch_size=size, **call).images

    assert np.abs(paint(4) - paint(1)).max() < 1 / 255
