"""Train and score inside an experiment's arm; what is finished is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gesso.config import Recipe, Spec, resolve
from gesso.controls import condition_of
from gesso.evals.scenes import CHUNK, evaluate_model
from gesso.experiments.design import Job, Numbers
from gesso.loading import find, load
from gesso.model import Model
from gesso.train.flops import training_flops
from gesso.train.folder import RECIPE
from gesso.train.run import encode_recipe, train_recipe, with_vocabulary
from gesso.train.stages import load_stages

__all__ = [
    "Trained",
    "cache",
    "paint",
    "recipe",
    "scenes",
    "shared",
    "train",
    "training_flops",
    "without_words",
]

QUICK_STEPS, QUICK_BATCH, QUICK_PICTURES = 4, 8, 64
PICTURE_MODEL = "scenes"
TEXT_PARTS = ("text_encoder.", "y_embedder.", "cross_attn.")


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        run: its folder.
        steps: optimiser steps.
        seconds: measured, over all sessions; without encoding.
        flops: forward and backward of all pictures.
        parameters: trained ones.
        loss: on held-out pictures.
    """

    run: Path
    steps: int
    seconds: float
    flops: float
    parameters: int
    loss: float


def recipe(job: Job, overrides: list[str], base: str = "demo", stage: str = "") -> Recipe:
    """A shipped recipe as an arm trains it: the job's seed, one process, steps instead of minutes.

    `base` is its name, and `stage` that of one of its stages. A quick job has a handful of steps on
    a handful of pictures, whatever the overrides say.
    """
    overrides = [f"seed={job.seed}", "train.processes=1", *overrides]
    found = next(one.recipe for one in load_stages(base, overrides) if one.name == stage)
    train = {"minutes": None, "validate_every": 0, "save_every": 250, "keep": 1, "device": "cpu"}
    values = found.model_dump()
    values["train"] |= train
    if job.quick:
        values["train"] |= {"steps": QUICK_STEPS, "batch_size": QUICK_BATCH, "compile": False}
        values["data"]["source"] = {**values["data"]["source"], "count": QUICK_PICTURES}
        values["validation"] |= {"prompts": found.validation.prompts[:1], "holdout": QUICK_BATCH}
        values["sample"] |= {"num_inference_steps": 2}
    return Recipe.model_validate(values)


def train(job: Job, recipe: Recipe, name: str = "run") -> Trained:
    """Train a recipe in the job's folder, or continue there, or return what is finished.

    Args:
        job: whose folder.
        recipe: `data.cache` is set here, to a cache that all jobs share; a recipe without a
            backbone learns from pictures and has none.
        name: of the run; an arm of several phases gives each its own.

    Raises:
        SystemExit: interrupted; a checkpoint is saved.
        GessoError: as `gesso.train.run.train_recipe`.
    """
    run = job.folder / name
    summary = run / "trained.json"
    if summary.is_file():
        return Trained(**json.loads(summary.read_text()) | {"run": run})
    if recipe.data.cache is None and recipe.backbone is not None:
        data = recipe.data.model_copy(update={"cache": str(cache(job, recipe))})
        recipe = recipe.model_copy(update={"data": data})
    result = train_recipe(recipe, run, resume=(run / RECIPE).is_file(), quiet=False)
    if result["interrupted"]:
        raise SystemExit(128 + result["signal"])
    trained = Trained(
        run=run,
        steps=result["steps"],
        seconds=result["seconds"],
        flops=training_flops(recipe) * result["steps"] * recipe.train.batch_size,
        parameters=result["parameters"],
        loss=result["validation"].get("validation_loss", float("nan")),
    )
    summary.write_text(json.dumps(asdict(trained) | {"run": ""}))
    return trained


def scenes(
    job: Job, run: Path, per_tag: int = 20, n: int = 2, num_inference_steps: int | None = None
) -> Numbers:
    """GenEval's tags on held-out combinations: tag -> share right, and `overall`.

    Prompts and noise are the same for all arms and seeds. Steps default to the model's contract.
    """
    if job.quick:
        per_tag, n = 1, 1
    result = evaluate_model(
        str(run), per_tag=per_tag, n=n, num_inference_steps=num_inference_steps, quiet=True
    )
    return {"overall": result["overall"], **result["scores"]}


def paint(run: Path, prompts: list[str]) -> list[np.ndarray]:
    """A picture [H, W, 3] uint8 for each prompt; the noise is the same in every call."""
    pipe = load(run)
    seeds = list(range(len(prompts)))
    return [np.asarray(image) for image in pipe(prompts, seed=seeds, batch_size=CHUNK).images]


def without_words(job: Job, recipe: Recipe) -> Path:
    """A start: the shipped model with random weights, by the job's seed, in everything that reads.

    Args:
        job: whose folder the start lies in.
        recipe: of the shipped model's architecture.
    """
    folder = job.folder / "start"
    if not folder.exists():
        model = Model.load(find(PICTURE_MODEL))
        random = Model.from_recipe(with_vocabulary(recipe)).state()
        text = {k: v for k, v in random.items() if any(part in k for part in TEXT_PARTS)}
        model.load_state(model.state() | text, "the picture model")
        temporary = folder.with_suffix(".part")
        temporary.mkdir(parents=True, exist_ok=True)
        model.save(temporary)
        temporary.rename(folder)
    return folder


@contextmanager
def shared(job: Job, name: str) -> Iterator[Job]:
    """A job whose folder belongs to all arms and seeds: one at a time, the others wait.

    For what several arms start from, such as a teacher: who comes second finds it finished.
    """
    from filelock import FileLock

    job.shared.mkdir(parents=True, exist_ok=True)
    with FileLock(job.shared / f"{name}.lock"):
        yield replace(job, folder=job.shared / name)


def cache(job: Job, recipe: Recipe) -> Path:
    """The feature cache of a recipe's data; made by the first job that needs it."""
    condition = condition_of(recipe.adapter)
    parts = {
        "data": recipe.data.model_dump(exclude={"cache", "caption_weights"}),
        "image": recipe.image_encoder,
        "text": recipe.text_encoder,
        "control": None if condition is None else condition.fingerprint(),
        "tokenizer": recipe.init if _is_trained(recipe.image_encoder) else None,
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    with shared(job, f"cache-{hashlib.sha256(text.encode()).hexdigest()[:12]}") as common:
        encode_recipe(recipe, common.folder, quiet=True)
    return common.folder


def _is_trained(image_encoder: Spec) -> bool:
    """Whether an image encoder has no weights of its own, but those of what a training starts
    from."""
    return getattr(resolve("encoders.image", image_encoder)[1], "weights", "named") is None
