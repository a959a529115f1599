"""The mean of a learned score of pictures; with the judge `aesthetic`, LAION's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gesso.evals.metric import Mean
from gesso.evals.types import Image, Judge

JUDGE = "aesthetic"


class Aesthetic(Mean):
    """See the module. Larger is better."""

    needs = "score"

    def look(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        return np.array(self.judge.score(images, texts))[:, None]


def build(judge: Judge) -> Aesthetic:
    """The metric."""
    return Aesthetic(judge)
