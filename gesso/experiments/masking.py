"""Deferred masking against naive masking and a smaller network, at equal FLOPs.

"Stretching Each Dollar" (arXiv 2407.15811, sections 3 and 5) trains on a quarter of the patches. It
claims that a patch-mixer before the dropping makes up for what is dropped, the more the higher the
ratio, and that masking is a better saving than a smaller network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

from gesso.config import Recipe
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers

TFLOP = 3.0  # of the whole training of each arm
FINETUNE = 0.1  # share of it for all patches at the end
BATCH = 32
LR, FLOOR = 5e-3, 0.33  # the rate falls to a third in the masked phase, and to nothing afterwards
RATIOS = (0.25, 0.5, 0.75, 0.875)
COMMON = [
    f"train.batch_size={BATCH}",
    "train.compile=false",
    "train.ema=0.98",
    "sample.sampler=euler",
    "sample.num_inference_steps=12",
]


@dataclass(frozen=True)
class Setting:
    """What an arm trains: the width of 6 blocks, the masking ratio, and whether with a mixer."""

    width: int = 128
    ratio: float = 0.0
    mixer: bool = False

    def overrides(self, masked: bool) -> list[str]:
        """Of the recipe, for the masked phase or the one on all patches."""
        network = {
            "name": "microdit",
            "depth": 6,
            "hidden_size": self.width,
            "head_dim": 32,
            "mixer_depth": 2 if self.mixer else 0,
            "mixer_size": 64,
            "multiple_of": 32,
            "init_std": 0.088,
        }
        ratio = self.ratio if masked else 0.0
        return [f"backbone={json.dumps(network)}", f"objective.mask_ratio={ratio}"]


def experiment() -> Experiment:
    """Three arms with several seeds, and a sweep of ratios."""
    sweep = [
        Arm(
            f"{line}-{ratio:g}",
            f"{ratio:.1%} of the patches dropped {where}",
            partial(_run, Setting(ratio=ratio, mixer=line == "deferred")),
            seeds=None if ratio == 0.75 else 1,
            line=line,
            at=ratio,
        )
        for ratio in RATIOS
        for line, where in (("deferred", "behind a mixer of 2 x 64"), ("naive", "at once"))
    ]
    return Experiment(
        name="masking",
        claim="At equal FLOPs, dropping 75 % of the patches behind a patch-mixer trains a better "
        "model than dropping them at once, and than a smaller network on all of them "
        "(Stretching Each Dollar, sections 3 and 5).",
        setting="Scenes of level 1 at 64 px in 64 patches; MicroDiT, 6 blocks of 128 (small: 64), "
        "without experts and layer-wise scaling; rectified flow, Muon. Every arm has "
        f"{TFLOP:g} TFLOP of training, forward and backward as they run, the last "
        f"{FINETUNE:.0%} of it on all patches; cheaper steps are more steps. Losses are on "
        "held-out pictures with all patches, before and after that last part.",
        arms=[
            *sweep,
            Arm("small", "half the width, all patches", partial(_run, Setting(width=64))),
            Arm("dense", "all patches, the whole width", partial(_run, Setting()), seeds=1),
        ],
        claims=[
            Claim(
                f"Deferred masking at 75 % ends at a lower loss than {other}, {when}",
                metric,
                {arm: 1, "deferred-0.75": -1},
            )
            for other, arm in (("naive masking", "naive-0.75"), ("a smaller network", "small"))
            for when, metric in (
                ("before the fine-tune", "loss_before"),
                ("after it", "loss"),
            )
        ]
        + [
            Claim(
                "The mixer gains more at a ratio of 0.875 than at 0.5, before the fine-tune",
                "loss_before",
                {"naive-0.875": 1, "deferred-0.875": -1, "naive-0.5": -1, "deferred-0.5": 1},
            )
        ],
        metrics={
            "loss_before": "held-out loss before the fine-tune",
            "loss": "held-out loss after it",
            "overall": "GenEval on scenes",
            "tflop": "training (TFLOP)",
            "pictures": "pictures (thousands)",
            "seconds": "training (s)",
        },
        figure=["loss_before", "loss"],
        at_label="share of the patches that is dropped",
    )


def _run(setting: Setting, job: Job) -> Numbers:
    masked = _phase(job, setting, True, [f"train.lr={LR}", f"train.lr_floor={FLOOR}"])
    tuned = _phase(job, setting, False, [f"train.lr={LR * FLOOR}", "train.warmup=5"])
    first = measure.train(job, masked, "masked")
    tuned.init = str(first.run)
    last = measure.train(job, tuned, "tuned")
    return {
        "loss_before": first.loss,
        "loss": last.loss,
        "overall": measure.scenes(job, last.run, per_tag=6)["overall"],
        "tflop": (first.flops + last.flops) / 1e12,
        "pictures": (first.steps * masked.train.batch_size + last.steps * tuned.train.batch_size)
        / 1e3,
        "seconds": first.seconds + last.seconds,
    }


def _phase(job: Job, setting: Setting, masked: bool, rate: list[str]) -> Recipe:
    """One part of a training, as long as its share of the FLOPs lets it be."""
    recipe = measure.recipe(job, [*COMMON, *setting.overrides(masked), *rate])
    if not job.quick:
        share = 1 - FINETUNE if masked else FINETUNE
        flops = measure.training_flops(recipe) * BATCH
        recipe.train.steps = max(1, round(share * TFLOP * 1e12 / flops))
    return recipe
