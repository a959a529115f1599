"""CLIPScore (Hessel et al., arXiv 2104.08718): 100 max(cos, 0) of picture and prompt.

Most published numbers are with openai/clip-vit-base-patch16 or -large-patch14: the judge is part
of the number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gesso.evals.metric import Mean
from gesso.evals.types import Image, Judge

JUDGE = "clip"


class CLIPScore(Mean):
    """See the module. Larger is better."""

    needs = "similarity"
    prompts = True

    def look(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        cosines = self.judge.similarity(images, [((text,),) for text in texts])
        return 100 * np.maximum(cosines, 0)


def build(judge: Judge) -> CLIPScore:
    """The metric."""
    return CLIPScore(judge)
