"""`gesso evaluate judges`: how far each judge agrees with what is known to be true.

    scenes      renders with exact truth, degraded step by step: detectors of shapes, and readers
    COCO        photos with annotated boxes: detectors that know the classes
    DSG, TIFA   people's ratings of pictures against scores from released answers of VQA models

Writes OUT/judges.json and OUT/judges.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gesso.evals.fingerprint import fingerprint
from gesso.evals.judging import open_judge
from gesso.evals.types import Box, Detection, Image, Judge
from gesso.types import GessoError

THRESHOLD = 0.3  # confidence above which an object counts as found
OVERLAP = 0.5  # IoU from which a box is at the place of another
BINS = 10
SCENES = 200  # pictures a step
LEVEL, SIDE = 2, 64  # of scenes for detectors
TEXT_SIDE = 256  # of scenes for readers: their letters are small
COLUMNS = ("accuracy", "precision", "recall", "ece", "spearman", "kendall")

Row = dict[str, Any]


def judge_judges(
    judges: Sequence[str] = (),
    *,
    coco: Path | None = None,
    ratings: Path | None = None,
    limit: int | None = None,
    out: Path | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Judge judges.

    Args:
        judges: specs; default: the reader of scenes.
        coco: folder with annotations/instances*.json and the photos, for detectors.
        ratings: folder that holds `dsg` (a copy of github.com/j-min/DSG) and perhaps `tifa` (of
            Yushi-Hu/tifa), for the released answers.
        limit: pictures a step; default: 200 scenes, all photos.
        out: default: evaluations/judges.

    Returns:
        benchmark, judge, rows, table (Markdown), out, say.

    Raises:
        GessoError: no such judge or folder, or a judge that nothing is known for.
    """
    from gesso.progress import steps_bar

    opened = [open_judge(spec, device) for spec in judges or (f"reader:level={LEVEL}",)]
    rows: list[Row] = []
    with steps_bar("judging judges", quiet) as show:
        for i, judge in enumerate(opened):
            mine = [*_on_scenes(judge, limit or SCENES), *_on_words(judge, limit or SCENES)]
            if coco is not None:
                mine += _on_coco(judge, coco, limit)
            if not mine:
                raise GessoError(
                    f"Nothing is known to judge {judge.name} by: take reader:level={LEVEL} for "
                    "scenes, reader:level=3 or ocr for words, and give --reference with a COCO "
                    "folder for detectors."
                )
            rows += mine
            show(i + 1, len(opened))
    if ratings is not None:
        rows += _people(ratings)
    place = out or Path("evaluations/judges")
    place.mkdir(parents=True, exist_ok=True)
    table = markdown(rows)
    result = {
        "benchmark": "judges",
        "judge": " + ".join(judge.name for judge in opened),
        "fingerprint": fingerprint([j.fingerprint for j in opened], THRESHOLD, OVERLAP, LEVEL),
        "rows": rows,
        "table": table,
    }
    (place / "judges.json").write_text(json.dumps(result, indent=1) + "\n")
    (place / "judges.md").write_text(table + "\n")
    return {**result, "out": str(place), "say": table}


# --------------------------------------------------------------------------------- degradations


def degradations() -> dict[str, Callable[[Image], Image]]:
    """Steps of damage, by name; noise is drawn from the picture itself."""
    import cv2

    def blur(sigma: float) -> Callable[[Image], Image]:
        return lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))

    def noise(sigma: float) -> Callable[[Image], Image]:
        def damaged(image: Image) -> Image:
            drawn = np.random.default_rng(int(image.sum())).normal(0, sigma, image.shape)
            return np.clip(image + drawn, 0, 255).astype(np.uint8)

        return damaged

    def jpeg(quality: int) -> Callable[[Image], Image]:
        def damaged(image: Image) -> Image:
            _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
            return np.ascontiguousarray(np.asarray(decoded)[..., ::-1])

        return damaged

    return {
        "clean": lambda image: image,
        **{f"blur {s:g} px": blur(s) for s in (1.0, 2.0, 3.0)},
        **{f"noise {s:g}": noise(s) for s in (8.0, 24.0, 48.0)},
        **{f"JPEG {q}": jpeg(q) for q in (75, 30, 10)},
    }


# ----------------------------------------------------------------------------------- detections


