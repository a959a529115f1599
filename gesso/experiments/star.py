"""Scale-wise generation of codes against diffusion, at equal size and training time.

STAR (arXiv 2406.10797) paints a picture in as many runs of the network as it has scales, where a
diffusion model needs one for each step.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from gesso.config import Recipe
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers

MINUTES = 2.5  # of training, each arm
TOKENIZER_STEPS = 800
SIDE = 32  # pixels
STEPS = 12  # of Euler's method, the diffusion model's sampler
MARGIN = 0.05
SCALES = [1, 2, 3, 4]
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
        "counted. Guidance 3 for both.",
        arms=[
            Arm("star", "codes, scale by scale", _star),
            Arm("diffusion", "rectified flow", partial(_train, None)),
        ],
        claims=[
            Claim(
                "STAR scores at most 5 points lower",
                "overall",
                {"star": 1, "diffusion": -1},
                above=-MARGIN,
            ),
            Claim("with fewer runs of the network", "runs", {"diffusion": 1, "star": -1}),
        ],
        metrics={
            "overall": "GenEval on scenes",
            **{tag: tag.replace("_", " ") for tag in TAGS},
            "runs": "runs a picture",
            "parameters": "parameters (M)",
            "pictures": "pictures seen (thousands)",
            "seconds": "training (s)",
            "loss": "held-out loss (of its own kind)",
        },
        figure=["overall"],
    )


def _star(job: Job) -> Numbers:
    with measure.shared(job, "tokenizer") as common:
        tokenizer = measure.train(common, _tokenizer(common))
    return _train(tokenizer.run, job)


def _tokenizer(job: Job) -> Recipe:
    stage = [f"train.steps={TOKENIZER_STEPS}", f"image_encoder.scales={SCALES}"]
    return measure.recipe(job, [*COMMON, *stage, "train.batch_size=32"], "star", "tokenizer")


def _train(tokenizer: Path | None, job: Job) -> Numbers:
    """Train a diffusion model, or on a tokenizer a model of its codes, and have it paint."""
    if tokenizer is None:
        sampler = ["sample.sampler=euler", f"sample.num_inference_steps={STEPS}"]
        recipe = measure.recipe(job, [*COMMON, *sampler])
        runs = STEPS
    else:
        scales = f"image_encoder.scales={SCALES}"
        recipe = measure.recipe(job, [*COMMON, scales], "star", "generator")
        recipe.init, runs = str(tokenizer), len(SCALES)
    if not job.quick:
        recipe.train.minutes = MINUTES
    trained = measure.train(job, recipe)
    scores = measure.scenes(job, trained.run)
    return {
        **{key: scores[key] for key in ("overall", *TAGS)},
        "runs": float(runs),
        "parameters": trained.parameters / 1e6,
        "pictures": trained.steps * recipe.train.batch_size / 1e3,
        "seconds": trained.seconds,
        "loss": trained.loss,
    }
