"""Score implicit matching: its gradient in one dimension, its terms by hand, a run of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_fakes import Random, every_tensor, tiny_model, tiny_recipe

from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.paths import Flow
from gesso.draws import Draws
from gesso.objectives.sim import SIM, Config, build
from gesso.train.loop import train
from gesso.types import Cond, GessoError, Prediction

FLOW = {"path": "flow", "prediction": "flow"}


def objective(diffusion: dict[str, Any] | None = None, **options: Any) -> tuple[SIM, Any]:
    torch.manual_seed(3)
    model = tiny_model(tiny_recipe(diffusion=diffusion or FLOW))
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return build(Config(**options), model), model


class Gaussian(nn.Module):
    """The perfect denoiser of N(0, scale^2) on the flow path, as an x0 prediction."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Prediction:
        t = (time / 1000).view(-1, 1, 1, 1)
        power = ((1 - t) * self.scale) ** 2 + t**2
        return Prediction((1 - t) * self.scale**2 / power * x)


@pytest.mark.parametrize("routing", ["whole", "u detached", "networks detached"])
def test_gradient_of_one_scale(routing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """x0 = a z with the fake perfect: the divergence's derivative in a is known by quadrature.

    It is of E_x d(s_a(x) - s_q(x)) with x from the generator as it is, so of s_a alone; and less
    than the whole routing of gradients gives something else, by a lot.
    """
    a, q, t, c = 1.6, 0.7, 0.5, 0.3
    alpha, sigma = 1 - t, t
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    power = (alpha * a) ** 2 + sigma**2
    density = torch.exp(-(x**2) / (2 * power)) / (2 * torch.pi * power) ** 0.5

    def divergence(scale: Tensor) -> Tensor:
        s_a = -x / ((alpha * scale) ** 2 + sigma**2)
        s_q = -x / ((alpha * q) ** 2 + sigma**2)
        width = c * alpha / sigma**2  # of denoised estimates to scores: y = -alpha/sigma^2 u
        d = ((s_a - s_q) ** 2 + width**2).sqrt() - width
        return torch.trapezoid(density * d, x)

    scale = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    (true,) = torch.autograd.grad(divergence(scale), scale)
    true = float(true) * sigma**2 / alpha  # the weight that the denoised form has

    made, _ = objective(guidance_scale=1, huber=c)
    learned = torch.tensor(a, requires_grad=True)
    path = Flow()
    made.teacher = Denoiser(Gaussian(q).float(), path, "x0")
    made.fake = Denoiser(Gaussian(a).float(), path, "x0")
    made.roles["fake"] = made.fake.backbone  # type: ignore[assignment]
    monkeypatch.setattr(made, "make", lambda z, cond: learned * z)
    if routing == "networks detached":
        for denoiser in (made.teacher, made.fake):
            inner = denoiser.backbone.forward  # type: ignore[attr-defined]
            monkeypatch.setattr(
                denoiser.backbone, "forward", lambda x, *rest, inner=inner: inner(x.detach(), *rest)
            )
    n = 400_000
    g = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, n, 1, 1, 1, generator=g)
    times = torch.full((n,), t)
    if routing == "u detached":
        x_t = made.teacher.noised(learned * z, noise, times)
        u = made.teacher.bind(Cond())(x_t, times).x0 - made.fake.bind(Cond())(x_t, times).x0
        fake = made.fake.bind(Cond())(x_t, times).x0
        u = u.detach()
        loss = (u * (fake - learned * z) / (u**2 + c**2).sqrt()).mean()
    else:
        loss = made._generate(z, noise, times, Cond(), Cond()).loss
    (ours,) = torch.autograd.grad(loss, learned)
    if routing == "whole":
        assert float(ours) == pytest.approx(true, rel=0.02)
    else:
        assert abs(float(ours) - true) > 0.15 * abs(true)


def test_kl_is_the_difference_of_the_estimates() -> None:
    made, _ = objective(divergence="kl", guidance_scale=2)
    with torch.no_grad():
        for p in made.roles["fake"].parameters():
            p.add_(0.1 * torch.randn_like(p))
    batch = Random().batch(0, 3, 0)
    both = made.captions.both(batch.cond)
    z, noise = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4)
    t = torch.tensor([0.2, 0.5, 0.9])
    x0 = torch.randn(3, 4, 4, 4, requires_grad=True)
    made.make = lambda *_: x0  # type: ignore[method-assign]
    made._generate(z, noise, t, both[:3], both).loss.backward()
    with torch.no_grad():
        x = made.teacher.noised(x0, noise, t)
        real = made.teacher.guided(x, t, both, 2).x0
        fake = made.fake.bind(both[:3])(x, t).x0
    torch.testing.assert_close(x0.grad, (fake - real) / 3)
    made.options.weight = "residual"  # DMD's
    x0.grad = None
    made._generate(z, noise, t, both[:3], both).loss.backward()
    scale = (x0.detach() - real).abs().flatten(1).mean(1).view(3, 1, 1, 1)
    torch.testing.assert_close(x0.grad, (fake - real) / 3 / scale)


def test_each_phase_reaches_its_own_network_only() -> None:
    for phase, learner in (("generate", "backbone"), ("fake", "fake")):
        for divergence in ("score", "kl"):
            made, _ = objective(divergence=divergence)
            with torch.no_grad():
                for p in made.roles["fake"].parameters():
                    p.add_(0.1 * torch.randn_like(p))
            made.loss(phase, Random().batch(0, 3, 0), Draws("cpu", 1)).loss.backward()
            for name, role in made.roles.items():
                reached = any(p.grad is not None for p in role.parameters())
                assert reached == (name == learner), (phase, name)
            assert all(p.requires_grad for p in made.roles["fake"].parameters())


def test_latents_are_not_read() -> None:
    made, _ = objective()
    batch, other = Random().batch(0, 3, 0), Random().batch(0, 3, 0)
    assert other.latents is not None
    other.latents = other.latents + 5
    for phase in ("generate", "fake"):
        a = made.loss(phase, batch, Draws("cpu", 1)).loss
        assert torch.equal(a, made.loss(phase, other, Draws("cpu", 1)).loss)


def test_the_generator_learns_every_second_step(tmp_path: Path) -> None:
    recipe = tiny_recipe(objective={"name": "sim", "fake_steps": 2}, diffusion=FLOW)
    recipe.train.steps, recipe.train.ema, recipe.train.warmup = 1, 0.0, 0
    models = tiny_model(recipe), tiny_model(recipe)
    one = train(recipe, tmp_path / "one", model=models[0], dataset=Random(), quiet=True)
    recipe.train.steps = 2
    two = train(recipe, tmp_path / "two", model=models[1], dataset=Random(), quiet=True)
    a, b = (every_tensor(Path(r["checkpoint"])) for r in (one, two))

    def same(role: str) -> bool:
        keys = [k for k in a if f"weights.safetensors:{role}." in k]
        assert keys
        return all(torch.equal(a[k], b[k]) for k in keys)

    assert same("backbone") and same("teacher") and not same("fake")


def test_bad_times_are_refused() -> None:
    with pytest.raises(GessoError, match="not below"):
        objective(earliest=0.9, latest=0.5)
