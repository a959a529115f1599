"""The row of pictures in docs/control.md: the edges of three scenes, and paintings along them.

    python docs/control_row.py RUN docs/images/control.png

RUN is a run of `gesso train pixart-delta-control`. Beside each scene's edges are paintings of two
captions with seed 0, the first ones.
"""

import sys

import numpy as np
from PIL import Image, ImageDraw

import gesso
from gesso.controls.canny import canny
from gesso.data.scenes import render, sample_scene

SCENES = (  # places in the test split of seed 1, and what is asked for
    (10, ("a photo of a yellow star", "a photo of a purple star")),
    (13, ("a black star and a blue circle", "a pink star and a green circle")),
    (21, ("a white star below a yellow circle", "a black star below a red circle")),
)
SIDE, GAP, TEXT = 128, 12, 30


def main() -> None:
    pipe = gesso.load(sys.argv[1])
    row = Image.new("RGB", (3 * len(SCENES) * (SIDE + GAP) - GAP, SIDE + TEXT), "white")
    draw = ImageDraw.Draw(row)
    x = 0
    for index, captions in SCENES:
        scene = sample_scene(index, level=1, seed=1, split="test")
        edges = np.repeat(canny(render(scene, 64, 64))[..., None], 3, axis=2)
        painted = pipe(list(captions), control_image=edges, seed=[0, 0]).images
        for picture, text in zip(
            [Image.fromarray(edges), *painted], ["edges", *captions], strict=True
        ):
            row.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, 0))
            half = text.rfind(" ", 0, 22) if len(text) > 22 else len(text)
            draw.multiline_text(
                (x, SIDE + 3), f"{text[:half]}\n{text[half:].strip()}", fill="black"
            )
            x += SIDE + GAP
    row.save(sys.argv[2], optimize=True)


if __name__ == "__main__":
    main()
