"""A recipe's training step, taken on fake tensors: `trace_step`."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gesso.config import Recipe, build, resolve
from gesso.controls import condition_of
from gesso.draws import Draws
from gesso.model import Description, Model, complete_backbone
from gesso.nn import attention
from gesso.nn.init import WithoutWeights
from gesso.nn.recompute import recompute_blocks
from gesso.train.ema import EMA
from gesso.train.optim import Optimizer, named_parameters
from gesso.train.plan.encoders import Encoders
from gesso.train.plan.trace import Recorder, Trace
from gesso.train.start import adapt, freeze
from gesso.types import Batch, Cond

TEXT_MULTIPLE = 8  # of the length to which compiled blocks pad text


@dataclass
class StepTrace:
    """What one process does in a step.

    Attributes:
        passes: forward and backward of each phase, with how often it runs per step.
        update: clipping, optimisers and moving average.
        parameters: of everything that the model keeps in memory.
        trained: of those, the ones that learn.
        state_bytes: of the optimisers.
        batch: pictures in each pass.
    """

    passes: list[tuple[Trace, float]]
    update: Trace
    parameters: int
    trained: int
    state_bytes: int
    batch: int

    @property
    def flops(self) -> float:
        """Of the passes of one step."""
        return sum(trace.flops * times for trace, times in self.passes)


def trace_step(
    recipe: Recipe,
    encoders: Encoders,
    *,
    batch: int,
    size: tuple[int, int],
    length: int,
    accelerator: bool,
    update: bool = True,
) -> StepTrace:
    """Record a step of a recipe without memory or arithmetic.

    Args:
        recipe: any.
        encoders: of the recipe.
        batch: pictures of a micro-batch that this process learns from.
        size: (H, W) in pixels.
        length: text tokens of the longest caption in a batch.
        accelerator: attention by the fused kernel, as everywhere but on a CPU.
        update: record clipping, optimisers and moving average, too.

    Raises:
        GessoError: parts that do not fit each other.
    """
    config = recipe.train
    if config.compile:
        length = -(-length // TEXT_MULTIPLE) * TEXT_MULTIPLE
    model = _model(recipe, encoders)
    with _fake(), _kernels_of(accelerator):
        for name, part in model.parts().items():
            setattr(model, name, _in_fake(part))
        module, options = resolve("objectives", recipe.objective)
        objective = module.build(options, model)
        roles: dict[str, nn.Module] = objective.roles
        learners = {name: roles[name] for phase in objective.phases for name in phase.learns}
        for role in learners.values():
            role.train()
        if config.checkpoint_activations:
            recompute_blocks(learners.values())
        params = named_parameters(learners)
        batch_of = _batch(model, batch, size, length)
        if condition_of(recipe.adapter) is not None and batch_of.latents is not None:
            batch_of.cond.control = torch.zeros_like(batch_of.latents)
        passes, optimizers = [], []
        for index, phase in enumerate(objective.phases):
            recorder = Recorder()
            precision = torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16")
            with recorder, precision:
                out = objective.loss(phase.name, batch_of, Draws("cpu", 0, index))
                recorder.turn()
                out.loss.backward()
            del out
            passes.append((recorder.trace, config.accumulate / phase.every))
            optimizers.append(Optimizer({k: roles[k] for k in phase.learns}, config))
        average = EMA(params, config.ema)
        recorder = Recorder()
        with recorder:
            for optimizer in optimizers if update else []:
                optimizer.clip(config.clip)
                optimizer.step(config.lr)
            if update:
                average.update()
        state = sum(_bytes(v) for o in optimizers for v in o.state().values())
        every = {id(p): p.numel() for role in roles.values() for p in role.parameters()}
    return StepTrace(
        passes=passes,
        update=recorder.trace,
        parameters=sum(every.values()),
        trained=sum(p.numel() for p in params.values()),
        state_bytes=state,
        batch=batch,
    )


def _model(recipe: Recipe, encoders: Encoders) -> Model:
    """The model that is trained, its backbone without weights."""
    description = Description(
        name=recipe.name,
        image_encoder=recipe.image_encoder,
        text_encoder=recipe.text_encoder,
        backbone=recipe.backbone,
        diffusion=recipe.diffusion,
        sample=recipe.sample,
    )
    model = Model(description, encoders.image, encoders.text)
    with WithoutWeights():
        if recipe.backbone is not None:
            spec = complete_backbone(recipe.backbone, encoders.image, encoders.text)
            model.backbone = build("backbones", spec)
        if recipe.adapter is not None:
            adapt(model, recipe)
    if recipe.train.learns is not None:
        freeze(model, recipe.train.learns)
    return model


def _batch(model: Model, n: int, size: tuple[int, int], length: int) -> Batch:
    height, width = size
    keys = ["picture"] * n
    encoder = model.image_encoder
    if model.backbone is None:
        return Batch(keys, Cond(), pixels=torch.zeros(n, 3, height, width))
    latents = torch.zeros(n, encoder.channels, height // encoder.factor, width // encoder.factor)
    cond = model.text_encoder.prepare([""] * n)
    for name in ("ids", "tokens", "mask"):  # every caption as long as the longest
        value = getattr(cond, name)
        if value is not None and value.shape[1] != length:
            shape = (n, length, *value.shape[2:])
            cond = cond.replace(**{name: torch.ones(shape, dtype=value.dtype)})
    cond = cond.replace(size=torch.zeros(n, 2), aspect=torch.ones(n, 1))
    if model.coded:
        model.backbone.groups((latents.shape[2], latents.shape[3]))  # which refuses other sizes
        with torch.no_grad():
            return Batch(keys, cond, codes=encoder.codes(latents))
    return Batch(keys, cond, latents=latents)


def _in_fake(part: Any) -> Any:
    """A copy of a module whose tensors are fake."""
    if not isinstance(part, nn.Module):
        return part
    memo: dict[int, Any] = {}
    for tensor in (*part.parameters(), *part.buffers()):
        fake: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = fake
    return copy.deepcopy(part, memo)


@contextmanager
def _fake() -> Iterator[None]:
    """Fake tensors, and no table that is remembered by its arguments crosses the border."""
    _forget()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        _forget()


def _forget() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("gesso."):
            for value in vars(module).values():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


@contextmanager
def _kernels_of(accelerator: bool) -> Iterator[None]:
    """Fake tensors say that they are on a CPU: make attention choose as on an accelerator."""
    limits = dict(attention.EXPLICIT_LIMIT)
    if accelerator:
        attention.EXPLICIT_LIMIT.clear()
    try:
        yield
    finally:
        attention.EXPLICIT_LIMIT.update(limits)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
