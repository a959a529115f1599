"""Scale-wise generation of codes against diffusion, at equal size and training time.

STAR (arXiv 2406.10797) paints a picture in as many runs of the network as it has scales, where a
diffusion model needs one for each step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gesso.config import Recipe
from gesso.experiments import codebook, measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers

MINUTES = 2.5  # of training, each model
SETTLING = 0.5  # of the stable sampler's
TOKENIZER_STEPS = 3000
SIDE = 32  # pixels
STEPS = 12  # of Euler's method, the diffusion model's sampler
MARGIN = 0.05
SCALES = [1, 2, 3, 4]
CODES = f"image_encoder.scales={SCALES}"
PICTURES = 500  # that the tokenizer is judged on
COMMON = [
    "train.batch_size=64",
    "train.ema=0.99",
    "train.compile=false",
    f"data.size={SIDE}",
    f"data.source={{name: scenes, level: 1, count: 16384, height: {SIDE}, width: {SIDE}}}",
    f"sample.height={SIDE}",
    f"sample.width={SIDE}",
]
TAGS = ("single_object", "colors", "two_object", "counting", "position", "color_attr")


def experiment() -> Experiment:
    """Two arms with the same seconds of training on the same pictures and captions."""
    return Experiment(
        name="star",
        claim="Generation scale by scale makes pictures like those of a diffusion model of equal "
        "size and training time, with fewer runs of the network (STAR).",
        setting=f"Scenes of level 1 at {SIDE} px; 6 blocks of 128, Muon, one core, {MINUTES:g} "
        "minutes of training for each model from random weights, its text encoder included. STAR: "
        f"scales {SCALES} of a tokenizer of 512 codes that was trained once for all seeds "
        f"({TOKENIZER_STEPS} steps of 32). Diffusion: PixArt on the flow path in the shipped "
        f"autoencoder's latents, patch 2, {STEPS} Euler steps. Neither first stage's training is "
        "counted. Guidance 3. Settled: STAR with a stable sampler of 3 blocks for its last scale, "
        f"{SETTLING:g} minutes more of training and 8 runs of those blocks a picture.",
        arms=[
            Arm("star", "codes, scale by scale", _star),
            Arm("diffusion", "rectified flow", _diffusion),
            Arm("settled", "STAR's last scale in 8 rounds", _settled),
        ],
        claims=[
            Claim(
                "STAR scores at most 5 points lower",
                "overall",
                {"star": 1, "diffusion": -1},
                above=-MARGIN,
            ),
            Claim("with fewer runs of the network", "runs", {"diffusion": 1, "star": -1}),
            Claim(
                "The last scale in rounds scores higher than at once",
                "overall",
                {"settled": 1, "star": -1},
            ),
        ],
        metrics={
            "overall": "GenEval on scenes",
            **{tag: tag.replace("_", " ") for tag in TAGS},
            "runs": "runs a picture",
            "parameters": "parameters (M)",
            "pictures": "pictures seen (thousands)",
            "seconds": "training (s)",
            "loss": "held-out loss (of its own kind)",
            "read": "objects that the tokenizer keeps",
        },
        figure=["overall"],
    )


def _star(job: Job) -> Numbers:
    tokenizer, recipe, trained = _generator(job)
    kept = codebook.judge(tokenizer, 16 if job.quick else PICTURES, SIDE)["read"]
    return _numbers(job, recipe, trained, len(SCALES)) | {"read": kept}


def _settled(job: Job) -> Numbers:
    _, before, base = _generator(job)
    recipe = measure.recipe(job, [*COMMON, CODES], "star", "sampler")
    recipe.init, recipe.data.cache = str(base.run), before.data.cache
    trained = measure.train(job, _timed(job, recipe, SETTLING))
    return _numbers(job, recipe, trained, len(SCALES))


def _diffusion(job: Job) -> Numbers:
    sampler = ["sample.sampler=euler", f"sample.num_inference_steps={STEPS}"]
    recipe = _timed(job, measure.recipe(job, [*COMMON, *sampler]), MINUTES)
    return _numbers(job, recipe, measure.train(job, recipe), STEPS)


def _generator(job: Job) -> tuple[Path, Recipe, measure.Trained]:
    """The tokenizer of all seeds, and a seed's model of its codes."""
    with measure.shared(job, "tokenizer") as common:
        options = [f"train.steps={TOKENIZER_STEPS}", "train.batch_size=32", "train.ema=0.995"]
        first = replace(common, seed=0)
        stage = measure.recipe(first, [*COMMON, CODES, *options], "star", "tokenizer")
        tokenizer = measure.train(first, stage).run
    recipe = measure.recipe(job, [*COMMON, CODES], "star", "generator")
    recipe.init = str(tokenizer)
    recipe = _timed(job, recipe, MINUTES)
    recipe.data.cache = str(measure.cache(job, recipe))
    with measure.shared(job, f"generator-{job.seed}") as common:
        return tokenizer, recipe, measure.train(common, recipe)


def _timed(job: Job, recipe: Recipe, minutes: float) -> Recipe:
    if not job.quick:
        recipe.train.minutes = minutes
    return recipe


def _numbers(job: Job, recipe: Recipe, trained: measure.Trained, runs: int) -> Numbers:
    scores = measure.scenes(job, trained.run)
    return {
        **{key: scores[key] for key in ("overall", *TAGS)},
        "runs": float(runs),
        "parameters": trained.parameters / 1e6,
        "pictures": trained.steps * recipe.train.batch_size / 1e3,
        "seconds": trained.seconds,
        "loss": trained.loss,
    }
