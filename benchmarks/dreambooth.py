"""DreamBooth on scenes: does the model learn a subject, and what does it forget?

    python benchmarks/dreambooth.py

The subject is a striped purple star, on five pictures; the shipped model knows plain ones only. The
reader looks for it in pictures of "a photo of a sks star", and for what drifted towards it in those
of "a photo of a star"; GenEval's tags on scenes tell what else was forgotten. Printed for the model
as it ships, for DreamBooth, and for the same training without the prior's pictures. All pictures
are painted with 12 steps of Euler.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import gesso
from gesso.config import load_recipe
from gesso.data.scenes import Object, Scene, read, render
from gesso.evals.scenes import evaluate
from gesso.pipeline import Pipeline
from gesso.train.run import train_recipe

PLACES = ((0.3, 0.4), (0.6, 0.3), (0.5, 0.6), (0.35, 0.65), (0.65, 0.55))
PICTURES = 32
PROMPTS = {
    "subject": "a photo of a sks star",
    "in a scene": "a sks star left of a blue square",
    "class": "a photo of a star",
}


def subject(folder: Path) -> None:
    """Five pictures of it."""
    folder.mkdir()
    for i, (x, y) in enumerate(PLACES):
        star = Object("star", "purple", "large", x, y, 0.2, "striped")
        Image.fromarray(render(Scene(3, "single_object", (star,)))).save(folder / f"{i}.png")


def judge(pipe: Pipeline, per_tag: int) -> dict[str, float]:
    """Shares of pictures in which the subject is, by prompt; and GenEval's overall."""
    fast = {"sampler": "euler", "num_inference_steps": 12}
    pipe.model.sample = pipe.model.sample.model_copy(update=fast)
    numbers = {}
    for name, prompt in PROMPTS.items():
        images = pipe([prompt] * PICTURES, seed=0).images
        found = [
            [d for d in read(np.asarray(im), 3).objects if d.confidence > 0.3] for im in images
        ]
        stars = [any((d.shape, d.color) == ("star", "purple") for d in seen) for seen in found]
        striped = [
            any((d.shape, d.color, d.texture) == ("star", "purple", "striped") for d in seen)
            for seen in found
        ]
        numbers[f"{name}: purple star"] = float(np.mean(stars))
        numbers[f"{name}: striped"] = float(np.mean(striped))

    def paint(texts: list[str], seeds: list[int]) -> list[np.ndarray]:
        return [np.asarray(im) for im in pipe(texts, seed=seeds, batch_size=32).images]

    numbers["GenEval on scenes"] = evaluate(paint, level=1, per_tag=per_tag, n=1)["overall"]
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--per-tag", type=int, default=20)
    parser.add_argument("overrides", nargs="*", help="of the recipe dreambooth: train.steps=100")
    args = parser.parse_args()
    rows = {"as it ships": judge(gesso.load(), args.per_tag)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subject(folder / "subject")
        for name, prior in (("DreamBooth", 64), ("without the prior", 0)):
            options = [f"data.source.path={folder}/subject", f"data.source.prior_pictures={prior}"]
            options += ["validation.holdout=0"] if not prior else []
            recipe = load_recipe(
                "dreambooth", [*options, "train.validate_every=0", *args.overrides]
            )
            run = folder / f"prior-{prior}"
            seconds = train_recipe(recipe, run, quiet=True)["seconds"]
            pipe = gesso.load()
            pipe.load_lora(run)
            rows[f"{name} ({seconds:.0f} s)"] = judge(pipe, args.per_tag)
    width = max(map(len, rows))
    keys = list(next(iter(rows.values())))
    print(f"{'':{width}}  " + "  ".join(keys))
    for name, numbers in rows.items():
        print(f"{name:{width}}  " + "  ".join(f"{numbers[k]:>{len(k)}.2f}" for k in keys))


if __name__ == "__main__":
    main()
