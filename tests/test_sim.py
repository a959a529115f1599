"""Score implicit matching: its gradient in one dimension, its terms by hand, a run of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_fakes import Random, every_tensor, tiny_model, tiny_recipe

from gesso.config import Recipe
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.paths import Flow
from gesso.draws import Draws
from gesso.objectives.sim import SIM, Config, build
from gesso.pipeline import Pipeline
from gesso.train import launch
from gesso.train.loop import train
from gesso.train.parallel import Group
from gesso.types import Cond, GessoError, Prediction

FLOW = {"path": "flow", "prediction": "flow"}
ONE_STEP = {
    "sampler": "one_step",
    "timesteps": (0.7,),
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
}


def one_step(objective: dict[str, Any] | None = None, **train: Any) -> Recipe:
    parts = {"objective": {"name": "sim", **(objective or {})}, "diffusion": FLOW}
    return tiny_recipe(train, **parts, sample=ONE_STEP)


def objective(
    diffusion: dict[str, Any] | None = None, sample: dict[str, Any] | None = None, **options: Any
) -> tuple[SIM, Any]:
    torch.manual_seed(3)
    recipe = tiny_recipe(diffusion=diffusion or FLOW, sample=ONE_STEP | (sample or {}))
    model = tiny_model(recipe)
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
    recipe = one_step({"fake_steps": 2}, steps=1, ema=0.0, warmup=0)
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


def test_the_distance_is_told_beside_the_signed_loss() -> None:
    for options, distance in (
        ({"huber": 0.1}, lambda u2, n: (u2 + 0.1**2 * n).sqrt() - 0.1 * n**0.5),
        ({"huber": None}, lambda u2, n: u2),
        ({"divergence": "kl"}, lambda u2, n: u2 / 2),
    ):
        made, _ = objective(guidance_scale=1, **options)
        batch = Random().batch(0, 3, 0)
        both = made.captions.both(batch.cond)
        z, noise, t = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4), torch.full((3,), 0.5)
        with torch.no_grad():
            for p in made.roles["fake"].parameters():
                p.add_(0.1 * torch.randn_like(p))
            x0 = made.make(z, both[:3])
            x = made.teacher.noised(x0, noise, t)
            u = made.teacher.bind(both[:3])(x, t).x0 - made.fake.bind(both[:3])(x, t).x0
        found = float(made._generate(z, noise, t, both[:3], both).metrics["distance"])
        square = u.square().flatten(1).sum(1)
        assert found == pytest.approx(float(distance(square, u[0].numel()).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("diffusion", "start", "scale"),
    [
        (FLOW, {"timesteps": (0.7,), "start_noise": "time"}, 0.7),
        (FLOW, {"timesteps": (0.7,), "start_noise": "path"}, 1.0),
        ({"path": "ddpm"}, {"timesteps": (440,), "start_noise": "time"}, 2.5 / 7.25**0.5),
        (
            {"path": "edm", "prediction": "edm", "timesteps": "lognormal"},
            {"timesteps": (2.5,), "start_noise": "time"},
            2.5,
        ),
    ],
)
def test_it_paints_as_it_was_trained(
    diffusion: dict[str, Any], start: dict[str, Any], scale: float
) -> None:
    """The pipeline's picture is the generator's own, from noise of the level that was asked for.

    t = 440 of the ddpm path is noise level 2.5, the published start: sigma 2.5 / sqrt(1 + 2.5^2).
    """
    made, model = objective(diffusion, start | {"height": 32, "width": 32})
    model.image_encoder.channels, model.image_encoder.factor = 4, 8
    model.text_encoder.dropped = lambda _: ""
    assert made.scale == pytest.approx(scale, rel=2e-3)
    noise = torch.randn(2, 4, 4, 4)
    painted = Pipeline(model)(["", ""], latents=noise, output_type="latent").images
    with torch.no_grad():
        cond = model.text_encoder(model.text_encoder.prepare(["", ""]))
    size = torch.full((2, 2), 32.0)
    cond = cond.replace(size=size, aspect=size[:, :1] / size[:, 1:])
    with torch.no_grad():
        torch.testing.assert_close(painted, made.make(noise, cond))


def test_learned_variance_is_left_out() -> None:
    """PixArt's networks predict it; neither network's loss reads or teaches it."""
    made, model = objective({"path": "ddpm"}, {"timesteps": (440,)})
    channels = 4
    assert model.backbone.final_layer.linear.out_features == 2 * channels * 4  # patches of 2 x 2
    batch = Random().batch(0, 3, 0)
    for phase, learner in (("generate", "backbone"), ("fake", "fake")):
        before = made.loss(phase, batch, Draws("cpu", 1))
        before.loss.backward()
        layer = made.roles[learner].final_layer.linear  # type: ignore[union-attr]
        grad = layer.weight.grad.view(4, 2 * channels, -1)  # type: ignore[union-attr]
        assert grad[:, :channels].abs().sum() > 0 and grad[:, channels:].abs().sum() == 0
        with torch.no_grad():
            for role in ("backbone", "fake", "teacher"):
                weight = made.roles[role].final_layer.linear.weight  # type: ignore[union-attr]
                weight.view(4, 2 * channels, -1)[:, channels:] += 1  # type: ignore[operator]
        assert torch.equal(before.loss, made.loss(phase, batch, Draws("cpu", 1)).loss)


def test_resumed_is_never_stopped(tmp_path: Path) -> None:
    """Both networks, their averages and both optimisers, bit for bit."""

    def run(name: str, steps: int, resume: bool = False) -> dict[str, Tensor]:
        recipe = one_step(steps=steps, save_every=3)
        model = tiny_model(recipe)
        folder = tmp_path / name
        result = train(recipe, folder, model=model, dataset=Random(), resume=resume, quiet=True)
        return every_tensor(Path(result["checkpoint"]))

    whole, _ = run("whole", 5), run("parts", 3)
    parts = run("parts", 5, resume=True)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    for optimizer, network in (("generate", "backbone"), ("fake", "fake")):
        keys = [k for k in whole if f"optimizer.safetensors:{optimizer}|" in k]
        assert keys and all(f"|{network}." in k for k in keys)
    for part in ("ema", "weights"):
        for network in ("backbone", "fake"):
            assert any(f"{part}.safetensors:{network}." in k for k in whole)


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Each draws the whole batch's noise and takes its own rows, in both phases."""
    recipe = one_step(steps=3, batch_size=4)
    alone = train(recipe, tmp_path / "one", model=tiny_model(recipe), dataset=Random(), quiet=True)
    with launch.start(2, run_together, (recipe, tmp_path / "two"), 60) as group:
        two = run_together(group, recipe, tmp_path / "two")
    a, b = (every_tensor(Path(r["checkpoint"])) for r in (alone, two))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)


def run_together(group: Group, recipe: Recipe, run: Path) -> dict[str, Any]:
    return train(recipe, run, model=tiny_model(recipe), dataset=Random(), group=group, quiet=True)


def test_bad_times_are_refused() -> None:
    with pytest.raises(GessoError, match="not below"):
        objective(earliest=0.9, latest=0.5)
    for wrong in ({"sampler": "euler"}, {"timesteps": None}, {"guidance_scale": 3.0}):
        with pytest.raises(GessoError, match="a generator of one step"):
            objective(sample=wrong)
