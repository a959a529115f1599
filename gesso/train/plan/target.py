"""What a training is planned for: this machine, or accelerators of the table."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gesso.config import Recipe
from gesso.memory import available_bytes
from gesso.train import parallel
from gesso.train.plan import accelerators
from gesso.train.plan.accelerators import Accelerator
from gesso.types import GessoError


@dataclass(frozen=True)
class Target:
    """What the training runs on.

    Attributes:
        name: "cpu", or of an accelerator.
        count: processes that share every batch: one an accelerator.
        device: None: this machine's processor.
        memory: bytes of one accelerator, or what is free here.
    """

    name: str
    count: int
    device: Accelerator | None
    memory: float

    @property
    def own(self) -> int:
        """Processes that share the memory."""
        return self.count if self.device is None else 1


def target_of(recipe: Recipe, gpus: int | None, gpu: str | None) -> Target:
    """Find out what is meant.

    Raises:
        GessoError: an unknown accelerator, none at all, several processors, or a batch that does
            not divide.
    """
    if gpus is not None and gpus < 1:
        raise GessoError(f"There is no training on {gpus} GPUs: give --gpus 1 or more.")
    config = recipe.train
    if gpu is None and torch.cuda.is_available() and not config.device.startswith("cpu"):
        found = accelerators.this(torch.cuda.get_device_name())
        if found is None:
            raise GessoError(
                f"{torch.cuda.get_device_name()} is not in the table: name one like it with --gpu."
            )
    elif gpu is None or gpu.lower() == "cpu":
        if gpus is not None and gpus > 1:
            raise GessoError(f"Which GPUs are the {gpus}? Name them with --gpu, such as h100.")
        n = parallel.count(config.processes, config.batch_size, torch.device("cpu"))
        return Target("cpu", n, None, available_bytes())
    else:
        found = accelerators.find(gpu)
    name, device = found
    n = gpus or 1
    if config.batch_size % n:
        raise GessoError(
            f"train.batch_size {config.batch_size} does not divide among {n} GPUs: make it a "
            "multiple of their number."
        )
    return Target(name, n, device, device.memory)
