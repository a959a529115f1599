"""Sentence embeddings (Reimers & Gurevych, arXiv 1908.10084): which of some texts is nearest.

Any BERT-like encoder of transformers; tokens are averaged under the mask, as in the MiniLM and
mpnet families of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.evals.networks import Network, NetworkConfig, in_batches
from gesso.evals.types import Judge

ABILITIES = ("text_similarity",)


class Config(NetworkConfig):
    """Options of the judge `sentences`."""

    batch_size: int = 64
    max_tokens: int = 256  # of a text; what is over is cut


class Sentences(Judge):
    """See the module."""

    def __init__(self, options: Config, device: str | None) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.net = Network(__name__, {"*": AutoModel}, options, device, processor=AutoTokenizer)
        self.batch_size, self.max_tokens = options.batch_size, options.max_tokens
        self.abilities = ABILITIES
        self.name = f"sentences:{options.path}"
        self.fingerprint, self.versions = self.net.fingerprint, self.net.versions

    def text_similarity(
        self, texts: Sequence[str], candidates: Sequence[tuple[str, ...]]
    ) -> list[list[float]]:
        """Cosines of each text with each of its candidates."""
        distinct = sorted({*texts, *(c for some in candidates for c in some)})
        rows = torch.stack(
            in_batches(
                lambda some: list(self._unit([distinct[i] for i in some])),
                [0] * len(distinct),
                self.batch_size,
            )
        )
        at = {text: i for i, text in enumerate(distinct)}
        return [
            (rows[[at[c] for c in some]] @ rows[at[text]]).tolist()
            for text, some in zip(texts, candidates, strict=True)
        ]

    @torch.no_grad()
    def _unit(self, texts: list[str]) -> Tensor:
        """[T, D] float32 of length one."""
        batch = self.net.processor(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        batch = self.net.to(batch)
        hidden = self.net.model(**batch).last_hidden_state.float()  # [T, L, D]
        mask = batch["attention_mask"][..., None].float()
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu()


def build(options: Config, device: str | None) -> Sentences:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return Sentences(options, device)
