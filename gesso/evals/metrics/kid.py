"""KID (Bińkowski et al., arXiv 1801.01401): unbiased, so it can be compared at small counts.

Mean over random subsets of the squared MMD with the kernel (x·y / D + 1)³.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gesso.evals.metric import Metric, Rows, check_alike
from gesso.evals.types import Judge
from gesso.types import GessoError

JUDGE = "inception"
SUBSETS, SUBSET_SIZE = 100, 1000


class KID(Metric):
    """See the module. Smaller is better."""

    needs = "features"
    gathers = Rows

    def compute(self, mine: Rows, reference: Rows) -> dict[str, Any]:
        x, y = mine.rows, reference.rows
        check_alike(mine, reference, (x.shape[1], y.shape[1]), 2)
        values = subsets(x, y)
        return {"overall": float(values.mean()), "scores": {"std": float(values.std())}}


def subsets(x: np.ndarray, y: np.ndarray, count: int = SUBSETS, size: int = SUBSET_SIZE):  # type: ignore[no-untyped-def]
    """Squared MMDs [count] between equal subsets of features x [n, D] and y [m, D].

    Raises:
        GessoError: torchmetrics is not installed.
    """
    import torch

    try:
        from torchmetrics.image.kid import poly_mmd
    except ImportError:
        raise GessoError("KID needs torchmetrics: pip install 'gesso[judge]'.") from None
    rng = np.random.default_rng(0)
    size = min(size, len(x), len(y))
    return np.array(
        [
            float(
                poly_mmd(
                    torch.from_numpy(y[rng.permutation(len(y))[:size]]).double(),
                    torch.from_numpy(x[rng.permutation(len(x))[:size]]).double(),
                )
            )
            for _ in range(count)
        ]
    )


def build(judge: Judge) -> KID:
    """The metric."""
    return KID(judge)
