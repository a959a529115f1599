"""The denoising objective against its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from train_fakes import LENGTH, Random, tiny_model, tiny_recipe

from gesso.config import module, resolve
from gesso.draws import Draws
from gesso.model import Model
from gesso.objectives.denoise import Config, DenoiseObjective, build
from gesso.types import Batch, Cond, GessoError

FLOW = {"path": "flow", "prediction": "flow"}


def moved_model(**parts: Any) -> Model:
    """Away from the zero initialisation, so that every input matters."""
    model = tiny_model(tiny_recipe(**parts))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model


def batch(n: int = 4) -> Batch:
    return Random().batch(0, n, 0)


def g(seed: int = 0) -> Draws:
    return Draws("cpu", seed)


class Spy:
    """Stands for a backbone: remembers what it gets and answers with a constant."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.seen: list[tuple[Tensor, Tensor, Cond]] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Any:
        from gesso.types import Prediction

        self.seen.append((x, t, cond))
        return Prediction(torch.full_like(x, self.value))


def with_spy(monkeypatch: pytest.MonkeyPatch, options: Config, **parts: Any) -> Any:
    model = moved_model(**parts)
    objective = build(options, model)
    spy = Spy()
    monkeypatch.setattr(
        objective,
        "denoiser",
        type(objective.denoiser)(spy, objective.path, objective.denoiser.prediction),
    )
    return objective, spy


def test_the_flow_loss_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, spy = with_spy(monkeypatch, Config(caption_dropout=0), diffusion=FLOW)
    b = batch()
    out = objective.loss("denoise", b, g())
    x, model_time, _ = spy.seen[0]
    t = (model_time / 1000).view(-1, 1, 1, 1)
    assert b.latents is not None
    noise = (x - (1 - t) * b.latents) / t  # x_t = (1 - t) x0 + t noise
    expected = (noise - b.latents).square().mean()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert noise.mean().abs() < 0.3 and 0.7 < noise.std() < 1.3
    assert len(set(model_time.tolist())) == 4  # a timestep for each picture


def test_the_epsilon_loss_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, spy = with_spy(monkeypatch, Config(caption_dropout=0))
    b = batch()
    out = objective.loss("denoise", b, g())
    x, t, _ = spy.seen[0]
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in objective.path.alpha_sigma(t))
    noise = (x - alpha * b.latents) / sigma
    assert torch.equal(t, t.round())
    assert out.loss.item() == pytest.approx(noise.square().mean().item(), rel=1e-2)
    assert "vlb" not in out.metrics


def test_a_loss_follows_from_its_generator() -> None:
    objective = build(Config(), moved_model())
    losses = [objective.loss("denoise", batch(), g(seed)).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_the_bound_never_reaches_the_value_channels() -> None:
    model = moved_model()
    loss = {w: build(Config(vlb_weight=w), model).loss("denoise", batch(), g()) for w in (0, 3)}
    weight = model.backbone.final_layer.linear.weight
    grads = [torch.autograd.grad(loss[w].loss, weight)[0] for w in (0, 3)]
    plain, bounded = (grad.unflatten(0, (4, 8)) for grad in grads)  # rows are (p p) x 2C
    assert plain[:, 4:].abs().max() == 0  # channels 4..7 are the variance
    assert bounded[:, 4:].abs().max() > 0
    assert torch.equal(plain[:, :4], bounded[:, :4])
    total = loss[3].metrics["mse"] + 3 * loss[3].metrics["vlb"]
    assert loss[3].loss.item() == pytest.approx(float(total), rel=1e-5)


def test_no_bound_on_the_flow_path() -> None:
    out = build(Config(), moved_model(diffusion=FLOW)).loss("denoise", batch(), g())
    assert "vlb" not in out.metrics and out.loss.item() == pytest.approx(float(out.metrics["mse"]))


def test_dropped_captions_become_the_empty_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, spy = with_spy(monkeypatch, Config(caption_dropout=1))
    b = batch()
    b.cond.size = torch.arange(8.0).view(4, 2)
    objective.loss("denoise", b, g())
    cond = spy.seen[0][2]
    empty = objective.captions.text_encoder(objective.captions.text_encoder.prepare([""]))
    assert torch.equal(cond.mask, torch.arange(cond.mask.shape[1])[None].expand(4, -1) < 1)
    assert torch.equal(cond.tokens[:, :1], empty.tokens.expand(4, -1, -1))
    assert torch.equal(cond.size, b.cond.size)  # the picture's size is no part of its caption


def test_kept_captions_are_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, spy = with_spy(monkeypatch, Config(caption_dropout=0))
    b = batch()
    objective.loss("denoise", b, g())
    cond, expected = spy.seen[0][2], objective.captions.text_encoder(b.cond)
    assert torch.equal(cond.tokens[:, :LENGTH], expected.tokens)
    assert torch.equal(cond.mask[:, :LENGTH], expected.mask)


def test_the_share_of_dropped_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, spy = with_spy(monkeypatch, Config(caption_dropout=0.1))
    b = Random().batch(0, 2000, 0)
    b.cond.mask = torch.ones(2000, LENGTH, dtype=torch.bool)
    objective.loss("denoise", b, g())
    dropped = (spy.seen[0][2].mask.sum(1) == 1).float().mean().item()
    assert 0.08 < dropped < 0.12


def test_the_learned_null_keeps_the_prompts_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"name": "pixart", "depth": 2, "hidden_size": 32, "num_heads": 2, "null_tokens": 8}
    options = Config(caption_dropout=1, null="learned")
    objective, spy = with_spy(monkeypatch, options, backbone=parts)
    b = batch()
    out = objective.loss("denoise", b, g())
    cond = spy.seen[0][2]
    null = objective.backbone.y_embedder.y_embedding
    assert torch.equal(cond.mask, b.cond.mask)
    assert torch.equal(cond.tokens, null[:LENGTH].expand(4, -1, -1))
    assert out.loss.isfinite()


