"""SD3 around its network: timestep laws, shift, DPM++ and Euler on flows, skipping, joined text."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from gesso.backbones.mmdit import Config, MMDiT
from gesso.conditions import Captions
from gesso.config import DiffusionConfig, build, load_recipe, module
from gesso.diffusion import timesteps
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.guidance import guide
from gesso.diffusion.noise import draw_noise
from gesso.diffusion.paths import DDPM, Flow, make_path
from gesso.diffusion.schedules import make_schedule
from gesso.draws import Draws
from gesso.loading import find
from gesso.model import Model
from gesso.objectives.denoise import Config as DenoiseConfig
from gesso.objectives.denoise import build as build_objective
from gesso.pipeline import Pipeline
from gesso.systems import miniature
from gesso.train.run import with_vocabulary
from gesso.train.start import make_model
from gesso.types import Batch, Cond, Denoised, GessoError, Prediction

N = 40_000
BAND = 1.95 / N**0.5  # of Kolmogorov and Smirnov's distance, passed by chance once in a thousand


def distance(sample: Tensor, cdf: Tensor) -> float:
    """The largest gap between the empirical and a given distribution function, at sorted points."""
    steps = torch.arange(1, len(sample) + 1, dtype=torch.float64) / len(sample)
    return float(torch.maximum((steps - cdf).abs(), (steps - 1 / len(sample) - cdf).abs()).max())


def drawn(seed: int = 0, **options: object) -> Tensor:
    config = DiffusionConfig(path="flow", prediction="flow", **options)  # type: ignore[arg-type]
    return timesteps.draw(config, N, Draws("cpu", seed)).double().sort().values


def mode_cdf(t: Tensor, scale: float) -> Tensor:
    """1 - u where t(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u) falls; u by bisection."""
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(60):
        u = (low + high) / 2
        value = 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
        low, high = torch.where(value > t, u, low), torch.where(value > t, high, u)
    return 1 - low


def cosmap_cdf(t: Tensor, _: float) -> Tensor:
    """The integral of 2 / (pi - 2 pi t + 2 pi t^2) from 0, by the trapezoid rule."""
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    density = 2 / (math.pi - 2 * math.pi * grid + 2 * math.pi * grid**2)
    whole = torch.cat([grid.new_zeros(1), torch.cumulative_trapezoid(density, grid)])
    assert float(whole[-1]) == pytest.approx(1, abs=1e-6)
    return whole[(t * 20_000).round().long()]


def normal_cdf(t: Tensor, _: float) -> Tensor:
    """Of the logistic of a normal variable."""
    return torch.special.ndtr(torch.logit(t))


@pytest.mark.parametrize(
    ("law", "scale", "cdf"),
    [
        ("mode", 1.29, mode_cdf),
        ("mode", -0.7, mode_cdf),
        ("cosmap", 0.0, cosmap_cdf),
        ("logit_normal", 0.0, normal_cdf),
        ("uniform", 0.0, lambda t, _: t),
    ],
)
def test_laws_have_their_distribution(law: str, scale: float, cdf) -> None:
    t = drawn(timesteps=law, mode_scale=scale)
    assert distance(t, cdf(t, scale)) < BAND
    others = [mode_cdf(t, 1.29), mode_cdf(t, -0.7), cosmap_cdf(t, 0), normal_cdf(t, 0), t]
    told_apart = sorted(distance(t, other) for other in others)
    assert told_apart[1] > 3 * BAND  # only one of them fits


def test_mode_falls_all_the_way_for_every_allowed_scale() -> None:
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for scale in (-1.0, 0.0, 1.29, 2 / (math.pi - 2)):
        t = timesteps.mode(u, scale)
        assert t[0] == 1 and float(t[-1]) == pytest.approx(0, abs=1e-12)
        assert (t.diff() <= 1e-12).all()
    with pytest.raises(ValueError, match="mode_scale"):
        DiffusionConfig(mode_scale=1.8)


def flow(**options: object) -> DiffusionConfig:
    return DiffusionConfig(path="flow", prediction="flow", **options)  # type: ignore[arg-type]


def test_the_shift_keeps_the_uncertainty_of_a_larger_picture() -> None:
    """Eq. 23 comes from t / (1 - t) sqrt(1 / pixels), the noise left in a flat picture's mean."""
    u = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    small = make_path(flow(shift_base=64), 64 * 64).place(u)
    large = make_path(flow(shift_base=64), 128 * 96).place(u)
    torch.testing.assert_close(small, u)
    spread = [t / (1 - t) / n**0.5 for t, n in ((small, 64 * 64), (large, 128 * 96))]
    torch.testing.assert_close(spread[0], spread[1])
    both = make_path(flow(shift_base=64, shift=3.0), 256 * 256).place(u)
    torch.testing.assert_close(both, Flow(12.0).place(u))
    torch.testing.assert_close(make_path(flow(shift=3.0), 256 * 256).place(u), Flow(3.0).place(u))
    with pytest.raises(GessoError, match="shift_base applies to path: flow"):
        make_path(DiffusionConfig(shift_base=64))