def _on_scenes(judge: Judge, count: int) -> Iterator[Row]:
    """Objects of scenes: right where shape (and colour, if told) agree at the place."""
    from gesso.data.scenes import LEVELS, render, sample_scene, truth

    shapes = LEVELS[LEVEL].shapes
    if "detect" not in judge.abilities or not _knows(judge, shapes):
        return
    scenes = [sample_scene(i, level=LEVEL, seed=9, split="all") for i in range(count)]
    known = [
        [
            (o.shape, o.color, tuple(map(float, box)))
            for o, box in zip(s.objects, truth(s, SIDE, SIDE).boxes, strict=True)
        ]
        for s in scenes
    ]
    for step, damage in degradations().items():
        images = [damage(render(s, SIDE, SIDE)) for s in scenes]
        found = judge.detect(images, [shapes] * count)
        yield {
            "truth": f"scenes of level {LEVEL}, {step}",
            "judge": judge.name,
            "n": count,
            **agreement(found, known),
        }


def _knows(judge: Judge, classes: tuple[str, ...]) -> bool:
    try:
        judge.detect([np.zeros((32, 32, 3), np.uint8)], [classes])
    except GessoError:
        return False
    return True


Known = list[tuple[str, str, Any]]
"""(class, colour or "" if not known, box) of the things in a picture."""


def agreement(found: Sequence[list[Detection]], known: Sequence[Known]) -> dict[str, Any]:
    """Of detections with what is known, things at one place paired greedily by confidence.

    Returns:
        accuracy: things found at their place with the right class and colour;
        precision, recall: of classes present in a picture, whatever their place;
        ece: of confidences, against how often such a detection is right;
        spearman, kendall: of confidence and rightness over detections.
    """
    right: list[bool] = []
    confidences: list[float] = []
    things = hits = 0
    presence: Counter[str] = Counter()
    for objects, truths in zip(found, known, strict=True):
        open_truths = list(truths)
        for detection in sorted(objects, key=lambda d: -d.confidence):
            pair = next((t for t in open_truths if _same(detection, t)), None)
            if pair is not None:
                open_truths.remove(pair)
            right.append(pair is not None)
            confidences.append(detection.confidence)
            hits += pair is not None and detection.confidence > THRESHOLD
        things += len(truths)
        seen = {d.label for d in objects if d.confidence > THRESHOLD}
        there = {name for name, _, _ in truths}
        presence += Counter(tp=len(seen & there), fp=len(seen - there), fn=len(there - seen))
    tp = presence["tp"]
    return {
        "accuracy": hits / things if things else None,
        "precision": tp / (tp + presence["fp"]) if tp else None,
        "recall": tp / (tp + presence["fn"]) if tp else None,
        "ece": calibration_error(confidences, right),
        **ranks(confidences, right),
    }


def _same(detection: Detection, known: tuple[str, str, Any]) -> bool:
    name, color, box = known
    return (
        detection.label == name
        and (not detection.color or not color or detection.color == color)
        and iou(detection.box, box) >= OVERLAP
    )


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height)


def _on_coco(judge: Judge, folder: Path, limit: int | None) -> Iterator[Row]:
    """Photos with annotated boxes, without crowds."""
    from gesso.data.images import load_rgb
    from gesso.evals.coco import COCO

    if "detect" not in judge.abilities or not _knows(judge, COCO):
        return
    files = sorted(folder.glob("**/instances*.json"))
    if not files:
        raise GessoError(f"{folder} holds no instances*.json: give a folder in COCO's layout.")
    annotations = json.loads(files[0].read_text())
    names = {c["id"]: c["name"] for c in annotations["categories"]}
    known: dict[int, Known] = {image["id"]: [] for image in annotations["images"]}
    for thing in annotations["annotations"]:
        if not thing.get("iscrowd"):
            x, y, w, h = thing["bbox"]
            known[thing["image_id"]].append((names[thing["category_id"]], "", (x, y, x + w, y + h)))
    photos = annotations["images"][:limit]
    found = []
    for photo in photos:
        file = next(folder.rglob(photo["file_name"]), None)
        if file is None:
            raise GessoError(f"{folder} lacks the photo {photo['file_name']}: add it.")
        found += judge.detect([load_rgb(file)], [COCO])
    yield {
        "truth": f"COCO boxes ({folder.name})",
        "judge": judge.name,
        "n": len(photos),
        **agreement(found, [known[photo["id"]] for photo in photos]),
    }


