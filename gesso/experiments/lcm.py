"""A consistency model in few steps against the teacher that it was distilled from.

PixArt-delta (arXiv 2401.05252) paints in 2 to 4 evaluations without guidance what PixArt-alpha
paints in 14 to 20 guided steps. Here the teacher is the model that ships with gesso.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers
from gesso.loading import find
from gesso.model import Model

TEACHER = "scenes"
PROMPTS, PICTURES = 40, 1  # for each of the six tags
SHORT = (
    "train.steps=300",
    "train.optimizer=adamw",
    "train.lr=3.0e-4",
    "train.schedule=constant",
    "train.ema=0.98",
    "objective.steps=50",
    "objective.ema=0.95",
    "sample.original_inference_steps=50",
)


def experiments() -> list[Experiment]:
    """The teacher at three costs against students of a short and of a longer training."""
    short = "300 steps of 64 pictures by AdamW, on the published grid of 50 times,"
    longer = "the recipe's 1,000 steps of 64 pictures, on a grid of 20 times,"
    return [_experiment("lcm", short, SHORT), _experiment("lcm-longer", longer, ())]


def _experiment(name: str, training: str, overrides: tuple[str, ...]) -> Experiment:
    return Experiment(
        name=name,
        claim="A latent consistency model paints in 4 steps without guidance nearly what its "
        "teacher paints in 20 guided ones, and better than the teacher in 4 (PixArt-δ).",
        setting="The shipped model, scenes of level 1, GenEval's six tags on held-out "
        f"combinations, {6 * PROMPTS * PICTURES} pictures an arm with the same prompts and noise "
        f"in all. The student learns for {training} from the teacher guided at the shipped scale "
        "of 3. Evaluations are those of the network a picture: a guided step has two. The teacher "
        "at 20 steps is sampled as it ships, with Heun; with few steps by DPM-Solver++, "
        "which was better than Euler on combinations that training showed.",
        arms=[
            Arm("teacher-20", "as it ships: 20 steps of Heun, guided", _teacher, seeds=1),
            Arm("lcm-4", "the student, 4 steps", partial(_student, 4, overrides)),
            Arm("teacher-4", "4 guided steps", partial(_teacher, steps=4), seeds=1),
            Arm("teacher-2", "2 guided steps: equal cost", partial(_teacher, steps=2), seeds=1),
            Arm("lcm-1", "the student, 1 step", partial(_student, 1, overrides)),
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


def _student(steps: int, overrides: tuple[str, ...], job: Job) -> Numbers:
    length = "short" if overrides else "longer"
    with measure.shared(job, f"student-{length}-{job.seed}") as common:
        trained = measure.train(common, measure.recipe(job, [*overrides], "pixart-delta"))
    return (
        _scores(job, trained.run, steps)
        | {"evaluations": steps}
        | {"tflop": trained.flops / 1e12, "seconds": trained.seconds}
    )


def _scores(job: Job, run: Path, steps: int | None = None) -> Numbers:
    return measure.scenes(job, run, per_tag=PROMPTS, n=PICTURES, num_inference_steps=steps)