WORDS = ["a", "red", "blue", "circle", "square", "star", "two"]
LEARNED = {"name": "learned", "words": WORDS, "depth": 1, "heads": 2}
JOINED = {
    "name": "joined",
    "encoders": [
        [LEARNED | {"width": 8, "max_tokens": 6}, LEARNED | {"width": 12, "max_tokens": 6}],
        [LEARNED | {"width": 24, "max_tokens": 9}],
    ],
}


def model(*overrides: str, **parts: object) -> Model:
    recipe = miniature("sd3", "backbone.depth=2", "backbone.hidden_size=32", *overrides)
    found = Model.from_recipe(recipe.model_copy(update={"text_encoder": LEARNED, **parts}))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in found.backbone.parameters():
            p.normal_(std=0.2)
    return found


def test_training_and_painting_shift_by_the_size_of_the_picture() -> None:
    own = model("diffusion.shift_base=32", "diffusion.shift=1")
    assert float(own.path_at(64, 64).place(torch.tensor(0.5))) == pytest.approx(2 / 3)
    painted = Pipeline(own)._schedule(own.sample.model_copy(update={"height": 64, "width": 64}), 1)
    base = Pipeline(own)._schedule(own.sample.model_copy(update={"height": 32, "width": 32}), 1)
    torch.testing.assert_close(painted.t, Flow(2.0).place(base.t))
    seen: list[Tensor] = []
    objective = build_objective(DenoiseConfig(), own)
    objective.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    for side in (8, 16):  # latents of 32 and 64 pixels
        batch = Batch(["a"] * 4, own.text_encoder.prepare(["a"] * 4), torch.zeros(4, 4, side, side))
        objective.loss("denoise", batch, Draws("cpu", 1))
    torch.testing.assert_close(seen[1] / 1000, Flow(2.0).place(seen[0] / 1000))


# Solvers on a Gaussian flow, whose velocity is known.


def velocity(x: Tensor, t: Tensor, cond: object = None) -> Prediction:
    """noise - x0 as it is expected at x_t, for x0 of N(0.3, 0.25); t in 0..1000."""
    t = (t / 1000).view(-1, 1, 1, 1)
    gain = (1 - t) * 0.25 / ((1 - t) ** 2 * 0.25 + t**2)
    x0 = 0.3 + gain * (x - (1 - t) * 0.3)
    return Prediction((x - x0) / t)


def start() -> Tensor:
    return draw_noise((4, 6, 6), [torch.Generator().manual_seed(s) for s in (1, 2)])


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [5, 14, 28])
def test_dpm_solver_on_flows_equals_diffusers(steps: int, shift: float) -> None:
    from diffusers import DPMSolverMultistepScheduler

    peer = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
    )
    peer.set_timesteps(steps)
    x = theirs = start()
    for t, sigma in zip(peer.timesteps, peer.sigmas, strict=False):
        value = velocity(theirs, 1000 * sigma.float().expand(2)).value  # its times are rounded
        theirs = peer.step(value, t, theirs).prev_sample
    schedule = make_schedule(Flow(shift), steps, timesteps=peer.sigmas[:-1].tolist())
    denoise = Denoiser(velocity, Flow(shift), "flow").bind(Cond())
    ours = module("samplers", "dpm_solver").sample(denoise, x, schedule)
    assert len(schedule) == steps and (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    first_order = module("samplers", "euler").sample(denoise, x, schedule)
    assert (first_order - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 5, 28])
