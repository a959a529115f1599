"""Inner loop feedback against fewer steps and against cached blocks, at equal block counts.

Gwilliam et al. 2025 (arXiv 2501.13107) paint with 10 steps and feedback nearly what PixArt paints
in 20, sooner than in 12. Here the teacher is the model that ships with gesso, of 6 blocks.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from gesso.config import Recipe, Spec
from gesso.evals.scenes import CHUNK, evaluate
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers
from gesso.loading import find
from gesso.model import Model
from gesso.pipeline import Pipeline

TEACHER = "scenes"
LEVEL = 1
DEPTH, START, END = 6, 2, 4  # blocks; the loop, which is also what the cache leaves out
STEPS = 150  # of training
ILF_STEPS, FEW_STEPS, CACHE_STEPS = 4, 6, 7
PROMPTS = 40  # for each of the six tags
LOOP = END - START
BLOCKS = {
    "ilf": ILF_STEPS * (DEPTH + LOOP + 1),
    "steps": FEW_STEPS * DEPTH,
    "cache": CACHE_STEPS * DEPTH - CACHE_STEPS // 2 * LOOP,
    "plain": ILF_STEPS * DEPTH,
}


def experiment() -> Experiment:
    """Three ways to spend 36 blocks a picture, and the same steps without feedback."""
    cache: Spec = {"name": "block_cache", "start": START, "end": END, "every": 2}
    return Experiment(
        name="ilf",
        claim="With feedback from its middle blocks a model paints nearer to what it paints in "
        "many steps than with more steps, or with cached blocks, for as many blocks (ILF).",
        setting=f"The shipped model of {DEPTH} blocks; the loop, and what the cache reuses, are "
        f"blocks {START} to {END - 1}. {BLOCKS['ilf']} blocks a picture and branch of guidance: "
        f"{ILF_STEPS} steps with feedback, {FEW_STEPS} without, {CACHE_STEPS} of which every other "
        f"one reuses. Euler, guidance 3. The feedback learns for {STEPS} steps of 16 captions. "
        f"{6 * PROMPTS} prompts of GenEval's tags on held-out combinations; "
        "a seed has its own prompts, noise and training. The error is that of the pictures, in "
        "[0, 1], against those that the model paints as it ships, in 20 steps of Heun, from the "
        "same noise.",
        arms=[
            Arm("ilf", f"{ILF_STEPS} steps with feedback", _ilf),
            Arm("steps", f"{FEW_STEPS} steps", partial(_teacher, "steps", FEW_STEPS, None)),
            Arm("cache", "cached blocks", partial(_teacher, "cache", CACHE_STEPS, cache)),
            Arm(
                "plain",
                f"{ILF_STEPS} steps, fewer blocks",
                partial(_teacher, "plain", ILF_STEPS, None),
            ),
        ],
        claims=[
            Claim(f"Feedback has a smaller error than {what}", "error", {arm: 1, "ilf": -1})
            for arm, what in (("steps", "more steps"), ("cache", "cached blocks"))
        ]
        + [
            Claim(f"Feedback scores higher than {what}", "overall", {"ilf": 1, arm: -1})
            for arm, what in (("steps", "more steps"), ("cache", "cached blocks"))
        ],
        metrics={
            "error": "mean squared error of pictures",
            "overall": "GenEval on scenes",
            "blocks": "blocks a picture and branch",
            "loss": "held-out loss",
            "seconds": "training (s)",
        },
        figure=["error", "overall"],
    )


def _ilf(job: Job) -> Numbers:
    trained = measure.train(job, student(job))
    numbers = _numbers(job, "ilf", Model.load(find(str(trained.run))))
    return numbers | {"loss": trained.loss, "seconds": trained.seconds}


def student(job: Job, *overrides: str) -> Recipe:
    """The distillation of the shipped model."""
    steps = [f"train.steps={STEPS}", f"sample.num_inference_steps={ILF_STEPS}"]
    adapter = f"adapter={{name: inner_loop, start: {START}, end: {END}}}"
    return measure.recipe(job, [*steps, adapter, *overrides], "ilf")


def _teacher(arm: str, steps: int, adapter: Spec | None, job: Job) -> Numbers:
    model = Model.load(find(TEACHER))
    few = {"sampler": "euler", "num_inference_steps": steps}
    model.sample = model.sample.model_copy(update=few)
    if adapter is not None:
        model.attach(adapter)
    return _numbers(job, arm, model)


def _numbers(job: Job, arm: str, model: Model) -> Numbers:
    with measure.shared(job, f"teacher-{job.seed}") as common:
        wanted = _wanted(common)
    pictures, overall = paint(model, job.seed, quick=job.quick)
    error = np.mean((pictures / 255.0 - wanted / 255.0) ** 2)
    return {"error": float(error), "overall": overall, "blocks": BLOCKS[arm]}


def _wanted(job: Job) -> np.ndarray:
    """What the teacher paints as it ships."""
    file = job.folder / "pictures.npy"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        pictures, _ = paint(Model.load(find(TEACHER)), job.seed, quick=job.quick)
        temporary = Path(f"{file}.part")
        with temporary.open("wb") as opened:
            np.save(opened, pictures)
        temporary.replace(file)
    wanted: np.ndarray = np.load(file)
    return wanted


def paint(model: Model, seed: int, *, quick: bool = False) -> tuple[np.ndarray, float]:
    """Pictures [N, H, W, 3] uint8 of GenEval's prompts, and their overall score."""
    pipe = Pipeline(model)
    pictures: list[np.ndarray] = []

    def chunk(texts: list[str], seeds: list[int]) -> list[np.ndarray]:
        painted = pipe(texts, seed=seeds, batch_size=CHUNK).images
        pictures.extend(np.asarray(image) for image in painted)
        return pictures[-len(texts) :]

    result = evaluate(chunk, level=LEVEL, per_tag=1 if quick else PROMPTS, n=1, seed=seed)
    return np.stack(pictures), float(result["overall"])
