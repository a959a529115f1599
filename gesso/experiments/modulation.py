"""adaLN-single against an adaLN of its own for every block: parameters, memory, quality.

PixArt-alpha (arXiv 2310.00426, section 2.3) replaces DiT's modulation, one MLP a block, by one for
all and a table a block.
"""

from __future__ import annotations

import resource
from functools import partial

from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers

STEPS = 280
MARGIN = 0.01  # of the held-out loss, within which the two count as equal


def experiment() -> Experiment:
    """Two arms that differ in `backbone.modulation` alone."""
    return Experiment(
        name="modulation",
        claim="adaLN-single has fewer parameters and needs less memory than an adaLN for every "
        "block, and paints as well (PixArt-α, section 2.3).",
        setting=f"Scenes of level 1, the demo's network, {STEPS} steps of 64 from scratch, one "
        "core. Per-block modulation starts at zero as in DiT, the tables of adaLN-single at random "
        "as in PixArt. Memory is the whole process's peak, most of which no weight has a part in.",
        arms=[
            Arm("single", "adaLN-single", partial(_run, "single")),
            Arm("block", "an adaLN of its own for every block", partial(_run, "block")),
        ],
        claims=[
            Claim(
                "adaLN-single has fewer parameters (millions)",
                "parameters",
                {"block": 1, "single": -1},
            ),
            Claim("It needs less memory (MiB)", "memory", {"block": 1, "single": -1}),
            Claim(
                f"Its held-out loss is no more than {MARGIN} higher",
                "loss",
                {"block": 1, "single": -1},
                above=-MARGIN,
            ),
            Claim(
                "Its score is no more than 0.05 lower",
                "overall",
                {"single": 1, "block": -1},
                above=-0.05,
            ),
        ],
        metrics={
            "parameters": "trained parameters (M)",
            "memory": "peak memory (MiB)",
            "loss": "held-out loss",
            "overall": "GenEval on scenes",
            "colors": "of which colours",
            "tflop": "training (TFLOP)",
            "seconds": "training (s)",
        },
        figure=["parameters", "loss", "overall"],
    )


def _run(modulation: str, job: Job) -> Numbers:
    overrides = [f"backbone.modulation={modulation}", f"train.steps={STEPS}", "train.ema=0.98"]
    overrides += ["sample.sampler=euler", "sample.num_inference_steps=12"]
    trained = measure.train(job, measure.recipe(job, overrides))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    scores = measure.scenes(job, trained.run)
    return {
        "parameters": trained.parameters / 1e6,
        "memory": peak,
        "loss": trained.loss,
        "overall": scores["overall"],
        "colors": scores["colors"],
        "tflop": trained.flops / 1e12,
        "seconds": trained.seconds,
    }
