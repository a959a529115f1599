"""A consistency model in few steps against the teacher that it was distilled from.

PixArt-delta (arXiv 2401.05252) paints in 2 to 4 evaluations without guidance what PixArt-alpha
paints in 14 to 20 guided steps. Here the teacher is the model that ships with gesso.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from gesso.config import Recipe
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers
from gesso.loading import find
from gesso.model import Model

TEACHER = "scenes"
STEPS = 300
LORA_STEPS = 300
PROMPTS, PICTURES = 40, 1  # for each of the six tags


def experiment() -> Experiment:
    """The teacher at three costs, the student at two, and a student whose adapter alone learnt."""
    return Experiment(
        name="lcm",
        claim="A latent consistency model paints in 4 steps without guidance nearly what its "
        "teacher paints in 20 guided ones, and better than the teacher in 4 (PixArt-δ).",
        setting="The shipped model, scenes of level 1, GenEval's six tags on held-out combinations, "
        f"{6 * PROMPTS * PICTURES} pictures an arm with the same prompts and noise in all. The "
        f"student learns for {STEPS} steps of 64 pictures from the teacher guided at the shipped "
        "scale of 3. Evaluations are those of the network a picture: a guided step has two. The "
        "teacher at 20 steps is sampled as it ships, with Heun; with few steps by DPM-Solver++, "
        "which was better than Euler on combinations that training showed.",
        arms=[
            Arm("teacher-20", "as it ships: 20 steps of Heun, guided", _teacher, seeds=1),
            Arm("lcm-4", "the student, 4 steps", partial(_student, 4)),
            Arm("teacher-4", "4 guided steps", partial(_teacher, steps=4), seeds=1),
            Arm("teacher-2", "2 guided steps: equal cost", partial(_teacher, steps=2), seeds=1),
            Arm("lcm-1", "the student, 1 step", partial(_student, 1)),
        ],
        claims=[
            Claim(
                "The student at 4 steps reaches 95 % of the teacher at 20",
                "overall",
                {"lcm-4": 1, "teacher-20": -0.95},
            ),
            Claim(
                "The student at 4 steps is above the teacher at 4",
                "overall",
                {"lcm-4": 1, "teacher-4": -1},
            ),
            Claim(
                "The student at 4 steps is above the teacher at equal cost",
                "overall",
                {"lcm-4": 1, "teacher-2": -1},
            ),
            Claim("One step is worse than four", "overall", {"lcm-4": 1, "lcm-1": -1}),
        ],
        metrics={
            "overall": "GenEval on scenes",
            "two_object": "of which two objects",
            "counting": "counting",
            "position": "position",
            "color_attr": "colour attribution",
            "evaluations": "evaluations a picture",
            "tflop": "training (TFLOP)",
            "seconds": "training (s)",
        },
        figure=["overall", "position"],
    )


def _teacher(job: Job, steps: int | None = None) -> Numbers:
    model = Model.load(find(TEACHER))
    if steps is not None:
        few = {"sampler": "dpm_solver", "num_inference_steps": steps}
        model.sample = model.sample.model_copy(update=few)
    folder = job.folder / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    of_step = 2 if model.sample.sampler == "heun" else 1
    evaluations = 2 * (of_step * model.sample.num_inference_steps - (of_step - 1))
    return _scores(job, folder) | {"evaluations": evaluations}


def _student(steps: int, job: Job) -> Numbers:
    with measure.shared(job, f"student-{job.seed}") as common:
        trained = measure.train(common, student(job))
    return (
        _scores(job, trained.run, steps)
        | {"evaluations": steps}
        | {"tflop": trained.flops / 1e12, "seconds": trained.seconds}
    )


def student(job: Job, *overrides: str) -> Recipe:
    """The distillation of the shipped model."""
    return measure.recipe(job, [f"train.steps={STEPS}", *overrides], "pixart-delta")


def _scores(job: Job, run: Path, steps: int | None = None) -> Numbers:
    return measure.scenes(job, run, per_tag=PROMPTS, n=PICTURES, num_inference_steps=steps)
