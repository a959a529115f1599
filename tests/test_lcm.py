"""Latent consistency distillation: the loss by hand, what learns, and what it does to a model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from train_fakes import Random, tiny_model, tiny_recipe

from gesso.conditions import Captions
from gesso.config import module
from gesso.diffusion.consistency import boundary, grid
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.paths import DDPM, EDM, Flow
from gesso.diffusion.schedules import Schedule
from gesso.draws import Draws
from gesso.objectives.lcm import LCM, Config, build
from gesso.train.loop import train
from gesso.types import Cond, GessoError

FLOW = {"path": "flow", "prediction": "flow"}


def objective(diffusion: dict[str, Any] | None = None, **options: Any) -> tuple[LCM, Any]:
    model = tiny_model(tiny_recipe(diffusion=diffusion or {}))
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return build(Config(**options), model), model


def test_grid_is_pixarts() -> None:
    times = grid(DDPM(), 50)
    assert times[:3].tolist() == [0, 19, 39] and times[-1] == 999 and len(times) == 51
    assert grid(Flow(), 4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert float(boundary(19.0)[0]) == pytest.approx(7e-6, rel=0.05)
    assert boundary(0.0) == (1, 0)
    with pytest.raises(GessoError, match="not by edm"):
        grid(EDM(0.5), 4)


@pytest.mark.parametrize("diffusion", [{}, {"prediction": "v"}, FLOW])
def test_loss_by_hand(diffusion: dict[str, str]) -> None:
    made, model = objective(diffusion, guidance_scale=3, steps=10)
    with torch.no_grad():  # else target and student agree
        for p in made.roles["target"].parameters():
            p.mul_(1.1)
    batch = Random().batch(0, 3, 0)
    out = made.loss("distill", batch, Draws("cpu", 1, 2))

    draws, path = Draws("cpu", 1, 2), model.path
    index, x0 = draws.randint(10, 3), batch.latents
    noise = draws.randn(3, 4, 4, 4)
    total = torch.zeros(())
    for i in range(3):  # picture by picture, branch by branch, in float64 where it is ours
        cond = model.text_encoder(batch.cond[i])
        empty = model.text_encoder(model.text_encoder.prepare([""]))
        n = int(index[i])
        if diffusion == FLOW:
            t, s = torch.tensor([(n + 1) / 10]), torch.tensor([n / 10])
        else:
            t, s = torch.tensor([100.0 * (n + 1) - 1]), torch.tensor([max(100.0 * n - 1, 0)])
        (a, b), (a2, b2) = path.alpha_sigma(t), path.alpha_sigma(s)
        x = a * x0[i : i + 1] + b * noise[i : i + 1]

        def views(role: str, x: Any, t: Any, value: Any = None, cond: Any = cond) -> Any:
            network = Denoiser(made.roles[role], path, made.student.prediction)
            value = network.predict(x, t, cond).value if value is None else value
            return network.views(value, x, t)

        with torch.no_grad():
            values = [made.roles["teacher"](x, path.model_time(t), c).value for c in (cond, empty)]
            end = views("teacher", x, t, values[1] + 3 * (values[0] - values[1]))
            earlier = a2 * end.x0 + b2 * end.noise
            skip, weight = boundary(path.model_time(s))
            goal = skip * earlier + weight * views("target", earlier, s).x0
            skip, weight = boundary(path.model_time(t))
            mine = skip * x + weight * views("backbone", x, t).x0
        total = total + ((mine - goal).square() + 1e-6).sqrt().sub(1e-3).mean() / 3
    torch.testing.assert_close(out.loss.detach(), total, atol=1e-5, rtol=1e-4)


def test_the_grid_follows_the_size_of_the_picture() -> None:
    seen = []
    for shift in (
        {"shift": 3.0},
        {"shift": 3.0, "shift_base": 4},
        {"shift": 1.5, "shift_base": 2},
    ):
        made, model = objective({**FLOW, **shift}, steps=2)
        made.teacher = Denoiser(
            lambda x, time, cond: seen.append(time) or _zero(x), model.path, "flow"
        )
        batch = Random().batch(0, 3, 0)  # of 4 x 4 px
        made.loss("distill", batch, Draws("cpu", 1))
    times = [sorted(set(t.tolist())) for t in seen]
    assert times[0] == times[1] == times[2] and times[0][0] == 750  # 3 / 2 / (1 + 2 / 2) of 1000


def _zero(x: Any) -> Any:
    from gesso.types import Prediction

    return Prediction(torch.zeros_like(x))


def test_only_the_student_learns_and_the_target_follows() -> None:
    made, model = objective(ema=0.75)
    before = copy.deepcopy(made.roles["target"])
    made.loss("distill", Random().batch(0, 3, 0), Draws("cpu", 1)).loss.backward()
    for name, role in made.roles.items():
        assert any(p.grad is not None for p in role.parameters()) == (name == "backbone"), name
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(1.0)
    made.updated("distill")
    for p, was in zip(made.roles["target"].parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p, was + 0.25)


def test_a_perfect_teachers_map_has_no_loss() -> None:
    """For N(0, s^2) data the trajectory's end is known: a student that jumps there has no gap."""
    path, s = Flow(), 0.7

    class Exact(torch.nn.Module):
        """The flow of Gaussian data, or with `jump` the one that ends where the ODE ends."""

        def __init__(self, jump: bool) -> None:
            super().__init__()
            self.jump = jump
            self.unused = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: Any, time: Any, cond: Any) -> Any:
            from gesso.types import Prediction

            t = (time / 1000).view(-1, 1, 1, 1)
            power = ((1 - t) ** 2 * s**2 + t**2).sqrt()  # standard deviation at t
            x0 = x * s / power if self.jump else x * (1 - t) * s**2 / power**2
            return Prediction((x - x0) / t.clamp_min(1e-9))

    gaps = []
    for steps in (50, 100, 200):
        made, _ = objective(FLOW, guidance_scale=1, steps=steps)
        made.student = Denoiser(Exact(jump=True), path, "flow")
        made.target = Denoiser(Exact(jump=True), path, "flow")
        made.teacher = Denoiser(Exact(jump=False), path, "flow")
        batch = Random().batch(0, 64, 0)
        batch.latents = s * batch.latents
        gaps.append(float(made.loss("distill", batch, Draws("cpu", 1)).metrics["gap"]))
    # What is left is the error of one DDIM step: second order in its length.
    assert gaps[0] < 2e-3
    assert gaps[1] / gaps[0] < 0.35 and gaps[2] / gaps[1] < 0.35


