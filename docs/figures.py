"""The figures of docs/real-pictures.md, from a finished run.

    python docs/figures.py runs/emoji docs/images/emoji

writes `emoji-samples.png`, the validation pictures through time (one row a step, one column a
prompt), and `emoji-loss.svg`, training and held-out loss.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gesso.config import load_recipe
from gesso.report import loss_plot, read_metrics
from gesso.train.run import grid_columns

MOST = 5  # rows
LABEL = 14  # pixels above each row


def samples(run: Path) -> Image.Image:
    recipe = load_recipe(str(run / "recipe.yaml"))
    n, height, width = len(recipe.validation.prompts), recipe.sample.height, recipe.sample.width
    sheets = sorted((run / "samples").glob("step-*.png"))
    places = np.geomspace(1, len(sheets), min(MOST, len(sheets))).round().astype(int) - 1
    chosen = [sheets[i] for i in sorted(set(places.tolist()))]
    out = Image.new("RGB", (n * width, len(chosen) * (height + LABEL)), "white")
    columns = grid_columns(n)
    for row, file in enumerate(chosen):
        top = row * (height + LABEL)
        step = int(file.stem.removeprefix("step-"))
        ImageDraw.Draw(out).text((2, top + 1), f"step {step:,}", fill="black")
        with Image.open(file) as sheet:
            for i in range(n):
                x, y = i % columns * width, i // columns * height
                out.paste(sheet.crop((x, y, x + width, y + height)), (i * width, top + LABEL))
    return out


def main() -> None:
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = samples(run)
    picture.thumbnail((1152, 1152))
    picture.save(out.with_name(f"{out.name}-samples.png"), optimize=True)
    out.with_name(f"{out.name}-loss.svg").write_text(loss_plot(read_metrics(run)))


if __name__ == "__main__":
    main()
