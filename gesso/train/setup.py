"""How networks lie in memory and run while they learn: sharded, in float8, compiled, recomputed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from gesso.config import Recipe, TrainConfig
from gesso.model import Model
from gesso.nn.compile import compile_blocks
from gesso.nn.float8 import float8_blocks
from gesso.nn.recompute import recompute_blocks
from gesso.objectives import Objective
from gesso.train.averaged import copy_of
from gesso.train.parallel import Group
from gesso.train.sharding import shard
from gesso.types import GessoError


def distribute(
    recipe: Recipe,
    model: Model,
    roles: Mapping[str, nn.Module],
    group: Group,
    device: torch.device,
) -> tuple[bool, tuple[Model | None, Objective | None]]:
    """Bring roles into the form that the recipe wants, before anything holds their parameters.

    Args:
        recipe: `train.shard`, `train.float8`, `train.dtype`.
        model: that the roles belong to.
        roles: on `device`, in place.
        group: over which they are sharded.
        device: of the training.

    Returns:
        Whether parameters are sharded; and the leader's whole copy of model and objective if so.

    Raises:
        GessoError: float8 where it cannot be, or Muon over sharded parameters.
    """
    config = recipe.train
    sharded = config.shard == "full" and group.size > 1
    if sharded and config.optimizer == "muon":
        raise GessoError(
            "train.optimizer=muon needs whole matrices, and train.shard=full cuts them: use adamw, "
            "or train.shard=none."
        )
    copied: tuple[Model | None, Objective | None] = (None, None)
    if sharded and group.leads:
        copied = copy_of(model, recipe.objective)
    if config.float8:
        float8_blocks(roles.values(), device)
    if sharded:
        shard(roles.values(), group.size, device, config.dtype == "bfloat16")
    return sharded, copied


def speed_up(learners: Iterable[nn.Module], config: TrainConfig) -> None:
    """Compile and recompute blocks as the recipe says, in place."""
    networks = list(learners)
    if config.compile:
        compile_blocks(networks)
    if config.checkpoint_activations:
        recompute_blocks(networks)
