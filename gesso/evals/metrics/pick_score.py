"""PickScore (Kirstain et al., arXiv 2305.01569): 100 cos of picture and prompt.

The weights are a CLIP tuned on human choices, yuvalkirstain/PickScore_v1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gesso.evals.metric import Mean
from gesso.evals.types import Image, Judge

JUDGE = "clip:yuvalkirstain/PickScore_v1"


class PickScore(Mean):
    """See the module. Larger is better."""

    needs = "similarity"
    prompts = True

    def look(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        cosines = self.judge.similarity(images, [((text,),) for text in texts])
        return 100 * np.array(cosines)


def build(judge: Judge) -> PickScore:
    """The metric."""
    return PickScore(judge)
