"""Random numbers of a training step, alike however many processes share its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EVERY = slice(None)
"""All rows of a batch."""


class Draws:
    """A generator whose draws follow from some numbers alone, for own rows of a whole batch.

    Every draw is made for the whole batch, in the same order in every process, and cut to own
    rows: so a picture meets the same noise whether one process trains or sixteen. Drawing what
    belongs to others costs next to nothing beside a network's pass over own rows.

    Args:
        device: where numbers are drawn and given.
        numbers: seed, step, ...: what the draws follow from; each at least 0.
        rows: own rows of the whole batch.
        total: rows of the whole batch; None: own rows are all that there are.
    """

    def __init__(
        self,
        device: torch.device | str,
        *numbers: int,
        rows: slice = EVERY,
        total: int | None = None,
    ) -> None:
        import torch

        self._numbers = numbers
        state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
        self.device = torch.device(device)
        self._generator = torch.Generator(self.device).manual_seed(int(state[0]) >> 1)
        self._rows, self._total = rows, total

    def rand(self, n: int, *shape: int) -> Tensor:
        """Uniform on [0, 1): [n, *shape] float32, n being the number of own rows."""
        import torch

        whole = self._whole(n)
        drawn = torch.rand(whole, *shape, generator=self._generator, device=self.device)
        return drawn[self._rows]

    def randn(self, n: int, *shape: int) -> Tensor:
        """Standard normal: [n, *shape] float32, n being the number of own rows."""
        import torch

        whole = self._whole(n)
        drawn = torch.randn(whole, *shape, generator=self._generator, device=self.device)
        return drawn[self._rows]

    def randint(self, high: int, n: int, *shape: int) -> Tensor:
        """Whole numbers 0 <= k < high: [n, *shape] int64, n being the number of own rows."""
        import torch

        size = (self._whole(n), *shape)
        drawn = torch.randint(high, size, generator=self._generator, device=self.device)
        return drawn[self._rows]

    def again(self, *numbers: int) -> Draws:
        """A generator for the same rows, from its beginning; more numbers make another one."""
        return Draws(self.device, *self._numbers, *numbers, rows=self._rows, total=self._total)

    def _whole(self, n: int) -> int:
        """Rows of the whole batch, n being own ones."""
        if self._total is None:
            return n
        own = len(range(*self._rows.indices(self._total)))
        if n != own:
            raise ValueError(f"{n} rows are drawn by a process that has {own} of {self._total}")
        return self._total