def test_euler_with_sd3s_times_equals_diffusers(steps: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    peer = FlowMatchEulerDiscreteScheduler(shift=shift)
    peer.set_timesteps(steps)
    x = theirs = start()
    for t in peer.timesteps:
        theirs = peer.step(velocity(theirs, t.float().expand(2)).value, t, theirs).prev_sample
    schedule = make_schedule(Flow(shift), steps, "sd3")
    torch.testing.assert_close(schedule.sigma.float(), peer.sigmas, atol=1e-6, rtol=0)
    denoise = Denoiser(velocity, Flow(shift), "flow").bind(Cond())
    ours = module("samplers", "euler").sample(denoise, x, schedule)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    with pytest.raises(GessoError, match="sd3 is one of path: flow"):
        make_schedule(DDPM(), steps, "sd3")


# Skip-layer guidance.


def rows(n: int = 2) -> Cond:
    g = torch.Generator().manual_seed(3)
    return Cond(tokens=torch.randn(n, 5, 128, generator=g), pooled=torch.randn(n, 128, generator=g))


def network(depth: int = 3) -> MMDiT:
    torch.manual_seed(1)
    found = MMDiT(Config(depth=depth, hidden_size=32))
    with torch.no_grad():
        for p in found.parameters():
            p.normal_(std=0.2)
    return found.eval()


@torch.no_grad()
def test_skipping_is_the_formula_in_its_window_and_leaves_nothing_behind() -> None:
    full = network()
    short = copy.deepcopy(full)
    del short.joint_blocks[1]
    denoiser, x = Denoiser(full, Flow(), "flow"), torch.randn(2, 4, 8, 8)
    schedule = make_schedule(Flow(), 20)
    options = {"guidance_scale": 4.0, "schedule": schedule}
    cond, null = rows(), rows().silent()
    skipping = guide(denoiser, cond, null, **options, skip_layers=[1], skip_layer_scale=2.5)
    plain = guide(denoiser, cond, null, **options)
    for step in range(20):
        t = torch.full((2,), float(schedule.t[step]))
        value = denoiser.target(*vars_of(plain(x, t)), t)
        if 20 * 0.01 < step < 20 * 0.2:
            away = full(x, 1000 * t, cond).value - short(x, 1000 * t, cond).value
            assert away.abs().max() > 1e-3
            value = value + 2.5 * away
        found = skipping(x, t)
        torch.testing.assert_close(denoiser.target(*vars_of(found), t), value, atol=2e-5, rtol=1e-4)
    assert not any(block._forward_hooks for block in full.joint_blocks)
    with pytest.raises(GessoError, match=r"blocks \[3\], but this backbone has 3"):
        guide(denoiser, cond, null, **options, skip_layers=[3])


def vars_of(denoised: Denoised) -> tuple[Tensor, Tensor]:
    return denoised.x0, denoised.noise


# Several text encoders.


def test_joined_features_stand_where_they_belong() -> None:
    torch.manual_seed(0)
    encoder = build("encoders.text", JOINED)
    assert (encoder.dim, encoder.pooled_dim, encoder.length) == (24, 44, 15)
    cond = encoder(encoder.prepare(["a red circle", "two blue stars"]))
    assert cond.mask is None and cond.tokens.shape == (2, 15, 24)
    parts = []
    for part in encoder.parts:
        ids = part.prepare(["a red circle", "two blue stars"]).ids
        ids = torch.nn.functional.pad(ids, (0, part.max_tokens - ids.shape[1]))
        parts.append(part(Cond(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))))
    torch.testing.assert_close(cond.tokens[:, :6, :8], parts[0].tokens)
    torch.testing.assert_close(cond.tokens[:, :6, 8:20], parts[1].tokens)
    assert (cond.tokens[:, :6, 20:] == 0).all()
    torch.testing.assert_close(cond.tokens[:, 6:], parts[2].tokens)
    torch.testing.assert_close(cond.pooled, torch.cat([p.pooled for p in parts], dim=1))
    assert encoder.dropped("a red circle a red circle a red circle") == "circle"


