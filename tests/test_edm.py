"""EDM (Karras et al. 2022) against diffusers and its own equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gesso.config import DiffusionConfig, TrainConfig
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.paths import EDM, make_path
from gesso.diffusion.predictions import target, to_denoised
from gesso.diffusion.schedules import make_schedule
from gesso.diffusion.timesteps import draw
from gesso.draws import Draws
from gesso.model import Model
from gesso.pipeline import Pipeline
from gesso.samplers import heun
from gesso.train.optim import learning_rate
from gesso.types import Cond, GessoError, Prediction

CONFIG = {"path": "edm", "prediction": "edm", "timesteps": "lognormal"}
S = 0.9  # sigma_data


def network(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
    """Any smooth function of both inputs."""
    return Prediction(torch.tanh(1.7 * x + t.view(-1, 1, 1, 1)) - 0.3 * x.roll(1, dims=-1))


def test_the_path_and_its_conditioning_equal_diffusers() -> None:
    from diffusers import EDMEulerScheduler

    peer = EDMEulerScheduler(sigma_data=S, prediction_type="epsilon")
    peer.set_timesteps(30)
    schedule = make_schedule(EDM(S), 30)
    assert torch.allclose(schedule.sigma.float(), peer.sigmas, rtol=1e-5)
    assert schedule.sigma[0].item() == pytest.approx(80) and schedule.sigma[-1] == 0
    assert schedule.sigma[-2].item() == pytest.approx(0.002) and (schedule.alpha == 1).all()
    x, value = torch.randn(4, 4, 3, 3), torch.randn(4, 4, 3, 3)
    t = torch.tensor([80.0, 3.0, 0.4, 0.002])
    denoiser = Denoiser(lambda *_: Prediction(value), EDM(S), "edm")
    for i, sigma in enumerate(t):
        scaled = EDM(S).scale_input(x, t)[i]
        assert torch.allclose(scaled, peer.precondition_inputs(x, sigma)[i], rtol=1e-5)
        assert EDM(S).model_time(t)[i].item() == pytest.approx(peer.precondition_noise(sigma))
        x0 = denoiser.bind(Cond())(x, t).x0[i]
        # diffusers' sign of c_out is that of the epsilon convention, as in the paper
        assert torch.allclose(
            x0, peer.precondition_outputs(x, value, sigma)[i], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_prediction_and_target_are_inverse(sigma: float) -> None:
    x0, noise = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    s = torch.tensor(sigma, dtype=torch.float64)
    x, one = x0 + sigma * noise, torch.ones_like(s)
    f = target(x0, noise, one, s, "edm", S)
    found, found_noise = to_denoised(f, x, one, s, "edm", S)
    assert torch.allclose(found, x0, atol=1e-10) and torch.allclose(found_noise, noise, atol=1e-10)
    other = torch.randn_like(f)
    a, b = to_denoised(other, x, one, s, "edm", S)
    assert torch.allclose(a + sigma * b, x, atol=1e-9)


def test_the_even_error_of_f_is_the_weighted_error_of_x0() -> None:
    """lambda(sigma) = (sigma^2 + s^2) / (sigma s)^2, table 1; and F has unit variance (eq. 115)."""
    for sigma in (0.01, 0.3, 2.0, 50.0):
        s = torch.tensor(sigma, dtype=torch.float64)
        x0, noise = S * torch.randn(64, 64).double(), torch.randn(64, 64).double()
        x, one = x0 + sigma * noise, torch.ones_like(s)
        wanted = target(x0, noise, one, s, "edm", S)
        assert wanted.std().item() == pytest.approx(1, abs=0.05)
        guess = torch.randn(64, 64).double()
        estimate, _ = to_denoised(guess, x, one, s, "edm", S)
        weight = (sigma**2 + S**2) / (sigma * S) ** 2
        even = (guess - wanted).square().mean()
        assert even.item() == pytest.approx(weight * (estimate - x0).square().mean().item())


def test_heun_equals_algorithm_1() -> None:
    """Without churn, written out in float64 with D of eq. 7."""
    denoiser = Denoiser(network, EDM(S), "edm")
    schedule = make_schedule(EDM(S), 12)
    start = 80 * torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    ours = heun.sample(denoiser.bind(Cond()), start, schedule)

    def d(x: Tensor, sigma: float) -> Tensor:
        root = math.sqrt(sigma**2 + S**2)
        f = network((x / root), torch.full((2,), math.log(sigma) / 4).double(), Cond()).value
        denoised = S**2 / root**2 * x + sigma * S / root * f
        return (x - denoised) / sigma

    n, rho = 12, 7
    low, high = 0.002 ** (1 / rho), 80 ** (1 / rho)
    t = [(high + i / (n - 1) * (low - high)) ** rho for i in range(n)] + [0.0]
    x = start.double()
    for i in range(n):
        slope = d(x, t[i])
        ahead = x + (t[i + 1] - t[i]) * slope
        if t[i + 1] > 0:
            ahead = x + (t[i + 1] - t[i]) * (slope + d(ahead, t[i + 1])) / 2
        x = ahead
    assert torch.allclose(ours.double(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["heun", "euler", "ddim", "dpm_solver"])
def test_samplers_reach_the_data(name: str) -> None:
    """From N(0, 80^2) to N(0, S^2), with the best denoiser of such data."""
    from gesso.config import module

    denoiser = Denoiser(lambda x, t, c: Prediction(torch.zeros_like(x)), EDM(S), "edm")
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    found = module("samplers", name).sample(
        denoiser.bind(Cond()), 80 * noise, make_schedule(EDM(S), 60)
    )
    # F = 0 is exact there: x0 = c_skip x; the ODE scales x by sqrt((s^2 + 0) / (s^2 + 80^2)).
    expected = 80 * noise * S / math.sqrt(80**2 + S**2)
    assert ((found - expected).norm() / expected.norm()).item() < 0.06


def test_noise_levels_are_lognormal() -> None:
    config = DiffusionConfig(**CONFIG, p_mean=-0.6, p_std=1.2)
    log = draw(config, 20_000, Draws("cpu", 0)).log()
    assert log.mean().item() == pytest.approx(-0.6, abs=0.03)
    assert log.std().item() == pytest.approx(1.2, abs=0.03)


def test_levels_between_the_ends() -> None:
    path = EDM(S)
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    t = path.place(u)
    assert t[0].item() == pytest.approx(0.002) and t[-1].item() == pytest.approx(80)
    assert (t.diff() > 0).all()
    short = make_schedule(path, 8, final="sigma_min")
    assert len(short) == 8 and short.t[-1].item() == pytest.approx(0.002)
    assert make_schedule(path, 1).t.tolist() == pytest.approx([80, 0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"path": "flow", "prediction": "edm"}, "prediction edm belongs to path: edm"),
        ({"path": "ddpm", "timesteps": "lognormal"}, "timesteps lognormal belongs"),
        ({**CONFIG, "timesteps": "uniform"}, "use lognormal"),
        ({**CONFIG, "shift": 2.0}, "shift applies to path: flow"),
    ],
)
def test_what_belongs_to_another_path_is_refused(changes, says) -> None:
    with pytest.raises(GessoError, match=says):
        make_path(DiffusionConfig(**changes))


def test_a_pipeline_starts_at_sigma_80(tiny_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_recipe.diffusion = DiffusionConfig(**CONFIG, sigma_data=S)
    tiny_recipe.sample.sampler = "heun"
    pipe = Pipeline(Model.from_recipe(tiny_recipe))
    seen: list[Tensor] = []
    pipe.model.backbone.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    latents = torch.randn(1, 4, 16, 16)
    out = pipe("a red circle", latents=latents, output_type="latent", num_inference_steps=1)
    expected = latents * 80 / math.sqrt(80**2 + S**2)  # c_in x
    assert torch.allclose(seen[0][:1], expected, atol=1e-4)
    assert out.images.isfinite().all() and out.images.std() < 2


def test_the_learning_rate_ends_at_its_floor() -> None:
    config = TrainConfig(lr=2.0, warmup=0, steps=100, lr_floor=0.33, schedule="cosine")
    rates = [learning_rate(config, step, 0.0) for step in (0, 50, 100)]
    assert rates == pytest.approx([2.0, 2 * (0.33 + 0.67 / 2), 0.66])
    config.schedule = "linear"
    assert learning_rate(config, 75, 0.0) == pytest.approx(2 * (0.33 + 0.67 / 4))
