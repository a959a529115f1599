"""Painting along given edges: the released wiring of PixArt-delta's control branch, and the usual.

PixArt-delta (arXiv 2401.05252, section 3.2) copies a transformer's first blocks and says that the
picture follows the edges while the text decides the rest. Here the shipped model learns to follow
Canny's edges of scenes; colours are in the caption alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from gesso.config import Recipe
from gesso.controls.canny import canny
from gesso.data.images import to_tensor
from gesso.data.scenes import Scene, read, render, sample_scene, short_wordings
from gesso.experiments import measure
from gesso.experiments.design import Arm, Claim, Experiment, Job, Numbers
from gesso.loading import find, load
from gesso.model import Model

LEVEL, THRESHOLD = 1, 0.5  # of scenes, and of the reader's confidence
SIDE = 64
STEPS = 300
SCENES = 120
TOLERANCE = 1  # pixels
KINDS = ("colors", "color_attr")  # whose short captions name every colour


def experiment() -> Experiment:
    """Two wirings with several seeds, between the model without edges and the scenes themselves."""
    return Experiment(
        name="control",
        claim="A control branch of copied blocks makes a diffusion transformer follow edges, and "
        "the caption still decides the colours (PixArt-δ, section 3.2).",
        setting=f"Scenes of level 1, {SCENES} of one or two objects with held-out combinations, "
        "whose captions name colours and shapes, some a relation, none a place. The condition is "
        "Canny's edges of the scene's picture. The shipped model stays; copies of 3 of its 6 "
        f"blocks learn for {STEPS} steps of 64 pictures, Muon. Sampled as it ships, Heun 20 steps, "
        "guidance 3. IoU: share of the edge pixels of both pictures, Canny's again, that lie "
        "within 1 pixel of the other's, as p r / (p + r - p r) with p and r those shares in the "
        "painted and in the given edges, mean over pictures. Colours: share of the objects of "
        "captions that the reader finds with shape and colour.",
        arms=[
            Arm("released", "the first copy reads what block 0 wrote", partial(_run, "released")),
            Arm("ordinary", "the first copy reads what block 0 reads", partial(_run, "ordinary")),
            Arm("uncontrolled", "the shipped model, captions alone", _uncontrolled, seeds=1),
            Arm("decoded", "the scenes' own pictures, through the autoencoder", _decoded, seeds=1),
        ],
        claims=[
            Claim("Edges are followed: IoU above 0.8", "iou", {"released": 1}, 0.8),
            Claim("Captions' colours hold: above 0.9", "colours", {"released": 1}, 0.9),
            Claim(
                "The branch does it: IoU above the uncontrolled model's by 0.3",
                "iou",
                {"released": 1, "uncontrolled": -1},
                0.3,
            ),
            Claim(
                "The released wiring follows better than the ordinary one",
                "iou",
                {"released": 1, "ordinary": -1},
            ),
        ],
        metrics={
            "iou": "IoU of edges",
            "colours": "objects right in shape and colour",
            "loss": "held-out loss",
            "tflop": "training (TFLOP)",
            "seconds": "training (s)",
        },
        figure=["iou", "colours"],
    )


def controlled(job: Job, wiring: str) -> Recipe:
    """The training of one wiring."""
    overrides = [f"train.steps={STEPS}", f"adapter.wiring={wiring}"]
    return measure.recipe(job, overrides, "pixart-delta-control")


def _run(wiring: str, job: Job) -> Numbers:
    trained = measure.train(job, controlled(job, wiring))
    scenes = test_scenes(4 if job.quick else SCENES)
    scores = judge(paint(trained.run, scenes), scenes)
    return scores | {
        "loss": trained.loss,
        "tflop": trained.flops / 1e12,
        "seconds": trained.seconds,
    }


def _uncontrolled(job: Job) -> Numbers:
    scenes = test_scenes(4 if job.quick else SCENES)
    return judge(measure.paint(find(None), [caption_of(s) for s in scenes]), scenes)


def _decoded(job: Job) -> Numbers:
    scenes = test_scenes(4 if job.quick else SCENES)
    encoder = Model.load(find(None), {"image_encoder"}).image_encoder
    pixels = to_tensor(np.stack([picture_of(scene) for scene in scenes]))  # [N, 3, H, W]
    with torch.no_grad():
        decoded = encoder.decode(encoder.sample(encoder.encode(pixels))).clamp(-1, 1)
    pictures = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return judge(list(pictures), scenes)


def paint(run: Path, scenes: list[Scene]) -> list[np.ndarray]:
    """A picture [H, W, 3] uint8 for each scene's caption and edges; noise as in `measure.paint`."""
    pipe = load(run)
    edges = [canny(picture_of(scene)) for scene in scenes]
    seeds = list(range(len(scenes)))
    out = pipe([caption_of(s) for s in scenes], control_image=edges, seed=seeds)
    return [np.asarray(image) for image in out.images]


def test_scenes(count: int) -> list[Scene]:
    """Scenes with held-out combinations whose captions name every object's colour."""
    found: list[Scene] = []
    index = 0
    while len(found) < count:
        scene = sample_scene(index, level=LEVEL, seed=1, split="test")
        index += 1
        if scene.kind in KINDS:
            found.append(scene)
    return found


def picture_of(scene: Scene) -> np.ndarray:
    """[H, W, 3] uint8."""
    return render(scene, SIDE, SIDE)


def caption_of(scene: Scene) -> str:
    """Its first short caption."""
    return short_wordings(scene)[0]


def judge(pictures: list[np.ndarray], scenes: list[Scene]) -> Numbers:
    """Compare pictures with the edges and the objects of scenes.

    Args:
        pictures: [H, W, 3] uint8, one a scene.
        scenes: that were asked for.

    Returns:
        iou: mean of `edge_iou`.
        colours: share of the objects whose shape is there in the right colour.
    """
    ious, right = [], []
    for picture, scene in zip(pictures, scenes, strict=True):
        ious.append(edge_iou(canny(picture) > 0, canny(picture_of(scene)) > 0))
        seen = [d for d in read(picture, scene.level).objects if d.confidence > THRESHOLD]
        found = {(d.shape, d.color) for d in seen}
        right += [(asked.shape, asked.color) in found for asked in scene.objects]
    return {"iou": float(np.mean(ious)), "colours": float(np.mean(right))}


def edge_iou(one: np.ndarray, other: np.ndarray, tolerance: int = TOLERANCE) -> float:
    """Intersection over union of thin edges, some pixels apart counting as the same.

    With p and r the shares of either's edge pixels within `tolerance` pixels (a square's radius) of
    one of the other's: p r / (p + r - p r), which is |A and B| / |A or B| at a tolerance of 0.

    Args:
        one, other: [H, W] bool.

    Returns:
        0..1; 1 if neither has an edge, 0 if only one has.
    """
    import cv2

    if not one.any() or not other.any():
        return float(one.any() == other.any())
    around = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    wide = [cv2.dilate(edges.astype(np.uint8), around) > 0 for edges in (one, other)]
    p, r = float(wide[1][one].mean()), float(wide[0][other].mean())
    return p * r / (p + r - p * r) if p + r else 0.0