def test_training_runs_and_resumes_exactly(tmp_path: Path) -> None:
    recipe = tiny_recipe(objective={"name": "lcm", "steps": 10}, diffusion=FLOW)

    def run(folder: str, steps: int, resume: bool = False) -> Any:
        changed = recipe.model_copy(
            update={"train": recipe.train.model_copy(update={"steps": steps})}
        )
        return train(
            changed,
            tmp_path / folder,
            model=tiny_model(recipe),
            dataset=Random(),
            resume=resume,
            quiet=True,
        )

    from train_fakes import every_tensor

    whole = run("whole", 6)
    run("parts", 3)
    parts = run("parts", 6, resume=True)
    a, b = every_tensor(Path(whole["checkpoint"])), every_tensor(Path(parts["checkpoint"]))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    moved = [k for k in a if "weights.safetensors:target" in k]
    assert moved and any(not torch.equal(a[k], a[k.replace(":target", ":teacher")]) for k in moved)


def test_both_branches_of_a_batch() -> None:
    model = tiny_model(tiny_recipe(backbone={"name": "pixart", "depth": 1, "null_tokens": 4}))
    batch = Random().batch(0, 3, 0)
    for null in ("empty", "learned"):
        captions = Captions(model.text_encoder, model.backbone, null)
        both = captions.both(batch.cond)
        without = captions.dropped(batch.cond, 1.0, Draws("cpu", 1))
        apart = Cond.cat([captions.encode(batch.cond), without])
        assert both.tokens is not None and apart.tokens is not None
        torch.testing.assert_close(both.tokens, apart.tokens)
        assert both.mask is not None and torch.equal(both.mask, apart.mask)


def test_other_times_than_the_sampler_visits_are_refused() -> None:
    recipe = tiny_recipe(diffusion=FLOW, sample={"sampler": "lcm", "spacing": "lcm"})
    with pytest.raises(GessoError, match=r"objective\.steps is 10 and sample\.orig"):
        build(Config(steps=10), tiny_model(recipe))
    build(Config(steps=50), tiny_model(recipe))


def test_sampler_returns_the_last_jump() -> None:
    t = torch.tensor([999.0, 0.0]).double()
    schedule = Schedule(t, *DDPM().alpha_sigma(t), t)
    from gesso.types import Denoised

    x = torch.randn(2, 4, 4, 4)
    out = module("samplers", "lcm").sample(
        lambda x, t: Denoised(torch.ones_like(x), x), x, schedule
    )
    torch.testing.assert_close(out, torch.ones_like(x), atol=1e-6, rtol=0)
