"""The scene world measured: how well the reader reads, and how fast world and reader are.

    python benchmarks/scenes.py                 # both, about five minutes
    python benchmarks/scenes.py --n 200         # fewer pictures
    python benchmarks/scenes.py --only speed
    python benchmarks/scenes.py --sheet docs/images/scenes.png

Accuracy: share of objects whose shape and colour are read right in a box with IoU above 0.5, and
readings where there is no object, in percent of the objects; both at GenEval's confidence 0.3.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from gesso.data.scenes import (
    BACKGROUNDS,
    COLORS,
    Scene,
    captions,
    read,
    render,
    sample_scene,
    truth,
)
from gesso.data.scenes.reader import box_iou
from gesso.data.scenes.shapes import outline, warm
from gesso.evals._scene_prompts import paint_truth
from gesso.evals.scenes import THRESHOLD, prompts, score

Damage = Callable[[np.ndarray], np.ndarray]
LEVELS = (1, 2, 3)
SIDE = 64


def blur(sigma: float) -> Damage:
    return lambda picture: cv2.GaussianBlur(picture, (0, 0), sigma)


def noise(sigma: float) -> Damage:
    rng = np.random.default_rng(0)
    return lambda p: np.clip(p + rng.normal(0, sigma, p.shape), 0, 255).astype(np.uint8)


def jpeg(quality: int) -> Damage:
    def compress(picture: np.ndarray) -> np.ndarray:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        _, data = cv2.imencode(".jpg", picture[..., ::-1], options)
        return np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1])

    return compress


def autoencoder() -> Damage:
    """Through the shipped tiny autoencoder: encode, draw a latent, decode."""
    import torch

    from gesso.config import build

    torch.set_num_threads(1)
    model = build("encoders.image", {"name": "tiny"}).eval()
    generator = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def there_and_back(picture: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1  # [1, 3, H, W]
        decoded = model.decode(model.sample(model.encode(pixels), generator))[0]
        rgb = ((decoded.clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)
        return rgb.permute(1, 2, 0).contiguous().numpy()

    return there_and_back


def damages() -> dict[str, Damage]:
    return {
        "clean": lambda picture: picture,
        "blur 0.7 px": blur(0.7),
        "blur 1 px": blur(1.0),
        "blur 1.5 px": blur(1.5),
        "noise 8": noise(8),
        "noise 16": noise(16),
        "JPEG 75": jpeg(75),
        "JPEG 50": jpeg(50),
        "tiny autoencoder": autoencoder(),
    }


def judge(level: int, damage: Damage, n: int) -> tuple[float, float, list[tuple[float, bool]]]:
    """(share right, false readings per object, all (confidence, right) of readings)."""
    total = right = false = 0
    readings: list[tuple[float, bool]] = []
    for i in range(n):
        scene = sample_scene(i, level=level, seed=77, split="all")
        boxes = [tuple(box) for box in truth(scene, SIDE, SIDE).boxes.tolist()]
        found = read(damage(render(scene, SIDE, SIDE)), level).objects
        total += len(boxes)
        for detection in found:
            overlaps = [box_iou(box, detection.box) for box in boxes]
            best = int(np.argmax(overlaps))
            item = scene.objects[best]
            matches = overlaps[best] > 0.5
            same = matches and (item.shape, item.color) == (detection.shape, detection.color)
            readings.append((detection.confidence, same))
            if detection.confidence > THRESHOLD:
                right += same
                false += not matches
    return right / total, false / total, readings


def accuracy(n: int) -> None:
    print(f"\n| {n} scenes a cell, {SIDE} px | level 1 | level 2 | level 3 |\n|---|---|---|---|")
    everything: list[tuple[float, bool]] = []
    for name, damage in damages().items():
        cells = []
        for level in LEVELS:
            right, false, readings = judge(level, damage, n)
            everything += readings
            cells.append(f"{100 * right:.1f} % right, {100 * false:.1f} % false")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    calibration(everything)
    ceiling()


def calibration(readings: list[tuple[float, bool]]) -> None:
    print("\n| confidence, all of the above | readings | right |\n|---|---|---|")
    confidence, right = (np.array(column) for column in zip(*readings, strict=True))
    edges = [0, 0.3, 0.6, 0.9, 0.99, 1.01]
    for low, high in pairwise(edges):
        inside = (confidence >= low) & (confidence < high)
        mean = f"{100 * right[inside].mean():.1f} %" if inside.any() else "-"
        print(f"| {low} to {min(high, 1)} | {inside.sum()} | {mean} |")


def ceiling(per_tag: int = 50) -> None:
    """What a perfect model would score: renders that fulfil the prompts, clean and decoded."""
    print("\n| GenEval score of pictures that fulfil the prompts | clean | tiny autoencoder |")
    print("|---|---|---|")
    damage = autoencoder()
    for level in LEVELS:
        metadata = prompts(level, per_tag)
        pictures = [paint_truth(m, level, i) for i, m in enumerate(metadata)]
        clean = score([[p] for p in pictures], metadata, level)["overall"]
        decoded = score([[damage(p)] for p in pictures], metadata, level)["overall"]
        print(f"| level {level} | {clean:.3f} | {decoded:.3f} |", flush=True)


def draw_with_pil(scene: Scene) -> np.ndarray:
    """The same picture drawn by Pillow: polygons at four times the size, scaled down."""
    from PIL import Image, ImageDraw

    big = 4 * SIDE
    ground = BACKGROUNDS[scene.background.name]
    image = Image.new("RGB", (big, big), ground)
    pen = ImageDraw.Draw(image)
    for item in scene.objects:
        first, *holes = (
            [tuple(point) for point in (c * item.radius + [item.x, item.y]) * big]
            for c in outline(item.shape)
        )
        pen.polygon(first, fill=COLORS[item.color])
        for hole in holes:
            pen.polygon(hole, fill=ground)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def rate(work: Callable[[int], object], n: int) -> float:
    """Calls in a second of this process's CPU time (others may be running), best of five rounds."""
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        for i in range(n):
            work(i)
        best = max(best, n / (time.process_time() - start))
    return best


