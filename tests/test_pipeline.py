"""Prompt to pictures: what a picture depends on, and what is refused."""

import numpy as np
import pytest
import torch

from gesso.loading import load
from gesso.pipeline import Pipeline
from gesso.types import GessoError

PROMPTS = ["a red circle", "two blue stars", "a star above a square"]


@pytest.fixture
def pipe(tiny_model):
    return Pipeline(tiny_model)


def test_output_types_have_their_shapes(pipe):
    out = pipe(PROMPTS[:2], seed=0)
    assert [i.size for i in out.images] == [(64, 64)] * 2
    array = pipe(PROMPTS[:2], seed=0, output_type="np").images
    assert array.shape == (2, 64, 64, 3) and array.min() >= 0 and array.max() <= 1
    assert pipe(PROMPTS[:2], seed=0, output_type="pt").images.shape == (2, 3, 64, 64)
    assert pipe(PROMPTS[:2], seed=0, output_type="latent").images.shape == (2, 4, 16, 16)
    assert np.array_equal(np.asarray(out.images[1]), np.uint8(np.rint(array[1] * 255)))


def test_a_picture_depends_on_its_own_prompt_and_seed_only(pipe):
    together = pipe(PROMPTS * 3, seed=7, output_type="np").images
    alone = pipe(PROMPTS[1], seed=7 + 4, output_type="np").images[0]
    assert np.abs(together[4] - alone).max() < 1 / 255
    in_fours = pipe(PROMPTS * 3, seed=7, output_type="np", batch_size=4).images
    assert np.abs(together - in_fours).max() < 1 / 255


def test_prompt_seed_guidance_and_negative_all_matter(pipe):
    def paint(prompt="a red circle", negative=None, **changes):
        return pipe(prompt, negative, **{"seed": 1, "output_type": "np", **changes}).images

    base = paint()
    assert np.array_equal(base, paint())
    for other in (
        paint("two blue stars"),
        paint(seed=2),
        paint(guidance_scale=1.0),
        paint(negative="a blue square"),
        paint(num_inference_steps=5),
    ):
        assert np.abs(base - other).max() > 1 / 255


def test_an_empty_negative_prompt_is_no_negative_prompt(pipe):
    one = pipe("a red circle", "", seed=1, output_type="np").images
    assert np.array_equal(one, pipe("a red circle", seed=1, output_type="np").images)


def test_seeds_generators_and_latents_are_three_ways_to_the_same_noise(pipe):
    by_seed = pipe(PROMPTS[:2], seed=[5, 9], output_type="latent")
    assert by_seed.seeds == [5, 9]
    generators = [torch.Generator().manual_seed(s) for s in (5, 9)]
    by_generator = pipe(PROMPTS[:2], generator=generators, output_type="latent")
    noise = torch.stack(
        [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (5, 9)]
    )
    by_latents = pipe(PROMPTS[:2], latents=noise, output_type="latent")
    assert torch.equal(by_seed.images, by_generator.images)
    assert torch.equal(by_seed.images, by_latents.images)
    assert by_latents.seeds == [None, None]


def test_a_random_seed_is_reported_and_repaints_the_picture(pipe):
    first = pipe("a red circle", output_type="np")
    again = pipe("a red circle", seed=first.seeds[0], output_type="np")
    assert np.array_equal(first.images, again.images)


def test_several_pictures_a_prompt_stay_together(pipe):
    out = pipe(PROMPTS[:2], num_images_per_prompt=2, seed=3)
    assert out.prompts == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert out.seeds == [3, 4, 5, 6]


def test_other_sizes_are_painted(pipe):
    assert pipe("a red circle", height=32, width=96, seed=0).images[0].size == (96, 32)


def test_the_callback_counts_every_step_of_every_batch(pipe):
    seen = []
    pipe(PROMPTS, seed=0, batch_size=2, callback=lambda *a: seen.append(a))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_bfloat16_is_close_to_float32(pipe):
    exact = pipe(PROMPTS, seed=0, output_type="np").images
    pipe.model.sample.dtype = "bfloat16"
    rough = pipe(PROMPTS, seed=0, output_type="np").images
    assert 0 < np.abs(exact - rough).mean() < 0.02


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"height": 60}, "height 60 is no multiple of 8.*try 64"),
        ({"width": 0}, "width 0 is no multiple of 8.*try 8"),
        ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"needs \(1, 4, 16, 16\)"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"output_type": "jpeg"}, "use pil, np, pt or latent"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
    ],
)
def test_what_cannot_be_painted_is_refused(pipe, changes, says):
    with pytest.raises(GessoError, match=says):
        pipe("a red circle", **{"seed": 0, **changes})


def test_no_prompt_is_refused_and_an_empty_one_is_painted(pipe):
    with pytest.raises(GessoError, match="at least one prompt"):
        pipe([])
    assert pipe("", seed=0).images


def test_a_prompt_of_ten_thousand_words_warns_with_what_is_dropped(pipe):
    long = "a red circle " * 3333 + "end"
    with pytest.warns(UserWarning, match=r"9989 words were dropped: circle a") as caught:
        cut = pipe(long, seed=0, output_type="np").images
    assert len(str(caught[0].message)) < 300
    kept = " ".join(long.split()[: pipe.model.text_encoder.max_tokens - 1])
    assert np.array_equal(cut, pipe(kept, seed=0, output_type="np").images)


def test_load_gives_the_model_that_was_saved(pipe, model_folder):
    loaded = load(model_folder, device="cpu")
    ours = pipe("a red circle", seed=1, output_type="np").images
    assert np.array_equal(ours, loaded("a red circle", seed=1, output_type="np").images)
    with pytest.raises(GessoError, match="float16 is not supported"):
        load(model_folder, dtype=torch.float16)
