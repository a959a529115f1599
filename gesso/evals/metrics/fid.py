"""Fréchet distance of features (Heusel et al., arXiv 1706.08500): FID with Inception's.

With another judge's features it is that judge's Fréchet distance, and named so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gesso.evals.metric import Metric, Moments, check_alike
from gesso.evals.types import Judge

JUDGE = "inception"
ENOUGH = 2048  # pictures, below which FID is far from its limit and its covariance lacks rank


class FID(Metric):
    """See the module. Smaller is better; it falls with the number of pictures."""

    needs = "features"
    gathers = Moments

    def compute(self, mine: Moments, reference: Moments) -> dict[str, Any]:
        check_alike(mine, reference, (len(mine.mean), len(reference.mean)), 2)
        notes = []
        for what, moments in (("pictures", mine), ("reference pictures", reference)):
            if moments.n < max(ENOUGH, len(moments.mean)):
                notes.append(
                    f"Only {moments.n} {what} for {len(moments.mean)} features: compare this "
                    "number with none that was measured on another count."
                )
        value = frechet(mine.mean, mine.covariance, reference.mean, reference.covariance)
        return {"overall": value, "notes": notes}


def frechet(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) (Dowson & Landau 1982, eq. 4).

    tr (C1 C2)^½ is taken as tr (R C2 R)^½ with R = C1^½: both are symmetric and have no negative
    eigenvalue, so the root is real at any rank, where that of C1 C2 itself is not.
    """
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * roots(values)) @ vectors.T
    between = np.linalg.eigvalsh(root @ cov2 @ root)
    trace = np.trace(cov1) + np.trace(cov2) - 2 * roots(between).sum()
    return float(((mean1 - mean2) ** 2).sum() + trace)


def roots(values: np.ndarray) -> np.ndarray:
    """Square roots of eigenvalues; what is zero but for rounding is zero."""
    noise = values.max() * len(values) * np.finfo(np.float64).eps
    return np.sqrt(np.where(values > noise, values, 0.0))


def build(judge: Judge) -> FID:
    """The metric."""
    return FID(judge)
