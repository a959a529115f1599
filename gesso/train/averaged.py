"""The averaged model, whole: what is validated, painted and served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import nn

from gesso.config import Spec, resolve
from gesso.model import Model
from gesso.objectives import Objective
from gesso.train.ema import EMA
from gesso.train.parallel import Group
from gesso.train.sharding import like, whole


@dataclass
class Averaged:
    """Shows the averaged weights in whole modules.

    Where every process has all weights they are swapped into the model that is trained. Where they
    are sharded the leader keeps a copy of the model, in its own memory, which they are gathered
    into.

    Attributes:
        model, objective: those that are shown.
        roles: those that are trained.
        ema: the averages.
        group: over which they are sharded.
        copied: model and objective are the leader's copy; None in its followers.
    """

    model: Model | None
    objective: Objective | None
    roles: Mapping[str, nn.Module]
    ema: EMA
    group: Group
    copied: bool

    @contextmanager
    def shown(self) -> Iterator[tuple[Model, Objective] | None]:
        """Inside, (model, objective) with the averages, in evaluation mode, in the leader.

        Every process must come where the training is sharded; followers are given None.
        """
        for role in self.roles.values():
            role.eval()
        if not self.copied:
            assert self.model is not None and self.objective is not None
            with self.ema.applied():
                yield self.model, self.objective
            return
        with self.group.together():
            self._gather()
        if self.model is None or self.objective is None:
            yield None
            return
        device = next(iter(self.ema.average.values())).device
        for role in self.objective.roles.values():
            role.to(device).eval()
        yield self.model, self.objective
        for role in self.objective.roles.values():
            role.cpu()

    @torch.no_grad()
    def _gather(self) -> None:
        for name, role in self.roles.items():
            into = self.objective.roles[name].state_dict() if self.objective else {}
            for key, live in role.state_dict().items():
                average = self.ema.average.get(f"{name}.{key}")
                full = whole(live if average is None else like(average, live))
                if into:
                    into[key].copy_(full)


def copy_of(model: Model, objective: Spec) -> tuple[Model, Objective]:
    """A copy, on the CPU, of the parts that are trained, and an objective over it.

    Args:
        model: not sharded yet; its frozen parts are shared.
        objective: as the recipe names it.
    """
    parts = {name: deepcopy(part).cpu() for name, part in model.trained().items()}
    copied: Model = replace(model, **parts)  # type: ignore[arg-type]
    module, options = resolve("objectives", objective)
    return copied, module.build(options, copied)
