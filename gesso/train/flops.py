"""Counted, not estimated: the floating-point operations of training on one picture."""

from __future__ import annotations

from gesso.config import Recipe, resolve
from gesso.controls import condition_of
from gesso.draws import Draws
from gesso.model import Model
from gesso.train.run import with_vocabulary
from gesso.train.start import adapt
from gesso.types import Batch, Cond


def training_flops(recipe: Recipe) -> float:
    """FLOPs of one picture's forward and backward pass through a recipe's objective.

    Masks, routers and frozen parts count as they run in training; a phase that runs on every k-th
    step counts a k-th. The text is as long as the recipe's last validation prompt,
    or empty without one.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = Model.from_recipe(with_vocabulary(recipe))
    if recipe.adapter is not None:
        adapt(model, recipe)
    module, options = resolve("objectives", recipe.objective)
    objective = module.build(options, model)
    for role in objective.roles.values():
        role.train()
    n = 2  # pictures
    encoder = model.image_encoder
    size = recipe.data.size
    side = size // encoder.factor
    if model.text_encoder is None:
        cond = Cond(label=torch.zeros(n, dtype=torch.long))
    else:
        cond = model.text_encoder.prepare((recipe.validation.prompts or [""])[-1:] * n)
    latents = torch.zeros(n, encoder.channels, side, side)
    if condition_of(recipe.adapter) is not None:
        cond.control = torch.zeros_like(latents)
    batch = Batch(["x"] * n, cond, latents=latents, pixels=torch.zeros(n, 3, size, size))
    if model.coded:
        with torch.no_grad():
            batch.codes = encoder.codes(latents)
    total = 0.0
    for phase in objective.phases:
        # The counter does not know the fused CPU attention; the plain form is products it can see.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            objective.loss(phase.name, batch, Draws("cpu", 0)).loss.backward()
        total += counter.get_total_flops() / phase.every
    return total / n
