"""HPS v2 (Wu et al., arXiv 2306.09341): 100 cos of picture and prompt.

The weights are a CLIP ViT-H/14 tuned on human choices; give them in the layout of transformers
(--judge clip:FOLDER).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gesso.evals.metric import Mean
from gesso.evals.types import Image, Judge

JUDGE = "clip"


class HPSv2(Mean):
    """See the module. Larger is better."""

    needs = "similarity"
    prompts = True

    def look(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        cosines = self.judge.similarity(images, [((text,),) for text in texts])
        return 100 * np.array(cosines)


def build(judge: Judge) -> HPSv2:
    """The metric."""
    return HPSv2(judge)
