"""Samplers on a Gaussian, where the exact denoiser and the exact solution are known; guidance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gesso.config import module
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.guidance import guide
from gesso.diffusion.noise import draw_noise
from gesso.diffusion.paths import DDPM, EDM, Flow
from gesso.diffusion.schedules import Schedule, make_schedule
from gesso.types import Cond, Denoise, GessoError, Prediction

MEAN, STD = 0.3, 0.5  # of the clean latents
NAMES = ["dpm_solver", "ddim", "euler", "heun"]
PATHS = [DDPM(), Flow(), Flow(3.0)]


def exact(path) -> Denoise:
    """The best possible denoiser of N(MEAN, STD^2) latents."""

    def backbone(x: Tensor, model_time: Tensor, cond: Cond) -> Prediction:
        t = model_time / path.model_time(torch.ones(1))
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in path.alpha_sigma(t))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return Prediction(MEAN + gain * (x - alpha * MEAN))

    return Denoiser(backbone, path, "x0").bind(Cond())


def solution(x: Tensor, schedule: Schedule) -> Tensor:
    """Where the probability-flow ODE takes x: a Gaussian's quantiles stay what they are."""

    def spread(i: int) -> Tensor:
        return (schedule.alpha[i] ** 2 * STD**2 + schedule.sigma[i] ** 2).sqrt()

    z = (x - schedule.alpha[0] * MEAN) / spread(0)
    return schedule.alpha[-1] * MEAN + spread(-1) * z


def noise(*seeds: int) -> Tensor:
    return draw_noise((4, 6, 6), [torch.Generator().manual_seed(s) for s in seeds])


def error(name: str, path, steps: int) -> float:
    schedule = make_schedule(path, steps, final="sigma_min")
    x = noise(1, 2)
    found, wanted = module("samplers", name).sample(exact(path), x, schedule), solution(x, schedule)
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpm_solver", 2)]
)
def test_samplers_converge_at_their_order(name: str, order: int, path) -> None:
    coarse, fine = error(name, path, 100), error(name, path, 400)
    assert coarse < (0.03 if order == 1 else 0.015)
    # Four times the steps cut the error by 4^order; the singular ends blunt that a little.
    assert coarse / fine > (3 if order == 1 else 5)


@pytest.mark.parametrize("steps", [14, 20])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_dpm_solver_equals_diffusers(steps: int, final: str) -> None:
    from diffusers import DPMSolverMultistepScheduler

    peer = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, final_sigmas_type=final, solver_order=2
    )
    peer.set_timesteps(steps)
    x = theirs = noise(1, 2)
    denoise = exact(DDPM())
    for t in peer.timesteps:
        theirs = peer.step(denoise(theirs, t.float().expand(2)).noise, t, theirs).prev_sample
    schedule = make_schedule(DDPM(), steps, final=final)  # type: ignore[arg-type]
    ours = module("samplers", "dpm_solver").sample(denoise, x, schedule)
    # Relative, as diffusers' float32 table of 1 - alpha-bar is only that exact at its clean end.
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("steps", [8, 12, 20])
def test_dpm_solver_with_the_authors_times_equals_its_formulas(steps: int) -> None:
    """DPM-Solver++ (2M) written out in the half-log-SNR lambda, as Lu et al. 2022 do."""
    path, denoise, x = DDPM(), exact(DDPM()), noise(1, 2)
    times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64)  # tau; the network's t follows

    def at(tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grid = torch.arange(1, 1001, dtype=torch.float64) / 1000
        i = int(torch.searchsorted(grid, tau).clamp(1, 999))
        share = (tau - grid[i - 1]) / (grid[i] - grid[i - 1])
        log_alpha = torch.lerp(path.log_alpha_bar[i - 1], path.log_alpha_bar[i], share) / 2
        sigma = (1 - (2 * log_alpha).exp()).sqrt()
        return log_alpha.exp(), sigma, log_alpha - sigma.log()

    wanted, known = x.double(), []
    for k in range(1, steps + 1):
        (_, s0, l0), (a1, s1, l1) = at(times[k - 1]), at(times[k])
        t = (times[k - 1] - 1e-3) * 1000
        known.append(denoise(wanted.float(), t.float().expand(2)).x0.double())
        h, mean = l1 - l0, known[-1]
        if k > 1 and not (k == steps and steps < 10):
            r = (l0 - at(times[k - 2])[2]) / h
            mean = known[-1] + (known[-1] - known[-2]) / (2 * r)
        wanted = s1 / s0 * wanted - a1 * torch.expm1(-h) * mean
    schedule = make_schedule(path, steps, "continuous", "sigma_min")
    ours = module("samplers", "dpm_solver").sample(denoise, x, schedule)
    assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    rounded = make_schedule(path, steps, "linspace", "sigma_min")
    other = module("samplers", "dpm_solver").sample(denoise, x, rounded)
    assert (other - wanted).abs().max() > 1e-5 * wanted.abs().max()


def test_repainting_takes_the_last_steps_as_diffusers_does() -> None:
    from diffusers import DPMSolverMultistepScheduler

    peer = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02)
    peer.set_timesteps(20)
    start = 20 - int(20 * 0.6)
    peer.set_begin_index(start)
    x = theirs = noise(1, 2)
    denoise = exact(DDPM())
    for t in peer.timesteps[start:]:
        theirs = peer.step(denoise(theirs, t.float().expand(2)).noise, t, theirs).prev_sample
    schedule = make_schedule(DDPM(), 20, strength=0.6)
    assert len(schedule) == 12
    ours = module("samplers", "dpm_solver").sample(denoise, x, schedule)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