def jobs(n: int) -> dict[str, Callable[[int], object]]:
    """What is timed: each takes the number of a scene below n."""
    warm()
    scenes = [sample_scene(i, level=2) for i in range(n)]
    pictures = [render(scene, SIDE, SIDE) for scene in scenes]
    first = [sample_scene(i, level=1) for i in range(n)]
    first_pictures = [render(scene, SIDE, SIDE) for scene in first]
    target = np.empty_like(pictures[0])
    return {
        "render, level 2": lambda i: render(scenes[i], SIDE, SIDE),
        "render, level 1": lambda i: render(first[i], SIDE, SIDE),
        "Pillow at x4, scaled down, level 2": lambda i: draw_with_pil(scenes[i]),
        "scene, picture and captions, level 2": lambda i: captions(
            _with_picture(sample_scene(i, level=2)), seed=i
        ),
        "read, level 1": lambda i: read(first_pictures[i], 1),
        "read, level 2": lambda i: read(pictures[i], 2),
        "one copy of the picture in memory": lambda i: np.copyto(target, pictures[i]),
    }


def _with_picture(scene: Scene) -> Scene:
    render(scene, SIDE, SIDE)
    return scene


def _worker(name: str, n: int) -> float:
    cv2.setNumThreads(1)
    return rate(jobs(n)[name], n)


def speed(n: int) -> None:
    """Pictures per CPU second, alone and summed over two processes, and the ratio to Pillow."""
    cv2.setNumThreads(1)
    alone = {name: rate(work, n) for name, work in jobs(n).items()}
    peer = alone["Pillow at x4, scaled down, level 2"]
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {SIDE} px")
    print(
        "| pictures per CPU second | one process | two processes | ratio to Pillow |\n"
        "|---|---|---|---|"
    )
    context = get_context("spawn")
    for name, one in alone.items():
        with context.Pool(2) as pool:
            two = sum(pool.starmap(_worker, [(name, n)] * 2))
        print(f"| {name} | {one:,.0f} | {two:,.0f} | {one / peer:.2f} |", flush=True)


def sheet(file: Path, cell: int = 144, columns: int = 7) -> None:
    """A picture sheet: two rows a level, each picture with its first caption."""
    from PIL import Image, ImageDraw, ImageFont

    pad, text = 12, 46
    font = ImageFont.load_default(size=11)
    page = Image.new(
        "RGB", (columns * (cell + pad) + pad, 6 * (cell + text + pad) + pad), (255, 255, 255)
    )
    pen = ImageDraw.Draw(page)
    for row in range(6):
        for column in range(columns):
            scene = sample_scene(row % 2 * columns + column, level=1 + row // 2, seed=12)
            x, y = pad + column * (cell + pad), pad + row * (cell + text + pad)
            page.paste(Image.fromarray(render(scene, cell, cell)), (x, y))
            lines, words = [""], captions(scene)[0].text.split()
            for word in words:
                longer = f"{lines[-1]} {word}".strip()
                if font.getlength(longer) > cell:
                    lines.append(word)
                else:
                    lines[-1] = longer
            pen.multiline_text((x, y + cell + 3), "\n".join(lines), (60, 60, 66), font, spacing=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file, optimize=True)
    print(f"Wrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the scene world.")
    parser.add_argument("--n", type=int, default=1000, help="scenes a cell")
    parser.add_argument("--only", choices=["accuracy", "speed"], help="one part")
    parser.add_argument("--sheet", type=Path, help="only write the picture sheet here")
    options = parser.parse_args()
    if options.sheet:
        sheet(options.sheet)
        return
    if options.only != "accuracy":
        speed(min(options.n, 500))
    if options.only != "speed":
        accuracy(options.n)


if __name__ == "__main__":
    main()
