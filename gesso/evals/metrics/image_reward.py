"""ImageReward (Xu et al., arXiv 2304.05977): the mean reward of pictures for their prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gesso.evals.metric import Mean
from gesso.evals.types import Image, Judge

JUDGE = "image-reward"


class ImageReward(Mean):
    """See the module. Larger is better; about 0 for the pictures that it was learnt from."""

    needs = "score"
    prompts = True

    def look(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        return np.array(self.judge.score(images, texts))[:, None]


def build(judge: Judge) -> ImageReward:
    """The metric."""
    return ImageReward(judge)