# Consistency models and one step.


def lcm_peer(steps: int, strength: float = 1.0):
    from diffusers import LCMScheduler

    peer = LCMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    peer.set_timesteps(steps, strength=strength)
    return peer


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("strength", [1.0, 0.55])
def test_lcm_times_equal_diffusers(steps: int, strength: float) -> None:
    ours = make_schedule(DDPM(), steps, "lcm", strength=strength)
    assert ours.t[:-1].tolist() == lcm_peer(steps, strength).timesteps.tolist()


def test_lcm_times_of_the_authors() -> None:
    def times(n: int) -> list[float]:
        return make_schedule(DDPM(), n, "lcm_reference").t[:-1].tolist()

    assert times(4) == [999, 759, 519, 279]
    assert times(1) == [999]
    assert times(8) == [999 - 120 * i for i in range(8)]
    assert make_schedule(DDPM(), 4, "lcm").t[:-1].tolist() == [999, 759, 499, 259]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_equals_diffusers(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.schedulers import scheduling_lcm

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in (11, 12)]

    theirs_from, ours_from = generators(), generators()
    monkeypatch.setattr(
        scheduling_lcm, "randn_tensor", lambda *_, **__: draw_noise((4, 6, 6), theirs_from)
    )
    peer = lcm_peer(steps)
    x = theirs = noise(1, 2)
    denoise = exact(DDPM())
    for t in peer.timesteps:
        eps = denoise(theirs, t.float().expand(2)).noise
        theirs = peer.step(eps, t, theirs).prev_sample
    schedule = make_schedule(DDPM(), steps, "lcm")
    ours = module("samplers", "lcm").sample(denoise, x, schedule, generator=ours_from)
    # At t = 999, x0 = (x - sigma eps) / 0.0064 magnifies the rounding of eps in theirs.
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("t", [0.0, 19.0, 259.0, 999.0])
def test_lcm_boundary_condition(t: float) -> None:
    skip, out = module("samplers", "lcm").boundary(t)
    theirs = lcm_peer(4).get_scalings_for_boundary_condition_discrete(torch.tensor(t).double())
    assert (skip, out) == pytest.approx([float(v) for v in theirs], rel=1e-6)
    assert skip + out**2 == pytest.approx(1)  # both are shares of (10 t)^2 + 1/4


def test_lcm_pictures_do_not_depend_on_their_neighbours() -> None:
    lcm, schedule = module("samplers", "lcm"), make_schedule(DDPM(), 4, "lcm")
    g = [torch.Generator().manual_seed(s) for s in (1, 2, 3)]
    together = lcm.sample(exact(DDPM()), noise(1, 2, 3), schedule, generator=g)
    g = [torch.Generator().manual_seed(2)]
    alone = lcm.sample(exact(DDPM()), noise(2), schedule, generator=g)
    assert torch.allclose(alone, together[1:2], atol=1e-6)
    with pytest.raises(GessoError, match="each of 3 pictures"):
        lcm.sample(exact(DDPM()), noise(1, 2, 3), schedule, generator=g)


