"""GenEval on the built-in world: its six tags and rules, with the reader as the detector.

Rules: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment"
(arXiv 2310.11513). The prompts ask for combinations that training scenes never show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gesso.data.scenes import Detection, read
from gesso.evals import clauses
from gesso.evals._scene_prompts import known_level, prompts
from gesso.evals.clauses import THRESHOLD, select, told_colors
from gesso.evals.types import Detection as Seen
from gesso.types import GessoError

__all__ = ["TAGS", "THRESHOLD", "check", "evaluate", "evaluate_model", "prompts", "score"]

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
CHUNK = 32  # pictures painted at a time


def check(found: list[Detection], metadata: dict[str, Any]) -> tuple[bool, list[str]]:
    """Judge one picture's detections by GenEval's rules, see `gesso.evals.clauses`.

    Args:
        found: detections in any order.
        metadata: tag, include and exclude, see `prompts`.

    Returns:
        Whether the picture is right, and one reason for each thing that is not.
    """
    seen = [Seen(d.shape, d.confidence, d.box, d.mask, d.color) for d in found]
    objects = select(seen, counting=metadata["tag"] == "counting")
    judging = clauses.check(objects, metadata, told_colors)
    try:
        next(judging)
    except StopIteration as end:
        return not end.value, end.value
    raise AssertionError("the reader tells colours: nothing is asked")


def score(
    pictures_by_prompt: list[list[np.ndarray]], metadata: list[dict[str, Any]], level: int = 3
) -> dict[str, Any]:
    """Judge pictures.

    Args:
        pictures_by_prompt: for each prompt, its pictures [H, W, 3] uint8.
        metadata: for each prompt, its entry from `prompts`.
        level: whose shapes the reader looks for.

    Returns:
        scores (tag -> share of pictures that are right), overall (unweighted mean of the tags),
        n (pictures), correct (share of all pictures), any_correct (share of prompts with a
        correct picture), and failures: a list of prompt, tag, index (of the prompt), picture
        (of the prompt's pictures) and reason.

    Raises:
        GessoError: the lists differ in length or there is nothing to judge.
    """
    if len(pictures_by_prompt) != len(metadata):
        raise GessoError(
            f"There are pictures for {len(pictures_by_prompt)} prompts but metadata for "
            f"{len(metadata)}: give one list of pictures per entry."
        )
    verdicts: dict[str, list[bool]] = {}
    failures: list[dict[str, Any]] = []
    solved = 0
    for index, (pictures, entry) in enumerate(zip(pictures_by_prompt, metadata, strict=True)):
        rights = []
        for number, picture in enumerate(pictures):
            right, reasons = check(read(picture, level).objects, entry)
            rights.append(right)
            if not right:
                place = {"prompt": entry["prompt"], "tag": entry["tag"], "index": index}
                failures.append({**place, "picture": number, "reason": "; ".join(reasons)})
        verdicts.setdefault(entry["tag"], []).extend(rights)
        solved += any(rights)
    n = sum(len(v) for v in verdicts.values())
    if n == 0:
        raise GessoError("There are no pictures to judge: give at least one.")
    scores = {tag: float(np.mean(verdicts[tag])) for tag in TAGS if verdicts.get(tag)}
    return {
        "overall": float(np.mean(list(scores.values()))),
        "scores": scores,
        "n": n,
        "correct": sum(map(sum, verdicts.values())) / n,
        "any_correct": solved / len(metadata),
        "failures": failures,
    }


def evaluate(
    paint: Callable[[list[str], list[int]], list[np.ndarray]],
    *,
    level: int,
    per_tag: int = 20,
    n: int = 4,
    seed: int = 0,
    split: str = "test",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Have prompts painted and judge the pictures.

    Args:
        paint: (prompts, seeds) -> one [H, W, 3] uint8 picture each.
        level: of the scenes.
        per_tag: prompts for each of the six tags.
        n: pictures a prompt.
        seed: decides prompts and pictures.
        split: "test" asks for held-out combinations, "train" for known ones, "all" for both.
        progress: called as (pictures done, pictures in all).

    Returns:
        What `score` returns with benchmark and judge; failures also have the picture's seed.

    Raises:
        GessoError: no such level or split, or per_tag or n below 1.
    """
    if per_tag < 1 or n < 1:
        raise GessoError(f"per_tag = {per_tag} and n = {n} leave nothing to judge: use 1 or more.")
    metadata = prompts(level, per_tag, seed, split)
    texts = [entry["prompt"] for entry in metadata for _ in range(n)]
    seeds = [seed * 1_000_000 + i for i in range(len(texts))]
    pictures: list[np.ndarray] = []
    for i in range(0, len(texts), CHUNK):
        pictures += paint(texts[i : i + CHUNK], seeds[i : i + CHUNK])
        if progress is not None:
            progress(len(pictures), len(texts))
    by_prompt = [pictures[i : i + n] for i in range(0, len(pictures), n)]
    result = score(by_prompt, metadata, level)
    for failure in result["failures"]:
        failure["seed"] = seeds[failure["index"] * n + failure["picture"]]
    return {"benchmark": f"scenes-level{level}", "judge": "reader", "split": split, **result}


def evaluate_model(
    model: str | None = None,
    *,
    level: int | None = None,
    per_tag: int = 20,
    n: int = 4,
    seed: int = 0,
    split: str = "test",
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """`evaluate` for a model by name or folder.

    Args:
        model: as for `gesso.load`.
        level: default: the highest level all of whose words the model's text encoder knows.
        num_inference_steps, guidance_scale: default: the model's contract.
        device: default: CUDA where there is one, else the CPU.
        quiet: show no progress bar.

    Raises:
        GessoError: no such model, level or split.
    """
    from gesso.loading import load
    from gesso.progress import steps_bar

    pipe = load(model, device=device)
    if level is None:
        options = getattr(pipe.model.text_encoder, "config", None)
        level = known_level(getattr(options, "words", None) or ())

    def paint(texts: list[str], seeds: list[int]) -> list[np.ndarray]:
        painted = pipe(
            texts,
            seed=seeds,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            batch_size=CHUNK,
        )
        return [np.asarray(image) for image in painted.images]

    with steps_bar("scenes", quiet) as progress:
        return evaluate(
            paint, level=level, per_tag=per_tag, n=n, seed=seed, split=split, progress=progress
        )