@pytest.mark.parametrize("null", ["empty", "zero"])
def test_encoders_are_dropped_independently(null: str) -> None:
    torch.manual_seed(0)
    encoder, n, share = build("encoders.text", JOINED), 2000, 0.464
    captions = Captions(encoder, None, null)  # type: ignore[arg-type]
    cond = encoder.prepare(["a red circle"] * n)
    with torch.no_grad():
        full, mixed = captions.encode(cond), captions.dropped(cond, share, Draws("cpu", 4))
        nothing = encoder(encoder.prepare([""])).tokens
    if null == "zero":
        nothing = torch.zeros_like(nothing)
    gone = []
    for place in encoder.places:
        own = (slice(None), place.tokens, place.width)
        kept = (mixed.tokens[own] == full.tokens[own]).flatten(1).all(1)
        lost = torch.isclose(mixed.tokens[own], nothing[own], atol=1e-5).flatten(1).all(1)
        assert (kept ^ lost).all()
        pooled = (mixed.pooled[:, place.pooled] == full.pooled[:, place.pooled]).all(1)
        assert torch.equal(pooled, kept)
        gone.append(lost.double())
    drops = torch.stack(gone)  # [3, n]
    assert (drops.mean(1) - share).abs().max() < 4 * (share * (1 - share) / n) ** 0.5
    assert torch.corrcoef(drops).fill_diagonal_(0).abs().max() < 4 / n**0.5
    assert drops.prod(0).mean() == pytest.approx(share**3, abs=0.03)  # 10 % without any


def test_a_model_learns_with_several_encoders_and_paints_without_words() -> None:
    own = model(text_encoder=JOINED, objective={"name": "denoise"})
    assert (own.backbone.config.text_dim, own.backbone.config.pooled_dim) == (24, 44)
    objective = build_objective(DenoiseConfig(caption_dropout=0.464, null="zero"), own)
    batch = Batch(["a"] * 4, own.text_encoder.prepare(["a red star"] * 4), torch.randn(4, 4, 8, 8))
    loss = objective.loss("denoise", batch, Draws("cpu", 1)).loss
    loss.backward()
    assert all(p.grad is not None for part in own.text_encoder.parts for p in part.parameters())
    pipe = Pipeline(own)
    shared = {"seed": 1, "num_inference_steps": 2, "output_type": "latent", "guidance_scale": 4.0}
    own.sample.null = "zero"
    zero = pipe("a red star", **shared).images
    own.sample.null = "empty"
    assert (pipe("a red star", **shared).images - zero).abs().max() > 1e-4


def test_joined_encoders_get_their_words_from_the_source() -> None:
    bare = {k: v for k, v in LEARNED.items() if k != "words"}
    recipe = miniature("sd3").model_copy(
        update={"text_encoder": {"name": "joined", "encoders": [[bare], [bare | {"width": 8}]]}}
    )
    groups = with_vocabulary(recipe).text_encoder["encoders"]
    assert "circle" in groups[0][0]["words"] and groups[0][0]["words"] == groups[1][0]["words"]
    assert with_vocabulary(with_vocabulary(recipe)) == with_vocabulary(recipe)
    broken = recipe.model_copy(update={"text_encoder": {"name": "joined", "encoders": [[{}]]}})
    with pytest.raises(GessoError, match="lacks 'name'"):
        with_vocabulary(broken)


def test_encoders_that_do_not_go_together_are_refused() -> None:
    short = LEARNED | {"width": 8, "max_tokens": 4}
    with pytest.raises(GessoError, match=r"max_tokens \[6, 4\]"):
        build("encoders.text", {"name": "joined", "encoders": [[JOINED["encoders"][0][0], short]]})
    silent = {"name": "silent", "width": 8, "max_tokens": 4}
    with pytest.raises(GessoError, match="frozen and trained"):
        build("encoders.text", {"name": "joined", "encoders": [[short], [silent]]})


# A PixArt as the start of an MMDiT.


@torch.no_grad()
def test_an_mmdit_from_a_pixart_paints_as_it_does_without_words() -> None:
    changes = ["init=scenes", "convert={name: joint_attention}", "backbone.qk_norm=false"]
    recipe = with_vocabulary(load_recipe("sd3", [*changes, "backbone.table_size=8"]))
    mmdit, pixart = make_model(recipe).backbone, Model.load(find("scenes")).backbone
    for block in pixart.blocks:  # as its own cross-attention starts
        block.cross_attn.proj.weight.zero_()
        block.cross_attn.proj.bias.zero_()
    x, t, cond = torch.randn(2, 4, 16, 16), torch.tensor([100.0, 900.0]), rows()
    cond.mask = torch.zeros(2, 5, dtype=torch.bool)
    ours, theirs = mmdit(x, t, cond).value, pixart(x, t, cond).value
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    with pytest.raises(GessoError, match="with qk_norm false"):
        make_model(with_vocabulary(load_recipe("sd3", changes[:2])))
