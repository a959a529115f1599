"""CMMD (Jayasumana et al., arXiv 2401.09603): squared MMD of CLIP's features, times 1000.

Gaussian kernel of width 10 on features of length one; the published numbers are with
openai/clip-vit-large-patch14-336.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gesso.evals.metric import Metric, Rows, check_alike
from gesso.evals.types import Judge

JUDGE = "clip"
WIDTH, SCALE = 10.0, 1000.0
BLOCK = 1024


class CMMD(Metric):
    """See the module. Smaller is better."""

    needs = "features"
    gathers = Rows

    def compute(self, mine: Rows, reference: Rows) -> dict[str, Any]:
        x, y = mine.rows, reference.rows
        check_alike(mine, reference, (x.shape[1], y.shape[1]), 2)
        mmd = kernel_mean(x, x) + kernel_mean(y, y) - 2 * kernel_mean(x, y)
        return {"overall": SCALE * mmd}


def kernel_mean(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of exp(-|a - b|² / (2 WIDTH²)) over all pairs of rows, block by block."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    squares = (y**2).sum(1)
    total = 0.0
    for i in range(0, len(x), BLOCK):
        some = x[i : i + BLOCK]
        off = (some**2).sum(1)[:, None] + squares - 2 * some @ y.T
        total += float(np.exp(-off.clip(min=0) / (2 * WIDTH**2)).sum())
    return total / (len(x) * len(y))


def build(judge: Judge) -> CMMD:
    """The metric."""
    return CMMD(judge)
