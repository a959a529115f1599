"""Noise paths, predictions, timestep laws, schedules and the variational bound."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gesso.config import DiffusionConfig
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.noise import draw_noise
from gesso.diffusion.paths import DDPM, Flow, make_path
from gesso.diffusion.predictions import target, to_denoised
from gesso.diffusion.schedules import make_schedule
from gesso.diffusion.timesteps import draw
from gesso.diffusion.vlb import (
    discretised_nll,
    gaussian_kl,
    log_betas,
    log_variance,
    posterior_mean,
    vlb_bits,
)
from gesso.draws import Draws
from gesso.types import Cond, GessoError, Prediction

PATHS = [DDPM(), Flow(), Flow(3.0)]


def test_ddpm_levels_equal_diffusers() -> None:
    from diffusers import DDPMScheduler

    alpha_bar = DDPMScheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod
    alpha, sigma = DDPM().alpha_sigma(torch.arange(1000.0))
    assert torch.allclose(alpha**2, alpha_bar, rtol=1e-4)
    assert torch.allclose(sigma**2, 1 - alpha_bar, rtol=1e-4, atol=2e-7)  # 1 - 0.9999 in float32
    assert alpha[999].item() ** 2 == pytest.approx(4.04e-5, abs=5e-8)


def test_ddpm_interpolates_log_alpha_bar_between_steps() -> None:
    a, _ = DDPM().alpha_sigma(torch.tensor([400.0, 400.25, 401.0], dtype=torch.float64))
    assert a[1].log().item() == pytest.approx((0.75 * a[0].log() + 0.25 * a[2].log()).item())


@pytest.mark.parametrize("path", PATHS)
def test_paths_keep_shape_and_float_type(path) -> None:
    for t in (torch.tensor(0.5, dtype=torch.float64), torch.full((3,), 0.5)):
        alpha, sigma = path.alpha_sigma(t)
        assert alpha.shape == sigma.shape == t.shape
        assert alpha.dtype == sigma.dtype == t.dtype
    assert path.alpha_sigma(torch.tensor([1]))[0].dtype == torch.float32


@pytest.mark.parametrize("path", PATHS)
def test_network_time_spans_the_same_range_on_every_path(path) -> None:
    ends = path.model_time(torch.tensor([path.t_min, path.t_max]))
    assert ends[0] == 0 and 999 <= ends[1] <= 1000


def test_flow_shift_is_the_published_map() -> None:
    u = torch.linspace(0, 1, 5)
    assert torch.allclose(Flow(3.0).place(u), 3 * u / (1 + 2 * u))
    with pytest.raises(GessoError, match="shift"):
        Flow(0.0)


def test_undefined_combinations_are_refused() -> None:
    with pytest.raises(GessoError, match="epsilon"):
        make_path(DiffusionConfig(path="flow", prediction="epsilon"))
    with pytest.raises(GessoError, match="shift"):
        make_path(DiffusionConfig(path="ddpm", shift=2.0))
    assert make_path(DiffusionConfig(path="flow", prediction="v", shift=2.0)).shift == 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
def test_predictions_round_trip(path, prediction: str) -> None:
    x0, noise = torch.randn(5, 2, 3, 3).double(), torch.randn(5, 2, 3, 3).double()
    t = path.place(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.95], dtype=torch.float64))
    alpha, sigma = path.alpha_sigma(t)
    x = alpha.view(-1, 1, 1, 1) * x0 + sigma.view(-1, 1, 1, 1) * noise
    value = target(x0, noise, alpha, sigma, prediction)
    found = to_denoised(value, x, alpha, sigma, prediction)
    assert torch.allclose(found[0], x0) and torch.allclose(found[1], noise)


def test_unknown_prediction_is_refused() -> None:
    x, one = torch.zeros(1, 1, 1, 1), torch.ones(1)
    for call in (lambda: target(x, x, one, one, "score"), lambda: to_denoised(x, x, one, one, "")):
        with pytest.raises(GessoError, match="no prediction"):
            call()


@pytest.mark.parametrize("path", ["ddpm", "flow"])
@pytest.mark.parametrize("law", ["uniform", "logit_normal"])
def test_timesteps_follow_their_law(path: str, law: str) -> None:
    config = DiffusionConfig(
        path=path, prediction="v", timesteps=law, logit_mean=0.5, logit_std=0.8
    )
    t = draw(config, 40_000, Draws("cpu", 0))
    again = draw(config, 40_000, Draws("cpu", 0))
    assert t.dtype == torch.float32 and torch.equal(t, again)
    share = t / (1000 if path == "ddpm" else 1)
    if path == "ddpm":
        assert torch.equal(t, t.round()) and t.min() >= 0 and t.max() <= 999
        share = share + 0.0005  # the middle of the step
    if law == "uniform":
        assert share.mean().item() == pytest.approx(0.5, abs=0.01)
        assert share.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.01)
    else:
        assert share.logit().mean().item() == pytest.approx(0.5, abs=0.02)
        assert share.logit().std().item() == pytest.approx(0.8, abs=0.02)


def test_flow_timesteps_are_shifted() -> None:
    plain = draw(DiffusionConfig(path="flow", prediction="flow"), 100, Draws("cpu", 3))
    config = DiffusionConfig(path="flow", prediction="flow", shift=3)
    assert torch.allclose(draw(config, 100, Draws("cpu", 3)), Flow(3.0).place(plain))


@pytest.mark.parametrize("path", PATHS)
@given(n=st.integers(1, 200), final=st.sampled_from(["zero", "sigma_min"]))
@settings(max_examples=20, deadline=None)
def test_schedules_run_from_noise_to_clean(path, n: int, final: str) -> None:
    s = make_schedule(path, n, final=final)
    assert len(s) == n and s.t.dtype == torch.float64
    assert s.t[0] == path.t_max and s.t[-1] == path.t_min
    assert (s.t.diff() < 0).all() and (s.sigma.diff() < 0).all() and (s.alpha.diff() > 0).all()
    if final == "zero":
        assert s.sigma[-1] == 0 and s.alpha[-1] == 1
    else:
        assert s.sigma[-1] == path.alpha_sigma(torch.tensor(path.t_min).double())[1]
    assert [p[0] for p in s.pairs()] == s.t[:-1].tolist()


def test_schedule_times_equal_diffusers() -> None:
    from diffusers import DPMSolverMultistepScheduler

    for spacing in ("linspace", "trailing"):
        for n in (4, 14, 20, 33):
            peer = DPMSolverMultistepScheduler(
                beta_start=1e-4, beta_end=0.02, timestep_spacing=spacing
            )
            peer.set_timesteps(n)
            ours = make_schedule(DDPM(), n, spacing=spacing).t[:-1]
            assert ours.tolist() == peer.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, -3, 1000])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(GessoError, match="num_inference_steps"):
        make_schedule(DDPM(), steps)


def test_noise_belongs_to_its_picture() -> None:
    def noise(*seeds: int) -> Tensor:
        return draw_noise((4, 3, 5), [torch.Generator().manual_seed(s) for s in seeds])

    together = noise(7, 8, 9)
    assert together.shape == (3, 4, 3, 5)
    assert torch.equal(noise(8), together[1:2]) and torch.equal(noise(9, 7), together[[2, 0]])
    assert not torch.equal(together[0], together[1])


def test_denoiser_gives_both_views_in_float32() -> None:
    path = Flow()

    def backbone(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        assert t.tolist() == [250.0, 500.0]
        return Prediction((2 * x).bfloat16(), {"variance": x.bfloat16(), "router": x.bfloat16()})

    x, t = torch.randn(2, 4, 3, 3), torch.tensor([0.25, 0.5])
    denoiser = Denoiser(backbone, path, "flow")
    out = denoiser.bind(Cond())(x, t)
    assert out.x0.dtype == out.noise.dtype == out.variance.dtype == torch.float32
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in path.alpha_sigma(t))
    assert torch.allclose(alpha * out.x0 + sigma * out.noise, x, atol=1e-5)
    assert torch.allclose(denoiser.value(out, t), (2 * x).bfloat16().float(), atol=1e-5)


# The variational bound.


def test_log_variance_spans_beta_tilde_to_beta() -> None:
    path, t = DDPM(), torch.tensor([0.0, 1.0, 500.0, 999.0])
    low, high = log_betas(path, t)
    ones = torch.ones(4, 2, 3, 3)
    assert torch.allclose(log_variance(-ones, path, t)[:, 0, 0, 0], low)
    assert torch.allclose(log_variance(ones, path, t)[:, 0, 0, 0], high)
    # beta~ = beta (1 - abar_{t-1}) / (1 - abar_t), computed from scratch in plain floats.
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    abar = [math.prod(1 - b for b in betas[: i + 1]) for i in range(501)]
    tilde = betas[500] * (1 - abar[499]) / (1 - abar[500])
    assert high[2].exp().item() == pytest.approx(betas[500], rel=1e-5)
    assert low[2].exp().item() == pytest.approx(tilde, rel=1e-4)
    assert low[0] == low[1]


def test_posterior_mean_equals_bayes() -> None:
    """q(x_{t-1} | x_t, x0) by multiplying the two Gaussians it comes from."""
    path, t = DDPM(), 321
    abar = path.log_alpha_bar.exp()
    beta, before = path.betas[t], abar[t - 1]
    x0, x = torch.tensor(0.7).double(), torch.tensor(-0.4).double()
    prior_mean, prior_var = before.sqrt() * x0, 1 - before  # of x_{t-1} given x0
    gain = (1 - beta).sqrt()  # x_t = gain x_{t-1} + sqrt(beta) noise
    precision = 1 / prior_var + gain**2 / beta
    mean = (prior_mean / prior_var + gain * x / beta) / precision
    found = posterior_mean(x0.view(1, 1, 1, 1), x.view(1, 1, 1, 1), path, torch.tensor([t]))
    assert found.item() == pytest.approx(mean.item(), rel=1e-6)
    low, _ = log_betas(path, torch.tensor([t]))
    assert low.exp().item() == pytest.approx(1 / precision.item(), rel=1e-5)


def test_kl_equals_torch_distributions() -> None:
    from torch.distributions import Normal, kl_divergence

    m1, v1, m2, v2 = torch.randn(4, 50)
    theirs = kl_divergence(Normal(m1, (v1 / 2).exp()), Normal(m2, (v2 / 2).exp()))
    assert torch.allclose(gaussian_kl(m1, v1, m2, v2), theirs, rtol=1e-4, atol=1e-5)


def test_discretised_likelihood_is_a_distribution() -> None:
    """The masses of all 256 bins add up to one, and each is the integral of the density."""
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    mean, logvar = torch.tensor(0.1).double(), torch.tensor(-3.0).double()
    mass = (-discretised_nll(x, mean, logvar)).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)
    grid = torch.linspace(x[100] - 1 / 255, x[100] + 1 / 255, 2001, dtype=torch.float64)
    density = torch.exp(-((grid - mean) ** 2) / (2 * logvar.exp())) / torch.sqrt(
        2 * math.pi * logvar.exp()
    )
    assert mass[100].item() == pytest.approx(torch.trapezoid(density, grid).item(), rel=1e-6)


def test_bound_equals_monte_carlo_and_trains_the_variance_alone() -> None:
    path = DDPM()
    torch.manual_seed(0)
    x0, x = torch.rand(3, 2, 4, 4) * 2 - 1, torch.randn(3, 2, 4, 4)
    t = torch.tensor([0.0, 40.0, 700.0])
    value = (x0 + 0.1 * torch.randn_like(x0)).requires_grad_()
    raw = torch.zeros_like(x0).requires_grad_()
    bits = vlb_bits(raw, value, x0, x, path, t)
    assert bits.shape == (3,)
    # KL as a mean of log-ratios over samples of the true reverse step, in bits.
    from torch.distributions import Normal

    with torch.no_grad():
        true = Normal(
            posterior_mean(x0, x, path, t), (log_betas(path, t)[0] / 2).exp().view(3, 1, 1, 1)
        )
        model = Normal(posterior_mean(value, x, path, t), (log_variance(raw, path, t) / 2).exp())
        z = true.sample((4000,))
        kl = (true.log_prob(z) - model.log_prob(z)).mean(0).flatten(1).mean(1) / math.log(2)
        nll = discretised_nll(x0, model.mean, 2 * model.stddev.log()).flatten(1).mean(1)
    assert torch.allclose(bits[1:], kl[1:], rtol=0.05, atol=2e-3)
    assert bits[0].item() == pytest.approx(nll[0].item() / math.log(2), rel=1e-4)
    bits.sum().backward()
    assert value.grad is None
    assert (raw.grad.flatten(1).abs().sum(1) > 0).all() and raw.grad.isfinite().all()
