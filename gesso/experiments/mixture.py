"""One-step distillation of a mixture of Gaussians in the plane, where everything can be counted.

The objective is the one that pictures are distilled with; a "picture" is a point, [2, 1, 1], and
the network a small MLP. How often each mode comes is known: what a generator loses is counted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.config import DiffusionConfig, Recipe, SampleConfig, Spec, TrainConfig, module
from gesso.diffusion.schedules import make_schedule
from gesso.draws import EVERY, Draws
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers
from gesso.model import WEIGHTS as FILE
from gesso.model import Description, Model, checkpoint_in, read_tensors
from gesso.train.loop import train
from gesso.train.observe import Moment, Observer
from gesso.types import Batch, Cond, Prediction

WEIGHTS = (0.35, 0.25, 0.2, 0.12, 0.08)
RADIUS, WIDTH = 1.5, 0.15  # of the circle on which the modes lie, and of each of them
BATCH, TAUGHT, STEPS, LR = 256, 3000, 1200, 1e-3
POINTS, DIRECTIONS = 8192, 64
PARTS = 10  # a training is measured so often in its second half
DIFFUSION = DiffusionConfig(path="flow", prediction="flow")
ONE_STEP = SampleConfig(
    sampler="one_step", timesteps=(0.9,), num_inference_steps=1, guidance_scale=1.0
)
FREQUENCIES = 16
OWN = 2**31  # first of the numbers whose draws are no training step's


def experiment() -> Experiment:
    """SIM with two distances, Diff-Instruct and DMD, against the teacher's many steps."""
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "huber": ("SIM, pseudo-Huber distance", {}),
        "squared": ("SIM, squared distance", {"huber": None}),
        "diff-instruct": ("the KL's update", {"divergence": "kl"}),
        "dmd": ("the same, over the residual", {"divergence": "kl", "weight": "residual"}),
    }
    return Experiment(
        name="mixture",
        claim="Matching scores keeps the modes that an update by the KL divergence loses, and the "
        "pseudo-Huber distance is steadier than the squared one (SIM, sections 3 and 5).",
        setting=f"Five Gaussians of width {WIDTH} on a circle of radius {RADIUS}, with weights "
        f"{', '.join(map(str, WEIGHTS))}; an MLP of 3 x 128 learns their flow in {TAUGHT} "
        f"steps of {BATCH}, once. Generators of one step start from it and learn for {STEPS} "
        "steps, the fake network as often. The distance is Wasserstein's first, averaged over "
        f"{DIRECTIONS} directions, of {POINTS} points to as many true ones.",
        arms=[
            *(
                Arm(name, f"{about}, one step", partial(_student, options))
                for name, (about, options) in arms.items()
            ),
            Arm("teacher-50", "the teacher in 50 steps of Heun", partial(_teacher, 50)),
            Arm("teacher-4", "the teacher in 4 steps of Heun", partial(_teacher, 4)),
        ],
        claims=[
            Claim(
                "SIM in one step is closer to the mixture than the teacher in 4",
                "distance",
                {"teacher-4": 1, "huber": -1},
            ),
            Claim(
                "SIM's shares of the modes are closer to the true ones than Diff-Instruct's",
                "weights",
                {"diff-instruct": 1, "huber": -1},
            ),
            Claim(
                "With the squared distance the result swings more in the second half",
                "swing",
                {"squared": 1, "huber": -1},
            ),
        ],
        metrics={
            "distance": "sliced Wasserstein distance",
            "weights": "error of the modes' shares",
            "stray": "share of stray points",
            "swing": "swing of the distance",
        },
        figure=["distance", "weights", "swing"],
    )


