"""Where a training runs, whether compiled, and its random draws."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

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


def compile_blocks(roles: Iterable[nn.Module]) -> bool:
    """Have the blocks of some networks compiled at their first call.

    The members of each `nn.ModuleList` are compiled one by one: they share their code, so the
    compiler works once for all of them. It happens in place: tensors keep their names.

    Returns:
        False if this machine has no C++ compiler, which torch.compile needs; they stay as they are.
    """
    if not any(shutil.which(c) for c in (os.environ.get("CXX", ""), "c++", "g++", "clang++")):
        return False
    for role in roles:
        for module in role.modules():
            if isinstance(module, nn.ModuleList):
                for block in module:
                    block.compile()
    return True


def draws(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator on a device that follows from some numbers (seed, step, ...) alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) >> 1)