def test_one_step_equals_the_formula_and_diffusers() -> None:
    from diffusers import DDPMScheduler

    peer = DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    peer.set_timesteps(timesteps=[400])
    x, denoise, t = noise(1, 2), exact(DDPM()), torch.full((2,), 400.0)
    eps = denoise(x, t).noise
    schedule = make_schedule(DDPM(), 1, timesteps=[400])
    ours = module("samplers", "one_step").sample(denoise, x, schedule)
    alpha_bar = DDPM().log_alpha_bar.exp()[400].item()
    assert alpha_bar == pytest.approx(0.1936, abs=1e-4)
    wanted = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    assert torch.allclose(ours, wanted, atol=1e-5)
    theirs = peer.step(eps, torch.tensor(400), x).prev_sample
    assert torch.allclose(ours, theirs, atol=1e-5)
    with pytest.raises(GessoError, match="in one step"):
        module("samplers", "one_step").sample(denoise, x, make_schedule(DDPM(), 2))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timesteps": [400, 500]}, "do not fall"),
        ({"timesteps": [1200]}, "do not fall from 999"),
        ({"timesteps": []}, "do not fall"),
        ({"strength": 0.0}, "strength 0.0 is not above 0"),
        ({"strength": 0.1}, "leaves none of 4 steps: give at least 0.25"),
        ({"spacing": "lcm", "strength": 0.05}, "only 2 times were distilled"),
    ],
)
def test_impossible_times_are_refused(options, says: str) -> None:
    with pytest.raises(GessoError, match=says):
        make_schedule(DDPM(), 4, **options)
    with pytest.raises(GessoError, match="ddpm and flow, not by edm"):
        make_schedule(EDM(0.5), 4, "lcm")


def test_consistency_models_of_the_flow_path_have_shares_of_it() -> None:
    schedule = make_schedule(Flow(shift=3), 4, "lcm", original_inference_steps=8)
    assert schedule.t.tolist() == [3 * u / (1 + 2 * u) for u in (1, 0.75, 0.5, 0.25, 0)]
    assert torch.equal(schedule.time, 1000 * schedule.t)


def test_ddim_equals_diffusers() -> None:
    from diffusers import DDIMScheduler

    peer = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="trailing"
    )
    peer.set_timesteps(20)
    x = theirs = noise(1, 2)
    denoise = exact(DDPM())
    for t in peer.timesteps:
        theirs = peer.step(denoise(theirs, t.float().expand(2)).noise, t, theirs).prev_sample
    schedule = make_schedule(DDPM(), 20, spacing="trailing")
    ours = module("samplers", "ddim").sample(denoise, x, schedule)
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("path", [DDPM(), Flow()])
def test_ancestral_ddim_keeps_the_distribution(path) -> None:
    schedule = make_schedule(path, 200)
    g = [torch.Generator().manual_seed(5)]
    x = torch.randn(1, 4, 50, 50, generator=torch.Generator().manual_seed(6))
    out = module("samplers", "ddim").sample(exact(path), x, schedule, generator=g, eta=1.0)
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert out.std().item() == pytest.approx(STD, rel=0.04)
    plain = module("samplers", "ddim").sample(exact(path), x, schedule)
    assert not torch.allclose(out, plain, atol=0.1)


