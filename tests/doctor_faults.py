"""Faults of ten kinds, planted into a folder of sound pictures; what was planted is the truth."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from random import Random

import cv2
import numpy as np
from PIL import Image, ImageEnhance

EXACT = (
    "corrupt",
    "exact duplicate",
    "no caption",
    "cut caption",
    "repeated caption",
    "tiny",
    "cropped",
)
FUZZY = ("near duplicate", "blurred")

Fault = frozenset[str]  # the one or two pictures that it is about


def plant(
    pictures: list[tuple[np.ndarray, str]], folder: Path, each: int, seed: int = 0
) -> dict[str, dict[str, set[Fault]]]:
    """Write pictures and captions, `each` of every kind of fault among them.

    Args:
        pictures: at least 13 * each, [H, W, 3] uint8 of 128 to 256 a side and nearly square, with
            captions; pictures and captions are all different.
        folder: is made; pictures are `0000.png` ..., captions `.txt` files.
        each: faults of each of ten kinds; even.
        seed: of the choice.

    Returns:
        {what was planted: {kind to be found: faults}}.
    """
    folder.mkdir(parents=True)
    assert len({image.tobytes() for image, _ in pictures}) == len(pictures)
    assert len({caption for _, caption in pictures}) == len(pictures)
    rng = Random(seed)
    for number, (image, caption) in enumerate(pictures):
        _save(folder / f"{number:04d}.png", image, caption)
    left = list(range(len(pictures)))
    rng.shuffle(left)
    truth: dict[str, dict[str, set[Fault]]] = defaultdict(lambda: defaultdict(set))

    def plan(name: str, kind: str, *keys: str) -> None:
        truth[name][kind].add(frozenset(keys))

    for turn in range(each):
        half = turn % 2 == 0

        key, file = _take(left, folder)  # cut short, or no picture at all
        file.write_bytes(file.read_bytes()[:300] if half else b"<html>not found</html>")
        plan("corrupt", "corrupt", key)

        key, file = _take(left, folder)
        twin = f"exact-{turn:03d}.{'png' if half else 'bmp'}"
        Image.open(file).save(folder / twin)
        _caption(folder / twin, f"another picture, number {turn}")
        plan("exact duplicate", "exact duplicate", key, twin)

        key, file = _take(left, folder)
        twin = f"near-{turn:03d}.jpg"
        _save(folder / twin, _reencoded(Image.open(file), rng), f"once more, number {turn}")
        plan("near duplicate", "near duplicate", key, twin)

        key, file = _take(left, folder)
        file.with_suffix(".txt").unlink()
        plan("missing caption", "no caption", key)

        key, file = _take(left, folder)
        file.with_suffix(".txt").write_text("" if half else " \n\t\n")
        plan("empty caption", "no caption", key)

        key, file = _take(left, folder)
        words = [f"{w}{turn}" for w in ("red", "star", "above", "circle")]
        _caption(file, " ".join(rng.choice(words) for _ in range(140 + turn)))
        plan("long caption", "cut caption", key)

        key, file = _take(left, folder)
        other, twin_file = _take(left, folder)
        text = twin_file.with_suffix(".txt").read_text()
        _caption(file, text if half else f" {text.upper()} ")
        plan("repeated caption", "repeated caption", key, other)

        key, file = _take(left, folder)
        side = rng.randint(20, 60)
        _save(file, np.asarray(Image.open(file).convert("RGB").resize((side, side))))
        plan("tiny", "tiny", key)

        key, file = _take(left, folder)
        image = np.asarray(Image.open(file).convert("RGB"))
        sigma = rng.uniform(2, 4) * min(image.shape[:2]) / 128
        _save(file, cv2.GaussianBlur(image, (0, 0), sigma))
        plan("blurred", "blurred", key)

        key, file = _take(left, folder)
        size = (640, 100) if half else (100, 640)
        _save(file, np.asarray(Image.open(file).convert("RGB").resize(size)))
        plan("cropped", "cropped", key)
    return {name: dict(kinds) for name, kinds in truth.items()}


def _take(left: list[int], folder: Path) -> tuple[str, Path]:
    """The key and file of a picture that no other fault is about."""
    key = f"{left.pop():04d}.png"
    return key, folder / key


def _save(file: Path, image: np.ndarray, caption: str | None = None) -> None:
    Image.fromarray(image).save(file)
    if caption is not None:
        _caption(file, caption)


def _caption(file: Path, caption: str) -> None:
    file.with_suffix(".txt").write_text(caption)


def _reencoded(image: Image.Image, rng: Random) -> np.ndarray:
    """As a web site would show it: smaller, a little brighter or darker, and through JPEG."""
    scale = rng.uniform(0.65, 0.95)
    small = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    toned = ImageEnhance.Brightness(small).enhance(rng.uniform(0.93, 1.07))
    buffer = io.BytesIO()
    toned.save(buffer, "JPEG", quality=rng.randint(60, 90))
    return np.asarray(Image.open(buffer))


def found_faults(rows: list[dict[str, str]], kind: str) -> set[Fault]:
    """The faults of a kind among the lines of findings.jsonl."""
    return {
        frozenset(k for k in (row["key"], row["other"]) if k) for row in rows if row["kind"] == kind
    }
