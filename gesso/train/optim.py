"""Optimisers over named parameters, their learning-rate schedule, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from gesso.config import TrainConfig
from gesso.train.checkpoint import Stored
from gesso.train.sharding import like, local, offset, whole
from gesso.types import GessoError

DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def learning_rate(config: TrainConfig, step: int, seconds: float) -> float:
    """The learning rate of a step.

    A linear warm-up over `config.warmup` steps multiplies a decay over the whole training, whose
    share is steps done of `config.steps` or, with `config.minutes`, time used of the budget. The
    decay ends at `config.lr_floor`.

    Args:
        step: steps done before this one.
        seconds: time used before this one.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    share = seconds / (60 * config.minutes) if config.minutes else step / max(1, config.steps)
    share = min(1.0, share)
    match config.schedule:
        case "constant":
            decay = 1.0
        case "cosine":
            decay = 0.5 * (1 + math.cos(math.pi * share))
        case "linear":
            decay = 1 - share
    return config.lr * warm * (config.lr_floor + (1 - config.lr_floor) * decay)


def named_parameters(roles: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The roles' parameters that take a gradient, by `role.parameter` name."""
    return {
        f"{role}.{name}": p
        for role, module in roles.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


class Optimizer:
    """AdamW, or Muon for the hidden matrices and AdamW for the rest, over some roles.

    Weight decay falls on the weights of linear and convolution layers only: norms, biases,
    embeddings and modulation tables have no scale to be kept small. Muon (Jordan et al. 2024)
    orthogonalises the updates of matrices inside blocks; its updates are rescaled to AdamW's
    root mean square (Liu et al. 2025, eq. 4), so both share one learning rate.

    Args:
        roles: the modules to update.
        config: `optimizer`, `betas`, `eps`, `weight_decay`.

    Raises:
        GessoError: nothing in the roles takes a gradient.
    """

    def __init__(self, roles: Mapping[str, nn.Module], config: TrainConfig) -> None:
        self.params = named_parameters(roles)
        if not self.params:
            raise GessoError(f"Nothing to train: {', '.join(roles)} has no trainable parameters.")
        owner = {
            id(p): (module, name)
            for role in roles.values()
            for module in role.modules()
            for name, p in module.named_parameters(recurse=False)
        }
        hidden = {id(p) for role in roles.values() for p in _hidden_matrices(role)}
        muon, decayed, plain = [], [], []
        for p in self.params.values():
            module, name = owner[id(p)]
            if config.optimizer == "muon" and id(p) in hidden:
                muon.append(p)
            elif isinstance(module, DECAYED) and name == "weight":
                decayed.append(p)
            else:
                plain.append(p)
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = []
        if decayed or plain:
            self.optimizers.append(
                torch.optim.AdamW(
                    [g for g in groups if g["params"]],
                    lr=config.lr,
                    betas=config.betas,
                    eps=config.eps,
                    fused=True,
                )
            )
        if muon:
            self.optimizers.append(
                torch.optim.Muon(
                    muon,
                    lr=config.lr,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    def gradients(self) -> list[Tensor]:
        """Those that there are, in the order of the parameters."""
        return [p.grad for p in self.params.values() if p.grad is not None]

    def clip(self, norm: float) -> Tensor:
        """Scale the gradients to at most `norm` (0: leave them); returns the norm before."""
        total = whole(torch.nn.utils.get_total_norm(self.gradients()))
        if norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.params.values(), norm, total)
        return total

    def step(self, lr: float) -> None:
        """Update the parameters at this learning rate."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def zero_grad(self) -> None:
        for p in self.params.values():
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Every moment and counter as a tensor, keys `parameter|entry`.

        Learning rates and decays are not state: they follow from the recipe and the step.
        """
        names = {id(p): name for name, p in self.params.items()}
        return {
            f"{names[id(p)]}|{entry}": torch.as_tensor(value)
            for optimizer in self.optimizers
            for p, entries in optimizer.state.items()
            for entry, value in entries.items()
        }

    def load_state(self, state: Mapping[str, Stored]) -> None:
        """Restore what `state` gave.

        Raises:
            GessoError: a tensor is missing, belongs to no parameter, or has another shape than its
                parameter; names it.
        """
        found: dict[str, dict[str, Stored]] = {}
        for key, value in state.items():
            name, _, entry = key.partition("|")
            p = self.params.get(name)
            if p is None or (value.shape and value.shape != tuple(p.shape)):
                raise GessoError(
                    f"The optimiser state has {key!r} of shape {value.shape}, which fits "
                    "no parameter: resume with the recipe that it was saved with."
                )
            found.setdefault(name, {})[entry] = value
        for optimizer in self.optimizers:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            names = [name for name in found if id(self.params[name]) in own]
            # A parameter that never had a gradient has no state; any other has all entries.
            entries = {entry for name in names for entry in found[name]}
            for name in names:
                if missing := entries - found[name].keys():
                    raise GessoError(
                        f"The optimiser state lacks '{name}|{missing.pop()}': the file is damaged."
                    )
                p = self.params[name]
                optimizer.state[p] = {k: _own(v, p) for k, v in found[name].items()}


def optimizer_state(optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """The states of the phases' optimisers, keys `phase|parameter|entry`."""
    return {
        f"{phase}|{key}": value
        for phase, optimizer in optimizers.items()
        for key, value in optimizer.state().items()
    }


def load_optimizer_state(optimizers: Mapping[str, Optimizer], state: Mapping[str, Stored]) -> None:
    """Restore what `optimizer_state` gave.

    Raises:
        GessoError: as `Optimizer.load_state`, or a tensor belongs to no phase.
    """
    parts: dict[str, dict[str, Stored]] = {phase: {} for phase in optimizers}
    for key, value in state.items():
        phase, _, rest = key.partition("|")
        if phase not in parts:
            raise GessoError(f"The optimiser state has {key!r}, but there is no phase {phase!r}.")
        parts[phase][rest] = value
    for phase, optimizer in optimizers.items():
        optimizer.load_state(parts[phase])


def _own(value: Stored, p: Tensor) -> Tensor:
    """A counter, or this process's piece of a moment, as the parameter lies."""
    if not value.shape:
        return value.whole().to(p.device)
    piece = value.read(offset(p), tuple(local(p).shape))
    return like(piece.to(p.device), p)


def _hidden_matrices(role: nn.Module) -> Iterator[Tensor]:
    """Weights of the linear layers inside numbered blocks: neither first nor last layers."""
    for module in role.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    yield layer.weight
