"""The cached pictures of one bucket, and reading a batch of them.

Dims: B pictures in a batch, R channels of a raw latent, L tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gesso.data.buckets import Size, ratio_key
from gesso.data.captions import choose, edges, probabilities
from gesso.data.shard_io import Shard
from gesso.types import Cond


class Group:
    """All pictures of one bucket."""

    def __init__(
        self, size: Size, shards: list[Shard], weights: Mapping[str, float] | None
    ) -> None:
        self.size = size
        self.shards = shards
        self.keys = [key for s in shards for key in s.keys]
        self._kinds = [tuple(c.kind for c in row) for s in shards for row in s.captions]
        # Pictures with the same kinds of captions share their probabilities.
        chances = {k: probabilities(k, weights) for k in set(self._kinds)}
        self._edges = {k: edges(p) for k, p in chances.items()}
        self._likeliest = {k: int(p.argmax()) for k, p in chances.items()}
        self._starts = np.cumsum([0, *map(len, shards)])
        # NumPy reads single offsets far faster than torch.
        self._caption_start = [s.caption_start.numpy() for s in shards]
        self._text_start = [s.text_start.numpy() for s in shards]

    def choose(self, row: int, u: float) -> int:
        """The caption of a picture at u in 0..1."""
        return choose(self._edges[self._kinds[row]], u)

    def likeliest(self, row: int) -> int:
        """The first of a picture's likeliest captions."""
        return self._likeliest[self._kinds[row]]

    def read(self, rows: np.ndarray, captions: list[int]) -> tuple[Tensor, Cond]:
        """Raw latents [B, R, h, w] float32 and conditions of pictures, one caption each.

        `control` is a raw latent, too.
        """
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        local = rows - self._starts[owner]
        first = self.shards[0]
        raw = torch.empty(len(rows), *first.latents.shape[1:])
        control = None if first.control is None else torch.empty_like(raw)
        size = torch.empty(len(rows), 2)
        label = torch.empty(len(rows), dtype=torch.int64)
        for number in np.unique(owner).tolist():
            into = torch.from_numpy(np.flatnonzero(owner == number))
            taken = torch.from_numpy(local[owner == number])
            shard = self.shards[number]
            raw[into] = shard.latents[taken].float()
            if control is not None and shard.control is not None:
                control[into] = shard.control[taken].float()
            size[into] = shard.sizes[taken].float()
            label[into] = shard.labels[taken]
        pieces, pooled = [], []
        for number, row, caption in zip(owner.tolist(), local.tolist(), captions, strict=True):
            shard = self.shards[number]
            k = self._caption_start[number][row] + caption
            start, stop = self._text_start[number][k : k + 2]
            pieces.append(shard.text[start:stop])
            if shard.pooled is not None:
                pooled.append(shard.pooled[k])
        cond = _pad(pieces)
        cond.pooled = torch.stack(pooled).float() if pooled else None
        cond.control = control
        cond.size = size
        cond.aspect = torch.full((len(rows), 1), ratio_key(self.size))
        cond.label = label
        return raw, cond


def _pad(pieces: list[Tensor]) -> Cond:
    """Ragged [L] ids or [L, D] tokens -> [B, Lmax(, D)] right-padded with 0, and the mask."""
    lengths = torch.tensor([len(p) for p in pieces])
    padded = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    if padded.is_floating_point():
        return Cond(tokens=padded.float(), mask=mask)
    return Cond(ids=padded.long(), mask=mask)
