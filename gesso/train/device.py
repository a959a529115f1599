"""Where a training runs, whether compiled, and its random draws."""

from __future__ import annotations

import numpy as np
import torch

from gesso.types import GessoError


def pick_device(name: str) -> torch.device:
    """The device that `train.device` names; "auto" is CUDA where there is one, else the CPU.

    Raises:
        GessoError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0].rstrip(".")
        raise GessoError(
            f"train.device {name!r} cannot be used ({reason}): use auto, cpu or cuda."
        ) from None
    return device


def draws(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator on a device that follows from some numbers (seed, step, ...) alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) >> 1)