def test_ancestral_ddim_needs_a_generator_for_each_picture() -> None:
    ddim, schedule = module("samplers", "ddim"), make_schedule(DDPM(), 4)
    with pytest.raises(GessoError, match="2 pictures"):
        ddim.sample(exact(DDPM()), noise(1, 2), schedule, eta=0.5)
    g = [torch.Generator().manual_seed(s) for s in (1, 2)]
    both = ddim.sample(exact(DDPM()), noise(1, 2), schedule, eta=0.5, generator=g)
    g = [torch.Generator().manual_seed(2)]
    alone = ddim.sample(exact(DDPM()), noise(2), schedule, eta=0.5, generator=g)
    assert torch.allclose(both[1:], alone, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_finite_and_end_on_the_estimate(name: str, path, steps: int) -> None:
    seen: list[tuple[int, Tensor]] = []
    x0 = module("samplers", name).sample(
        exact(path), noise(3), make_schedule(path, steps), callback=lambda i, x: seen.append((i, x))
    )
    assert x0.isfinite().all() and x0.dtype == torch.float32
    assert [i for i, _ in seen] == list(range(steps))
    assert torch.allclose(seen[-1][1], x0, atol=1e-5)  # at sigma = 0 the last estimate remains


@pytest.mark.parametrize("name", NAMES)
def test_pictures_do_not_depend_on_their_neighbours(name: str) -> None:
    schedule = make_schedule(Flow(), 5)
    sample = module("samplers", name).sample
    together = sample(exact(Flow()), noise(1, 2, 3), schedule)
    assert torch.allclose(sample(exact(Flow()), noise(2), schedule), together[1:2], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_noise_is_sampled_in_float32(name: str) -> None:
    dtypes = set()

    def denoise(x: Tensor, t: Tensor):
        dtypes.add((x.dtype, t.dtype))
        return exact(Flow())(x, t)

    out = module("samplers", name).sample(denoise, noise(1).bfloat16(), make_schedule(Flow(), 3))
    assert dtypes == {(torch.float32, torch.float32)} and out.dtype == torch.float32


# Guidance.

SCHEDULE = make_schedule(DDPM(), 20)


class Backbone:
    """Predicts x plus the mean of its text; counts rows and calls."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        self.rows.append(len(x))
        self.times.append(t[0].item())
        mask = cond.mask[..., None]
        text = (cond.tokens * mask).sum(1) / mask.sum(1)  # [B, C]
        value = x * (1 + text.mean(1).view(-1, 1, 1, 1)) + text[..., None, None]
        return Prediction(value, {"variance": value + 1})


def conditions(batch: int = 3) -> tuple[Cond, Cond]:
    g = torch.Generator().manual_seed(0)
    cond = Cond(tokens=torch.randn(batch, 6, 4, generator=g), mask=torch.ones(batch, 6).bool())
    null = Cond(tokens=torch.randn(batch, 2, 4, generator=g), mask=torch.ones(batch, 2).bool())
    return cond, null


def test_guidance_equals_two_passes_on_every_channel() -> None:
    (cond, null), backbone = conditions(), Backbone()
    denoiser = Denoiser(backbone, DDPM(), "epsilon")
    x, t = noise(1, 2, 3), torch.full((3,), 500.0)
    with_cond, without = denoiser.bind(cond)(x, t), denoiser.bind(null)(x, t)
    backbone.rows.clear()
    out = guide(denoiser, cond, null, guidance_scale=4.5, schedule=SCHEDULE)(x, t)
    assert backbone.rows == [6]  # one batch of both
    wanted = without.noise + 4.5 * (with_cond.noise - without.noise)
    assert torch.allclose(out.noise, wanted, atol=1e-5)
    assert (out.noise - with_cond.noise).abs().amin((0, 2, 3)).min() > 0  # all four channels
    assert torch.allclose(out.x0, without.x0 + 4.5 * (with_cond.x0 - without.x0), rtol=1e-3)
    assert torch.equal(out.variance, with_cond.variance)


def test_scale_one_is_conditional_and_skips_the_null_branch() -> None:
    (cond, null), backbone = conditions(), Backbone()
    denoiser = Denoiser(backbone, DDPM(), "epsilon")
    x, t = noise(1, 2, 3), torch.full((3,), 500.0)
    out = guide(denoiser, cond, null, guidance_scale=1.0, schedule=SCHEDULE)(x, t)
    assert backbone.rows == [3]
    assert torch.equal(out.noise, denoiser.bind(cond)(x, t).noise)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [7, 10])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.8), (0.0, 0.5), (0.5, 1.0), (0.4, 0.4)])
def test_guidance_interval_is_a_share_of_the_steps(path, steps: int, interval) -> None:
    (cond, null), backbone = conditions(1), Backbone()
    schedule = make_schedule(path, steps)
    denoise = guide(
        Denoiser(backbone, path, "v"),
        cond,
        null,
        guidance_scale=3.0,
        schedule=schedule,
        interval=interval,
    )
    module("samplers", "euler").sample(denoise, noise(1), schedule)
    start, end = (round(share * steps) for share in interval)
    assert backbone.rows == [2 if start <= i < end else 1 for i in range(steps)]


@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescaling_restores_the_spread(phi: float) -> None:
    (cond, null), path = conditions(), Flow()
    denoiser = Denoiser(Backbone(), path, "v")
    x, t = noise(1, 2, 3), torch.full((3,), 0.6)

    def value(rescale: float, scale: float) -> Tensor:
        denoise = guide(
            denoiser, cond, null, guidance_scale=scale, schedule=SCHEDULE, rescale=rescale
        )
        return denoiser.value(denoise(x, t), t)

    def std(v: Tensor) -> Tensor:
        return v.flatten(1).std(1)

    plain, conditional, rescaled = value(0, 6.0), value(0, 1.0), value(phi, 6.0)
    wanted = phi * std(conditional) + (1 - phi) * std(plain)
    assert torch.allclose(std(rescaled), wanted, rtol=1e-4)
    assert not torch.allclose(std(plain), std(conditional), rtol=0.1)