class MLP(nn.Module):
    """[B, 2, 1, 1] and t -> [B, 2, 1, 1], by residual layers; reads no condition."""

    def __init__(self, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(2 + 2 * FREQUENCIES, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Prediction:
        angles = time[:, None] / 1000 * torch.logspace(0, 2, FREQUENCIES, device=x.device)
        x = self.first(torch.cat([x.flatten(1), angles.sin(), angles.cos()], 1))
        for layer in self.layers:
            x = x + layer(F.silu(x))
        return Prediction(self.last(F.silu(x))[:, :, None, None])


class Plain(nn.Identity):
    """An image encoder for what is its own latent."""

    factor = 1


class Wordless(nn.Module):
    """A text encoder for what has no text: one token of one zero."""

    trainable = False

    def prepare(self, prompts: list[str]) -> Cond:
        return Cond(tokens=torch.zeros(len(prompts), 1, 1))

    def forward(self, cond: Cond) -> Cond:
        return cond


class Points:
    """Batches of the mixture's points as latents [B, 2, 1, 1]."""

    def batch(self, number: int, batch_size: int, seed: int, rows: slice = EVERY) -> Batch:
        points = sample_mixture(Draws("cpu", seed, OWN, number), batch_size)[:, :, None, None]
        cond = Wordless().prepare([""] * batch_size)
        return Batch([str(i) for i in range(batch_size)][rows], cond[rows], latents=points[rows])

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        yield from ()


def centres() -> Tensor:
    """[5, 2]."""
    angle = 2 * torch.pi * torch.arange(len(WEIGHTS)) / len(WEIGHTS)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def sample_mixture(draws: Draws, n: int) -> Tensor:
    """[n, 2] true points."""
    edges = torch.tensor(WEIGHTS).cumsum(0)[:-1]
    return centres()[torch.bucketize(draws.rand(n), edges)] + WIDTH * draws.randn(n, 2)


def make(weights: Path | None = None) -> Model:
    """The model, with random weights or those of a checkpoint."""
    described = Description(
        name="mixture",
        image_encoder={"name": "points"},
        text_encoder={"name": "wordless"},
        backbone={"name": "mlp"},
        diffusion=DIFFUSION,
        sample=ONE_STEP,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(described, Plain(), Wordless(), MLP())
    if weights is not None:
        model.load_state(read_tensors(weights / FILE), str(weights))
    return model


def learn(job: Job, name: str, objective: Spec, steps: int, model: Model) -> Watch:
    """Train a model, and watch its points. An interrupted training begins again."""
    steps = 4 * PARTS if job.quick else steps
    recipe = Recipe(
        name=name,
        seed=job.seed,
        image_encoder={"name": "points"},
        text_encoder={"name": "wordless"},
        backbone={"name": "mlp"},
        diffusion=DIFFUSION,
        sample=ONE_STEP,
        objective=objective,
        train=TrainConfig(
            steps=steps,
            batch_size=BATCH,
            lr=LR,
            betas=(0.0, 0.99) if objective["name"] == "sim" else (0.9, 0.99),
            schedule="constant" if objective["name"] == "sim" else "linear",
            ema=0.99,
            max_skipped=steps,
            device="cpu",
            save_every=steps,
            validate_every=steps // (2 * PARTS),
        ),
    )
    run, watch = job.folder / name, Watch()
    shutil.rmtree(run, ignore_errors=True)
    result = train(recipe, run, model=model, dataset=Points(), observers=[watch], quiet=True)
    if result["interrupted"]:
        raise SystemExit(128 + result["signal"])
    return watch


class Watch(Observer):
    """Measures a generator of one step at every validation."""

    def __init__(self) -> None:
        self.found: list[Numbers] = []

    def on_validation(self, moment: Moment, model: Model) -> Numbers:
        self.found.append(measured(paint(model, ONE_STEP, moment.recipe.seed)))
        return self.found[-1]


@torch.inference_mode()
def paint(model: Model, contract: SampleConfig, seed: int) -> Tensor:
    """[POINTS, 2] by a model."""
    schedule = make_schedule(model.path, contract.num_inference_steps, timesteps=contract.timesteps)
    noise = Draws("cpu", seed, OWN + 1).randn(POINTS, 2, 1, 1)
    denoise = model.denoiser().bind(Wordless().prepare([""] * POINTS))
    made: Tensor = module("samplers", contract.sampler).sample(denoise, noise, schedule)
    return made.flatten(1)


def measured(points: Tensor) -> Numbers:
    """Of [n, 2] points.

    Returns:
        distance: Wasserstein's first to as many true points, mean over directions.
        weights: half the summed difference of the modes' shares, by the nearest centre.
        stray: share of the points over 4 widths from every centre.
    """
    true = sample_mixture(Draws("cpu", 0, OWN + 2), len(points))
    angles = torch.linspace(0, torch.pi, DIRECTIONS + 1)[:-1]
    axes = torch.stack([angles.cos(), angles.sin()])  # [2, DIRECTIONS]
    apart = ((points @ axes).sort(0).values - (true @ axes).sort(0).values).abs().mean()
    off, nearest = torch.cdist(points, centres()).min(1)
    shares = torch.bincount(nearest, minlength=len(WEIGHTS)) / len(points)
    return {
        "distance": float(apart),
        "weights": float((shares - torch.tensor(WEIGHTS)).abs().sum() / 2),
        "stray": float((off > 4 * WIDTH).float().mean()),
    }


def _taught(job: Job) -> Path:
    """The checkpoint of the teacher, which all jobs share."""
    with measure.shared(job, "mixture-teacher") as common:
        done = common.folder / "teacher" / "done"
        if not done.is_file():
            fixed = replace(common, seed=0)
            learn(fixed, "teacher", {"name": "denoise", "caption_dropout": 0.0}, TAUGHT, make())
            done.touch()
    found = checkpoint_in(done.parent)
    assert found is not None
    return found


def _student(options: Spec, job: Job) -> Numbers:
    objective = {"name": "sim", "guidance_scale": 1.0, **options}
    watch = learn(job, "student", objective, STEPS, make(_taught(job)))
    late = [found["distance"] for found in watch.found[-PARTS:]]
    return {**watch.found[-1], "swing": max(late) - min(late)}


def _teacher(steps: int, job: Job) -> Numbers:
    contract = SampleConfig(sampler="heun", num_inference_steps=steps)
    return measured(paint(make(_taught(job)), contract, job.seed))
