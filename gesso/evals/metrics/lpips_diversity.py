"""Diversity: mean LPIPS (Zhang et al., arXiv 1801.03924) over all pairs of pictures of a prompt.

The overall value is the mean over prompts. Pictures of one prompt are those with the same text in
metadata.jsonl, in a .txt file beside them or in the PNG.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gesso.evals.metric import Metric, Rows
from gesso.evals.types import Image, Judge
from gesso.types import GessoError

JUDGE = "lpips"
KEYS = 2  # columns before the vectors that tell the prompt, 24 bits each: float32 holds them


class LPIPSDiversity(Metric):
    """See the module. Larger is more diverse; 125 KiB are kept of a picture at 64 pixels."""

    needs = "features"
    gathers = Rows
    compares = False
    prompts = True

    def look(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        """[B, KEYS + D]."""
        return np.concatenate([[key(text) for text in texts], self.judge.features(images)], 1)

    def compute(self, mine: Rows, reference: None) -> dict[str, Any]:
        _, groups = np.unique(mine.rows[:, :KEYS], axis=0, return_inverse=True)
        found = [mine.rows[groups == g, KEYS:] for g in range(groups.max() + 1)]
        values = np.array([pairs(rows) for rows in found if len(rows) > 1])
        if not len(values):
            raise GessoError("No prompt has two pictures or more: paint some with --n 4.")
        mean, half = float(values.mean()), 0.0
        if len(values) > 1:
            half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
        alone = len(found) - len(values)
        notes = [f"Prompts with a single picture, which do not count: {alone}."] if alone else []
        return {
            "overall": mean,
            "interval": [mean - half, mean + half],
            "scores": {"prompts": float(len(values))},
            "notes": notes,
        }


def pairs(rows: np.ndarray) -> float:
    """Mean squared distance over the pairs of rows [n, D]: 2 / (n - 1) times sum |row - mean|²."""
    rows = rows.astype(np.float64)
    return 2 / (len(rows) - 1) * float(((rows - rows.mean(0)) ** 2).sum())


def key(text: str) -> tuple[float, ...]:
    """A prompt's digest as whole numbers below 2^24."""
    digest = hashlib.sha256(text.encode()).digest()
    return tuple(float(int.from_bytes(digest[3 * i : 3 * i + 3])) for i in range(KEYS))


def build(judge: Judge) -> LPIPSDiversity:
    """The metric."""
    return LPIPSDiversity(judge)
