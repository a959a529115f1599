"""Models of codes: sampling against teacher forcing, drawing, and what the pipeline refuses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gesso.adapters.stable_sampler import counts
from gesso.config import Recipe, SampleConfig, validate
from gesso.draws import Draws
from gesso.model import Model
from gesso.nn.choose import choose, keep
from gesso.objectives.next_code import Config, build
from gesso.pipeline import Pipeline
from gesso.samplers.autoregressive import generate, guidance
from gesso.types import Batch, Cond, GessoError

SCALES = [1, 2, 4]
COUNT = 1 + 4 + 16
WORDS = ["a", "red", "blue", "circle", "star", "two"]
PROMPTS = ["a red circle", "two blue stars", "a star"]


def recipe(**parts: object) -> Recipe:
    values = {
        "name": "test",
        "image_encoder": {"name": "multiscale_vq", "width": 8, "codes": 23, "scales": SCALES},
        "text_encoder": {"name": "learned", "width": 16, "depth": 1, "heads": 2, "words": WORDS},
        "backbone": {"name": "star", "depth": 2, "hidden_size": 16, "num_heads": 2},
        "diffusion": None,
        "objective": {"name": "next_code"},
        "sample": {"sampler": "autoregressive", "guidance_scale": 3, "height": 32, "width": 32},
    }
    made: Recipe = validate(Recipe, values | parts, "test")
    return made


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    made = Model.from_recipe(recipe())
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in made.parts().values():
            for p in part.eval().parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=g))
    yield made


def text(model: Model, prompts: list[str]) -> Cond:
    encoder = model.text_encoder
    found: Cond = encoder(encoder.prepare(prompts))
    return found


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


@torch.no_grad()
def test_every_step_is_what_teacher_forcing_says(model: Model) -> None:
    """Drawn one group at a time with a cache, guided; the whole afterwards, without either."""
    contract = model.sample.model_copy(update={"guidance_growth": "linear", "temperature": 0.0})
    cond, null = text(model, PROMPTS), text(model, ["", "", ""])
    args = (model.backbone, model.image_encoder, cond, null, contract, (4, 4))
    codes = generate(*args, generator=generators(3))
    assert codes.shape == (3, COUNT) and len(codes.unique()) > 3
    with_cond = model.backbone.teach(codes, cond, model.image_encoder)
    without = model.backbone.teach(codes, null, model.image_encoder)
    at = 0
    for k, p in enumerate(SCALES):
        some = slice(at, at := at + p * p)
        # The paper's form: (1 + t) l_c - t l_u with t = cfg k / (K - 1).
        t = (3.0 - 1) * k / 2
        logits = (1 + t) * with_cond[:, some] - t * without[:, some]
        assert torch.equal(logits.argmax(-1), codes[:, some])
    plain = generate(*args[:4], contract.model_copy(update={"guidance_scale": 1.0}), (4, 4),
                     generator=generators(3))  # fmt: skip
    assert not torch.equal(plain, codes)


def test_guidance_is_constant_or_grows() -> None:
    contract = SampleConfig(guidance_scale=5.0)
    assert [guidance(contract, k, 3) for k in range(3)] == [5, 5, 5]
    contract.guidance_growth = "linear"
    assert [guidance(contract, k, 3) for k in range(3)] == [1, 3, 5]
    assert guidance(contract, 0, 1) == 5


def test_codes_are_drawn_with_their_probabilities() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = p.log().expand(1, 20_000, 4)

    def shares(**options: float) -> Tensor:
        drawn, share = choose(logits, generators(1), **options)  # type: ignore[arg-type]
        assert share.min() > 0
        return torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()

    torch.testing.assert_close(shares(), p, atol=0.015, rtol=0)
    sharp = p**2 / (p**2).sum()
    torch.testing.assert_close(shares(temperature=0.5), sharp, atol=0.015, rtol=0)
    two = torch.tensor([0.625, 0.375, 0, 0])
    torch.testing.assert_close(shares(top_k=2), two, atol=0.015, rtol=0)
    torch.testing.assert_close(shares(top_p=0.8), two, atol=0.015, rtol=0)
    torch.testing.assert_close(shares(temperature=0), torch.eye(4)[0])


def test_what_is_kept_is_what_transformers_keeps() -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(5, 1, dtype=torch.long)
    for k, p in ((4, 1.0), (0, 0.8), (6, 0.5), (30, 0.01)):
        expected = logits
        if k:
            expected = TopKLogitsWarper(k)(ids, expected)
        if p < 1:
            expected = TopPLogitsWarper(p)(ids, expected)
        assert torch.equal(keep(logits, k, p), expected), (k, p)


def test_a_picture_does_not_depend_on_its_neighbours(model: Model) -> None:
    pipe = Pipeline(model)
    together = pipe(PROMPTS, seed=5, output_type="np").images
    assert together.shape == (3, 32, 32, 3)
    for i in range(3):
        alone = pipe(PROMPTS[i], seed=5 + i, output_type="np").images[0]
        assert np.abs(together[i] - alone).max() < 1 / 255
    twos = pipe(PROMPTS, seed=5, output_type="np", batch_size=2).images
    assert np.abs(together - twos).max() < 1 / 255


def test_prompt_seed_guidance_negative_and_contract_matter(model: Model) -> None:
    pipe = Pipeline(model)

    def paint(prompt: str = "a red circle", negative: str | None = None, **changes: object):  # type: ignore[no-untyped-def]
        return pipe(prompt, negative, **{"seed": 1, "output_type": "np", **changes}).images

    base = paint()
    assert np.array_equal(base, paint())
    changed = [paint("two blue stars"), paint(seed=2), paint(guidance_scale=1.0)]
    changed.append(paint(negative="blue star"))
    model.sample = model.sample.model_copy(update={"temperature": 0.0})
    changed.append(paint())
    model.sample = model.sample.model_copy(update={"temperature": 1.0})
    assert all(np.abs(base - other).max() > 1 / 255 for other in changed)


def test_progress_counts_the_runs_of_the_backbone(model: Model) -> None:
    told: list[tuple[int, int]] = []
    Pipeline(model)(PROMPTS, batch_size=2, seed=0, callback=lambda *x: told.append(x))
    assert told == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_inference_steps": 4}, "leave out num_inference_steps"),
        ({"image": np.zeros((32, 32, 3), np.uint8)}, "leave out image"),
        ({"strength": 0.5}, "leave out strength"),
        ({"timesteps": [0.5]}, "leave out timesteps"),
        ({"latents": torch.zeros(1, 8, 4, 4)}, "leave out latents"),
        ({"height": 64}, "paints grids of 4x4, not 8x4"),
    ],
)
def test_what_only_denoising_can_do_is_refused(
    model: Model, options: dict[str, object], said: str
) -> None:
    with pytest.raises(GessoError, match=said):
        Pipeline(model)("a red circle", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"diffusion": {"path": "flow"}}, "star generates codes: set diffusion to null"),
        ({"backbone": {"name": "pixart"}}, "pixart denoises: set diffusion to a noise path"),
        ({"image_encoder": {"name": "tiny"}}, "its image encoder has none"),
        ({"backbone": {"name": "star", "vocabulary": 24}}, "of 24 codes, and this one has 23"),
        ({"backbone": {"name": "star", "in_channels": 4}}, "of 4 channels, and this one has 8"),
        ({"backbone": {"name": "star", "scales": [1, 4]}}, r"of the scales \[1, 4\], and this"),
    ],
)
def test_what_does_not_fit_is_one_sentence(parts: dict[str, object], said: str) -> None:
    with pytest.raises(GessoError, match=said):
        Model.from_recipe(recipe(**parts))


def test_a_sampler_of_the_other_kind_is_refused(model: Model, tiny_model: Model) -> None:
    model.sample = model.sample.model_copy(update={"sampler": "euler"})
    with pytest.raises(GessoError, match="sampler euler denoises and test generates codes"):
        Pipeline(model)("a star")
    model.sample = model.sample.model_copy(update={"sampler": "autoregressive"})
    tiny_model.sample = tiny_model.sample.model_copy(update={"sampler": "autoregressive"})
    with pytest.raises(GessoError, match="sampler autoregressive generates codes and"):
        Pipeline(tiny_model)("a star")
    with pytest.raises(GessoError, match="trains backbones that generate codes"):
        build(Config(), tiny_model)
    with pytest.raises(GessoError, match="generates codes and has no noise path"):
        model.denoiser()


def batch(model: Model) -> Batch:
    codes = torch.randint(23, (3, COUNT), generator=torch.Generator().manual_seed(0))
    return Batch(list("abc"), model.text_encoder.prepare(PROMPTS), codes=codes)


@torch.no_grad()
def test_the_loss_is_the_mean_over_all_codes(model: Model) -> None:
    given = batch(model)
    out = build(Config(caption_dropout=0), model).loss("generate", given, Draws("cpu", 0))
    logits = model.backbone.teach(given.codes, text(model, PROMPTS), model.image_encoder)
    p = logits.softmax(-1).gather(-1, given.codes[..., None])
    torch.testing.assert_close(out.loss, -p.log().mean())
    right = (logits.argmax(-1) == given.codes).float().mean()
    torch.testing.assert_close(out.metrics["accuracy"], right)
    assert build(Config(), model).validate([given])["loss"] == pytest.approx(float(out.loss))


@torch.no_grad()
def test_dropped_captions_are_the_empty_prompt(model: Model) -> None:
    given = batch(model)
    dropped = build(Config(caption_dropout=1), model).loss("generate", given, Draws("cpu", 0))
    empty = Batch(given.keys, model.text_encoder.prepare([""] * 3), codes=given.codes)
    expected = build(Config(caption_dropout=0), model).loss("generate", empty, Draws("cpu", 0))
    kept = build(Config(caption_dropout=0), model).loss("generate", given, Draws("cpu", 0))
    torch.testing.assert_close(dropped.loss, expected.loss)
    assert abs(float(kept.loss - dropped.loss)) > 1e-3


def test_the_tokenizer_stays_as_it_is(model: Model) -> None:
    build(Config(), model).loss("generate", batch(model), Draws("cpu", 0)).loss.backward()
    assert all(p.grad is None for p in model.image_encoder.parameters())
    assert any(p.grad is not None for p in model.backbone.parameters())
    assert "image_encoder" not in model.trained() and "image_encoder" in model.stored()
    model.backbone.zero_grad()


def with_sampler(model: Model, **options: object) -> Model:
    """A copy with a stable sampler whose output depends on all that it reads."""
    made = Model.from_recipe(recipe())
    made.load_state(model.state(), "the model")
    made.attach({"name": "stable_sampler", "depth": 1, **options})
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.backbone.sampler.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    for part in made.parts().values():
        part.eval()
    return made


def test_rounds_fix_as_many_codes_as_in_the_reference() -> None:
    assert counts(256, 8) == [1, 18, 26, 32, 38, 43, 48, 50]
    for n in (1, 4, 9, 16, 64):
        assert sum(counts(n, 8)) == n and min(counts(n, 8)) > 0
    assert counts(9, 1) == [9]


@torch.no_grad()
def test_a_settled_scale_sees_its_own_scale_and_the_text(model: Model) -> None:
    sampler = with_sampler(model, scales=2).backbone.sampler
    features, entries = torch.randn(1, 20, 16), torch.randn(1, 20, 8)  # scales of 4 and 16 codes
    pooled = torch.randn(1, 16)
    base = sampler(features, entries, pooled, [1, 2])
    other = entries.clone()
    other[:, 4] += 1  # a code of the last scale
    moved = (sampler(features, other, pooled, [1, 2]) - base).abs().amax(-1)[0]
    assert moved[:4].max() == 0 and moved[4:].min() > 1e-5
    moved = (sampler(features, entries, pooled + 1, [1, 2]) - base).abs().amax(-1)[0]
    assert moved.min() > 1e-5
    alone = sampler(features[:, 4:], entries[:, 4:], pooled, [2])
    torch.testing.assert_close(alone, base[:, 4:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_last_scale_is_settled_and_those_before_are_the_bases(model: Model) -> None:
    settled = with_sampler(model)
    contract = model.sample.model_copy(update={"temperature": 0.0})
    seen: list[Tensor] = []
    forward = settled.backbone.sampler.forward

    def record(features: Tensor, entries: Tensor, *rest: object) -> Tensor:
        seen.append(entries[: len(entries) // 2].abs().sum(-1) > 0)
        return forward(features, entries, *rest)

    settled.backbone.sampler.forward = record
    made = []
    for one in (model, settled):
        args = (text(one, PROMPTS), text(one, [""] * 3), contract, (4, 4))
        made.append(generate(one.backbone, one.image_encoder, *args, generator=generators(3)))
    assert torch.equal(made[0][:, :5], made[1][:, :5])
    assert not torch.equal(made[0][:, 5:], made[1][:, 5:])
    fixed = [int(s[0].sum()) for s in seen]
    rounds = counts(16, 8)
    assert fixed == [sum(rounds[:i]) for i in range(len(rounds))]
    assert all((later | s == later).all() for s, later in pairwise(seen))
    alone = Pipeline(settled)(PROMPTS[1], seed=6, output_type="np").images[0]
    together = Pipeline(settled)(PROMPTS, seed=5, output_type="np").images[1]
    assert np.abs(together - alone).max() < 1 / 255


def test_only_hidden_codes_count_and_the_base_is_frozen(model: Model) -> None:
    from gesso.objectives import hidden_code

    settled = with_sampler(model)
    objective = hidden_code.build(hidden_code.Config(caption_dropout=0), settled)
    given = batch(settled)
    out = objective.loss("settle", given, Draws("cpu", 4))
    out.loss.backward()
    learnt = {k.split(".")[0] for k, p in settled.backbone.named_parameters() if p.grad is not None}
    assert learnt == {"sampler"}

    draws = Draws("cpu", 4)
    draws.rand(3)  # the captions'
    share = draws.rand(3).acos() / (np.pi / 2)
    hidden = draws.rand(3, 16) >= share[:, None]
    assert 0 < hidden.sum() < hidden.numel()
    with torch.no_grad():
        cond = text(settled, PROMPTS)
        tokenizer = settled.image_encoder
        features = settled.backbone.features(tokenizer.inputs(given.codes), cond)[:, 5:]
        last = given.codes[:, 5:]
        shown = tokenizer.entries(last)
        shown[hidden] = 0
        logits = settled.backbone.sampler(features, shown, cond.pooled, [2])
    expected = -logits.log_softmax(-1).gather(-1, last[..., None])[..., 0][hidden].mean()
    torch.testing.assert_close(out.loss.detach(), expected)
    with pytest.raises(GessoError, match="set adapter to"):
        hidden_code.build(hidden_code.Config(), model)


def test_a_stable_sampler_comes_back_from_its_folder(model: Model, tmp_path: Path) -> None:
    settled = with_sampler(model, scales=2)
    settled.save(tmp_path)
    again = Model.load(tmp_path)
    one = Pipeline(settled)(PROMPTS, seed=5, output_type="np").images
    assert np.array_equal(one, Pipeline(again)(PROMPTS, seed=5, output_type="np").images)


def test_a_stable_sampler_that_does_not_fit_is_refused(model: Model, tiny_model: Model) -> None:
    with pytest.raises(GessoError, match="for the backbone star"):
        tiny_model.attach({"name": "stable_sampler"})
    with pytest.raises(GessoError, match="to draw 4 scales and star has 3"):
        with_sampler(model, scales=4)
