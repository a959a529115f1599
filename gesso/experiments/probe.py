"""What the blocks of a code generator know of a picture: a linear probe after each.

ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627, section 5.4): a transformer that has only learnt to
write codes, without any condition, has features from which a linear layer reads the class, best in
the middle (block 15 of 36, 10 of 24). Its tokenizer is trained without the perceptual loss, whose
network would have seen labels.
"""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.data.images import to_tensor
from gesso.data.scenes import SHAPES, Scene, render, sample_scene
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers
from gesso.loading import find
from gesso.model import Model

LEVEL, SIDE = 1, 64
DEPTH = 6
MIDDLE = 3
TOKENIZER_STEPS, STEPS = 600, 600
LEARNT, JUDGED = 2000, 1000  # scenes of one object that the probe learns from, and is judged on
DECAY = 1e-3  # of the probe's weights


def experiment() -> Experiment:
    """An arm a block; those of a seed share one training."""
    return Experiment(
        name="probe",
        claim="The middle blocks of a transformer that learnt to write codes tell a picture's class"
        " best (ViT-VQGAN, section 5.4).",
        setting=f"Scenes of level {LEVEL} at {SIDE} px. A tokenizer without a perceptual loss "
        f"({TOKENIZER_STEPS} steps of 32), then a VIM of {DEPTH} blocks of 128 without captions "
        f"({STEPS} steps of 64). Each block's output is averaged over the 64 codes; a logistic "
        f"regression on {LEARNT} scenes of one object learns its shape, one of four, and is judged "
        f"on {JUDGED} others. Block 0 is the embedding.",
        arms=[
            Arm(
                f"block-{k}",
                f"after block {k}" if k else "codes and positions",
                partial(_run, k),
                line="VIM",
                at=k,
            )
            for k in range(DEPTH + 1)
        ],
        claims=[
            Claim(
                f"Block {MIDDLE} tells the shape better than {which}",
                "accuracy",
                {f"block-{MIDDLE}": 1, f"block-{k}": -1},
            )
            for k, which in ((DEPTH, "the last block"), (1, "the first"))
        ],
        metrics={
            "accuracy": "shapes told by a linear probe",
            "loss": "held-out loss (nats a code)",
        },
        at_label="block",
    )


def _run(block: int, job: Job) -> Numbers:
    with measure.shared(job, f"probe-{job.seed}") as common:
        file = common.folder / "accuracies.json"
        if not file.is_file():
            found = _measure(common)
            temporary = file.with_suffix(".part")
            temporary.write_text(json.dumps(found))
            temporary.rename(file)
        found = json.loads(file.read_text())
    return {"accuracy": found["accuracies"][block], "loss": found["loss"]}


def _measure(job: Job) -> dict[str, object]:
    """Train tokenizer and transformer, and probe every block."""
    tokenizer = measure.recipe(
        job,
        [
            f"train.steps={TOKENIZER_STEPS}",
            "data.source.count=8192",
            "objective.adversarial=0",
            "validation.holdout=64",
        ],
        base="vit-vqgan",
    )
    start = measure.train(job, tokenizer, "tokenizer").run
    recipe = measure.recipe(
        job,
        [
            f"train.steps={STEPS}",
            "train.ema=0.98",
            "objective.caption_dropout=1",
            f"backbone.depth={DEPTH}",
            f"init={start}",
            "data.source.count=8192",
        ],
        base="vit-vqgan-vim",
    )
    recipe.validation.prompts = []
    trained = measure.train(job, recipe, "vim")
    model = Model.load(find(trained.run))
    sizes = (40, 20) if job.quick else (LEARNT, JUDGED)
    x, y = features(model, 0, sizes[0])
    x_test, y_test = features(model, 1, sizes[1])
    accuracies = [probe(a, y, b, y_test) for a, b in zip(x, x_test, strict=True)]
    return {"accuracies": accuracies, "loss": trained.loss}


@torch.no_grad()
def features(model: Model, seed: int, count: int) -> tuple[list[Tensor], Tensor]:
    """Scenes of one object as a generator of codes sees them.

    Args:
        model: whose backbone has `blocks`.
        seed: of the scenes.
        count: of scenes.

    Returns:
        depth + 1 of [count, D], means over the codes of what enters the first block and of what
        leaves each, without a condition; and the shapes, [count] int64.
    """
    for part in model.parts().values():
        part.eval()
    scenes = _single(seed, count)
    seen: dict[int, list[Tensor]] = {}
    tokenizer, blocks = model.image_encoder, model.backbone.blocks
    n = (SIDE // tokenizer.factor) ** 2

    def keep(k: int, x: Tensor) -> None:
        seen.setdefault(k, []).append(x[:, -n:].mean(1))  # what stands before the codes is no code

    handles = [blocks[0].register_forward_pre_hook(lambda _block, args: keep(0, args[0]))]
    for k, block in enumerate(blocks, 1):
        handles.append(block.register_forward_hook(lambda _block, _args, x, k=k: keep(k, x)))
    try:
        for i in range(0, count, 50):
            some = scenes[i : i + 50]
            x = to_tensor(torch.from_numpy(np.stack([render(s, SIDE, SIDE) for s in some])))
            cond = model.text_encoder(model.text_encoder.prepare([""] * len(some)))
            model.backbone(tokenizer.codes(tokenizer.encode(x)), cond)
    finally:
        for handle in handles:
            handle.remove()
    labels = torch.tensor([SHAPES.index(scene.objects[0].shape) for scene in scenes])
    return [torch.cat(seen[k]) for k in range(len(blocks) + 1)], labels


def probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Accuracy of a logistic regression.

    Args:
        x, y: [N, D] features and [N] classes to learn from; features are standardised by them.
        x_test, y_test: to judge on.
    """
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x, x_test = ((v - mean) / std for v in (x, x_test))
    classes = len(SHAPES)
    weight = torch.zeros(classes, x.shape[1] + 1, requires_grad=True)
    ones = torch.ones(len(x), 1)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = torch.cat([x, ones], dim=1) @ weight.T  # [N, K]
        value = F.cross_entropy(logits, y) + DECAY * weight[:, :-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    logits = x_test @ weight[:, :-1].T + weight[:, -1]
    return float((logits.argmax(1) == y_test).float().mean())


def _single(seed: int, count: int) -> list[Scene]:
    """The first scenes of one object that a seed gives."""
    found: list[Scene] = []
    index = 0
    while len(found) < count:
        scene = sample_scene(index, level=LEVEL, seed=100 + seed, split="all")
        if len(scene.objects) == 1:
            found.append(scene)
        index += 1
    return found
