"""Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

A set's manifold is the union of balls round its pictures' features, each reaching to the third
nearest neighbour. Precision: the share of pictures in the reference's manifold; recall: the share
of the reference in the pictures'.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gesso.evals.metric import Metric, Rows, check_alike
from gesso.evals.types import Judge

JUDGE = "inception"
NEIGHBOUR = 3
BLOCK = 1024


class PrecisionRecall(Metric):
    """See the module. `overall` is the harmonic mean of the two."""

    needs = "features"
    gathers = Rows

    def compute(self, mine: Rows, reference: Rows) -> dict[str, Any]:
        x, y = mine.rows.astype(np.float64), reference.rows.astype(np.float64)
        check_alike(mine, reference, (x.shape[1], y.shape[1]), NEIGHBOUR + 1)
        precision = float(inside(x, y, radii(y)).mean())
        recall = float(inside(y, x, radii(x)).mean())
        both = precision + recall
        return {
            "overall": 2 * precision * recall / both if both else 0.0,
            "scores": {"precision": precision, "recall": recall},
        }


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances [n, m] of rows."""
    return ((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T).clip(min=0)


def radii(x: np.ndarray) -> np.ndarray:
    """Squared distance [n] of each row to its third nearest neighbour (itself not counted)."""
    blocks = []
    for i in range(0, len(x), BLOCK):
        off = distances(x[i : i + BLOCK], x)
        own = np.arange(len(off))
        off[own, i + own] = -1.0  # itself comes first, whatever rounding says
        blocks.append(np.partition(off, NEIGHBOUR, axis=1)[:, NEIGHBOUR])
    return np.concatenate(blocks)


def inside(x: np.ndarray, centers: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """[n] bool: which rows of x lie in one of the balls."""
    blocks = [
        (distances(x[i : i + BLOCK], centers) <= radius).any(1) for i in range(0, len(x), BLOCK)
    ]
    return np.concatenate(blocks)


def build(judge: Judge) -> PrecisionRecall:
    """The metric."""
    return PrecisionRecall(judge)
