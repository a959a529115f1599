"""One step by score implicit matching, against its teacher and against the KL's updates.

SIM (arXiv 2410.16794) distils a diffusion model without data into one that paints in one step, and
claims to keep most of its quality; Diff-Instruct (2305.18455) and DMD (2311.18828) go by the
integral KL divergence, which is said to seek modes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gesso.experiments import measure
from gesso.experiments.classifier import REFERENCE, SEED, Frechet, rendered, scenes
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers
from gesso.experiments.distilled import METRICS, PICTURES, judge
from gesso.loading import load

STEPS, BATCH = 400, 16
TEACHER = "scenes"
KL = ["objective.divergence=kl"]
ONE = {"sampler": "euler", "num_inference_steps": 1}


def experiment() -> Experiment:
    """Three distilled models, their teacher at 20, 4 and 1 steps, and real pictures."""
    return Experiment(
        name="one-step",
        claim="Score implicit matching distils a text-to-image model into one that paints in a "
        "single step, without data and with little loss (SIM, sections 4 and 5).",
        setting="The teacher is the shipped model; it paints guided at 3 and teaches guided at "
        f"1.5. {STEPS} steps of {BATCH} captions of scenes of level 1, each one update of the "
        "generator and one of the fake network, from the teacher's weights; one thread. Scores and "
        "Fréchet distances are on combinations that training never showed. The distance is of "
        f"{PICTURES} pictures to {REFERENCE} real ones in the features of a small classifier, "
        "trained on real pictures. Teacher rows have no seeds: prompts and noise are fixed.",
        arms=[
            Arm("sim", "score implicit matching, one step", partial(_student, [])),
            Arm(
                "dmd",
                "DMD's first term, one step",
                partial(_student, [*KL, "objective.weight=residual"]),
                seeds=1,
            ),
            Arm("diff-instruct", "Diff-Instruct, one step", partial(_student, KL), seeds=1),
            Arm("teacher-20", "20 steps of Heun", partial(_teacher, {}), seeds=1),
            Arm(
                "teacher-4",
                "4 steps of Heun",
                partial(_teacher, {"num_inference_steps": 4}),
                seeds=1,
            ),
            Arm("teacher-1", "one step of Euler", partial(_teacher, ONE), seeds=1),
            Arm("start", "what the generators start as", _start, seeds=1),
            Arm("real", "other real pictures", _real, seeds=1),
        ],
        claims=[
            Claim(
                "SIM in one step is closer to real pictures than the teacher in 4",
                "frechet",
                {"teacher-4": 1, "sim": -1},
            ),
            Claim(
                "SIM scores within 0.05 of the teacher in 20 steps",
                "overall",
                {"sim": 1, "teacher-20": -1},
                above=-0.05,
            ),
            Claim(
                "Pictures of a prompt are at least 70 % as far apart as the teacher's",
                "diversity",
                {"sim": 1, "teacher-20": -0.7},
            ),
            Claim(
                "SIM beats the teacher at equal cost, one evaluation",
                "overall",
                {"sim": 1, "start": -1},
            ),
            *(
                Claim(f"SIM {what} {name} at equal steps", metric, {"sim": sign, arm: -sign})
                for arm, name in (("dmd", "DMD"), ("diff-instruct", "Diff-Instruct"))
                for what, metric, sign in (
                    ("is closer to real pictures than", "frechet", -1),
                    ("is more diverse than", "diversity", 1),
                )
            ),
        ],
        metrics={**METRICS, "tflop": "training (TFLOP)", "seconds": "training (s)"},
        figure=["frechet", "overall", "diversity"],
    )


def _student(overrides: list[str], job: Job) -> Numbers:
    fixed = [f"train.steps={STEPS}", f"train.batch_size={BATCH}"]
    trained = measure.train(job, measure.recipe(job, [*fixed, *overrides], base="sim"))
    costs = {"tflop": trained.flops / 1e12, "seconds": trained.seconds}
    return judge(job, load(trained.run)) | costs


def _teacher(changes: dict[str, Any], job: Job) -> Numbers:
    pipe = load(TEACHER)
    pipe.model.sample = pipe.model.sample.model_copy(update=changes)
    return judge(job, pipe)


def _start(job: Job) -> Numbers:
    contract = measure.recipe(job, [], base="sim").sample
    return _teacher(contract.model_dump(), job)


def _real(job: Job) -> Numbers:
    count = 16 if job.quick else PICTURES
    return {"frechet": Frechet(job).distance(rendered(scenes(count, SEED + 1, "test")))}
