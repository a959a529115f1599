"""Random draws of a training, on its device."""

from __future__ import annotations

import numpy as np
import torch


def draws(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator on a device that follows from some numbers (seed, step, ...) alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) >> 1)