# -------------------------------------------------------------------------------------- reading


def _on_words(judge: Judge, count: int) -> Iterator[Row]:
    """Rendered words of scenes."""
    from gesso.data.scenes import render, sample_scene

    if "read" not in judge.abilities or judge.name in ("reader-level1", "reader-level2"):
        return
    scenes = [s for i in range(4 * count) if (s := sample_scene(i, level=3, seed=9)).word]
    scenes = scenes[: max(1, count // 4)]
    for step, damage in degradations().items():
        images = [damage(render(s, TEXT_SIDE, TEXT_SIDE)) for s in scenes]
        said = judge.read(images)
        right = [s.word in text.lower().split() for s, text in zip(scenes, said, strict=True)]
        yield {
            "truth": f"words in scenes of {TEXT_SIDE} px, {step}",
            "judge": judge.name,
            "n": len(scenes),
            "accuracy": float(np.mean(right)),
        }


# --------------------------------------------------------------------------------------- people


def _people(folder: Path) -> Iterator[Row]:
    """Scores from released answers against people's mean ratings of the same pictures."""
    from gesso.evals.released import JUDGES, RATED, human_ratings, released_scores

    dsg = folder / "dsg" if (folder / "dsg" / "vqa_answers_release").is_dir() else folder
    ratings = human_ratings(dsg)
    for questions in ("dsg", "vq2a"):
        for short, name in JUDGES.items():
            scores = released_scores(dsg, short, questions)
            items = [(model, f"tifa160_{i}") for model in RATED for i in range(160)]
            yield {
                "truth": f"people's ratings of TIFA160 (DSG), {questions.upper()} questions",
                "judge": f"{name}, released answers",
                "n": len(items),
                **_against_people([scores.get(i, 0.0) for i in items], [ratings[i] for i in items]),
            }
    file = folder / "tifa" / "human_annotations" / "human_annotations_with_scores.json"
    if file.is_file():
        pictures = list(json.loads(file.read_text()).values())
        people = [p["human_avg"] for p in pictures]
        for key in (k for k in pictures[0] if k.startswith(("tifa_", "clipscore"))):
            values = [p[key] / (100 if key.startswith("clip") else 1) for p in pictures]
            row = _against_people(values, people)
            if key.startswith("clip"):
                row["ece"] = None  # a cosine is no share
            yield {
                "truth": "people's ratings of TIFA160 (TIFA)",
                "judge": f"{key.replace('_', ' ', 1)}, released",
                "n": len(pictures),
                **row,
            }


def _against_people(scores: list[float], ratings: list[float]) -> dict[str, Any]:
    """Calibration against the rating as a share of the scale (1 to 5), and rank correlations."""
    return {
        "ece": calibration_error(scores, [(r - 1) / 4 for r in ratings]),
        **ranks(scores, ratings),
    }


# ------------------------------------------------------------------------------------- measures


def calibration_error(confidence: Sequence[float], right: Sequence[float]) -> float | None:
    """Expected calibration error (Guo et al., arXiv 1706.04599, eq. 3) over ten equal bins."""
    if not confidence:
        return None
    c, r = np.asarray(confidence, float), np.asarray(right, float)
    place = np.minimum((c * BINS).astype(int), BINS - 1)
    error = 0.0
    for i in np.unique(place):
        inside = place == i
        error += inside.mean() * abs(c[inside].mean() - r[inside].mean())
    return float(error)


def ranks(a: Sequence[float], b: Sequence[float]) -> dict[str, float | None]:
    """Spearman's rho and Kendall's tau-b; None where one side does not vary."""
    from scipy.stats import kendalltau, spearmanr

    if len(set(a)) < 2 or len(set(b)) < 2:
        return {"spearman": None, "kendall": None}
    return {
        "spearman": float(spearmanr(a, b).statistic),
        "kendall": float(kendalltau(a, b).statistic),
    }


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [
        "| truth | judge | n | " + " | ".join(COLUMNS) + " |",
        "|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        values = [row.get(c) for c in COLUMNS]
        told = ["" if v is None else f"{v:.3f}" for v in values]
        lines.append(f"| {row['truth']} | {row['judge']} | {row['n']} | {' | '.join(told)} |")
    return "\n".join(lines)