def test_the_learned_null_learns() -> None:
    parts = {"name": "pixart", "depth": 2, "hidden_size": 32, "num_heads": 2, "null_tokens": 8}
    model = moved_model(backbone=parts)
    objective = build(Config(caption_dropout=1, null="learned"), model)
    objective.loss("denoise", batch(), g()).loss.backward()
    assert model.backbone.y_embedder.y_embedding.grad.abs().max() > 0


def test_a_learned_null_needs_a_backbone_that_has_one() -> None:
    objective = build(Config(null="learned"), moved_model())
    with pytest.raises(GessoError, match="null_tokens"):
        objective.loss("denoise", batch(), g())


def test_roles_are_what_the_model_trains() -> None:
    model = moved_model()
    assert set(build(Config(), model).roles) == {"backbone", "text_encoder"}
    model.text_encoder.trainable = False
    objective = build(Config(), model)
    assert set(objective.roles) == {"backbone"}
    assert objective.phases[0].learns == ("backbone",)


def test_an_image_encoder_alone_cannot_denoise() -> None:
    model = moved_model()
    model.backbone = None
    with pytest.raises(GessoError, match="backbone"):
        build(Config(), model)


def one_by_one(b: Batch) -> list[Batch]:
    assert b.latents is not None
    rows = range(len(b.keys))
    return [Batch([b.keys[i]], b.cond[i], latents=b.latents[i : i + 1]) for i in rows]


def test_validation_is_fixed_whatever_the_batches() -> None:
    objective = build(Config(), moved_model())
    batches = list(Random().validation_batches(4))
    torch.manual_seed(1)
    first = objective.validate(batches)["loss"]
    torch.manual_seed(2)
    assert objective.validate(batches)["loss"] == first
    singles = [single for b in reversed(batches) for single in one_by_one(b)]
    assert objective.validate(singles)["loss"] == pytest.approx(first, rel=1e-5)
    assert objective.validate([]) == {}


def test_validation_judges_every_noise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, spy = with_spy(monkeypatch, Config(), diffusion=FLOW)
    b = batch()
    found = objective.validate([b])["loss"]
    times = [t.unique().item() for _, t, _ in spy.seen]
    assert times == pytest.approx([62.5 + 125 * i for i in range(8)])
    x, t = torch.stack([s[0] for s in spy.seen]), torch.tensor(times) / 1000
    t = t.view(-1, 1, 1, 1, 1)
    noise = (x - (1 - t) * b.latents) / t
    assert found == pytest.approx((noise - b.latents).square().mean().item(), rel=1e-3)
    assert noise.std(0).min() > 0  # another noise at each level


def test_every_objective_is_found_by_its_file() -> None:
    assert module("objectives", "denoise").build is build
    found, options = resolve("objectives", {"name": "denoise", "caption_dropout": 0.2})
    assert options == Config(caption_dropout=0.2) and found.DenoiseObjective is DenoiseObjective
    with pytest.raises(GessoError, match="caption_dropout"):
        resolve("objectives", {"name": "denoise", "caption_dropuot": 0.2})


class Drawn:
    """Draws that are given."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def rand(self, *shape: int) -> torch.Tensor:
        assert tuple(self.values.shape) == shape
        return self.values


def test_a_frozen_text_encoder_gives_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = moved_model()
    encoder = model.text_encoder
    empty = Cond(tokens=torch.full((1, 2, encoder.dim), 7.0), mask=torch.tensor([[True, True]]))
    monkeypatch.setattr(encoder, "trainable", False, raising=False)
    monkeypatch.setattr(encoder, "prepare", lambda prompts: empty)
    monkeypatch.setattr(encoder, "forward", lambda cond: cond)
    objective = build(Config(caption_dropout=0.5), model)
    tokens = torch.ones(64, LENGTH, encoder.dim)
    cond = objective.captions.dropped(
        Cond(tokens=tokens, mask=torch.ones(64, LENGTH, dtype=torch.bool)),
        0.5,
        Drawn(torch.arange(64)[:, None] % 2),
    )
    assert cond.tokens is not None and cond.mask is not None
    assert torch.equal(cond.tokens[::2, :2], empty.tokens.expand(32, -1, -1))
    assert torch.equal(cond.mask.sum(1), torch.tensor([2, LENGTH] * 32))
    assert torch.equal(cond.tokens[1::2], tokens[1::2])
