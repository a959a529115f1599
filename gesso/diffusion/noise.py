"""Noise that belongs to a picture, not to its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gesso.config import SampleConfig
from gesso.diffusion.paths import Path
from gesso.types import GessoError

Generators = Sequence[torch.Generator]
"""One generator for each picture."""


def start_scale(path: Path, start_noise: Literal["path", "time"], t: float) -> float:
    """What standard normal noise is multiplied with to be x at the first time t.

    "path": what ends the path, at whatever time the sampling starts, as DMD has it (Yin et al.
    2023). "time": sigma(t), as SIM has it (Luo et al. 2024, whose generator reads 2.5 z).
    """
    if start_noise == "path":
        return path.noise_scale
    return float(path.alpha_sigma(torch.tensor(t, dtype=torch.float64))[1])


def only_time(contract: SampleConfig) -> float:
    """The time at which a generator of one step takes its noise.

    Raises:
        GessoError: the contract is none of one step at a given time, without guidance.
    """
    times = contract.timesteps or ()
    if contract.sampler != "one_step" or len(times) != 1 or contract.guidance_scale > 1:
        raise GessoError(
            "The recipe trains a generator of one step: set sample.sampler=one_step,"
            " sample.guidance_scale=1 and one time in sample.timesteps, such as [440]."
        )
    return times[0]


def draw_noise(
    shape: Sequence[int], generators: Generators, device: torch.device | str | None = None
) -> Tensor:
    """Standard normal noise, each picture's from its own generator.

    A picture's noise depends on nothing but its generator: not on its neighbours, and with CPU
    generators not on the device either.

    Args:
        shape: of one picture, (C, h, w).
        generators: B of them; each is advanced.
        device: where the result goes.

    Returns:
        [B, C, h, w] float32.
    """
    rows = [torch.randn(tuple(shape), generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(device)


def starting_noise(
    n: int,
    shape: tuple[int, int, int],
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    latents: Tensor | None,
) -> tuple[list[int | None], Tensor, list[torch.Generator]]:
    """The noise that n pictures start from, and what their samplers draw from later.

    Args:
        n: pictures.
        shape: of one, (C, h, w).
        seed: of the first picture, or one a picture; None: at random.
        generator: instead of seeds: one for all pictures in turn, or one a picture.
        latents: [n, C, h, w] noise instead of drawn noise.

    Returns:
        The seeds that were used, None where there were none; [n, C, h, w] float32 noise; and a
        generator for each picture.

    Raises:
        GessoError: a count or shape that does not match.
    """
    unknown: list[int | None] = [None] * n
    if latents is not None and tuple(latents.shape) != (n, *shape):
        raise GessoError(
            f"latents has shape {tuple(latents.shape)}: this call needs {(n, *shape)}."
        )
    if isinstance(generator, torch.Generator):
        noise = draw_noise(shape, [generator] * n) if latents is None else latents.float()
        # Later draws in turn would mix the pictures' streams: each gets its own.
        later = torch.randint(2**62, (n,), generator=generator, device=generator.device).tolist()
        return unknown, noise, [torch.Generator().manual_seed(s) for s in later]
    if generator is not None:
        generators = list(generator)
        if len(generators) != n:
            raise GessoError(f"There are {len(generators)} generators for {n} pictures: give {n}.")
        noise = draw_noise(shape, generators) if latents is None else latents.float()
        return unknown, noise, generators
    if seed is None:
        seed = torch.seed() % 2**31
    seeds = [seed + i for i in range(n)] if isinstance(seed, int) else list(seed)
    if len(seeds) != n:
        raise GessoError(f"There are {len(seeds)} seeds for {n} pictures: give one, or {n}.")
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    if latents is not None:
        return unknown, latents.float(), generators
    return list(seeds), draw_noise(shape, generators), generators
