"""Which times a sampler visits, and the coefficients of the path there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gesso.diffusion.consistency import grid
from gesso.diffusion.paths import DDPM, EDM, Flow, Path
from gesso.types import GessoError

Callback = Callable[[int, Tensor], None]
"""(step 0..N-1, estimate of x0 [B, C, h, w]), called after every step of a sampler."""


Spacing = Literal["linspace", "trailing", "continuous", "lcm", "lcm_reference", "sd3"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """N steps through N + 1 times, from noise to clean.

    Attributes:
        t, alpha, sigma: [N + 1] float64 on the CPU. The network is never evaluated at the last.
        time: [N + 1] float64, what the network is told for t.
        first_order_end: whether a multistep solver takes its last step with first order.
        from_noise: whether it starts at the noisy end, and not part of the way to repaint.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    time: Tensor
    first_order_end: bool = True
    from_noise: bool = True

    def __len__(self) -> int:
        """N, the number of steps."""
        return len(self.t) - 1

    def pairs(self) -> Iterator[tuple[float, float, float, float, float]]:
        """(t, alpha, sigma, next alpha, next sigma) of every step, as Python floats."""
        t, alpha, sigma = self.t.tolist(), self.alpha.tolist(), self.sigma.tolist()
        return zip(t, alpha, sigma, alpha[1:], sigma[1:], strict=False)


def make_schedule(
    path: Path,
    num_inference_steps: int,
    spacing: Spacing = "linspace",
    final: Literal["zero", "sigma_min"] = "zero",
    *,
    timesteps: Sequence[float] | None = None,
    original_inference_steps: int = 50,
    strength: float = 1.0,
) -> Schedule:
    """Times from the noisiest to the cleanest.

    A multistep solver's last step is first-order where it ends at sigma = 0, and with fewer than
    15 steps (diffusers' rule), or fewer than 10 for "continuous" (that of PixArt's authors).

    Args:
        path: on the ddpm path times are rounded to the whole steps that it was trained on, unless
            the spacing is "continuous".
        num_inference_steps: N >= 1.
        spacing: "linspace" spreads N + 1 points evenly over the path, ends included. "trailing"
            takes every (1000/N)-th step from the end, the convention of few-step models
            (Lin et al. 2023, table 2); on the flow path the two are the same. On the edm path
            N points span it, and 0 follows (Karras et al. 2022, eq. 5). "continuous" is
            "linspace" without rounding: with final "sigma_min" what PixArt's authors sample with.
            "lcm" and "lcm_reference" pick N of the `original_inference_steps` times that a
            consistency model was distilled on: evenly with their indices rounded
            down (diffusers), or every (original // N)-th (Luo et al. 2023, the authors' code).
            "sd3" takes N even shares from noise to the first of 1000 steps of the flow path, which
            is shifted twice, and 0 follows: Stable Diffusion 3's authors and diffusers.
        final: "zero" ends at the clean latent, "sigma_min" at `path.t_min`, where the ddpm path
            keeps a trace of noise (sigma = 0.01).
        timesteps: these times instead, falling, in the path's units; N and the spacing are unused.
        original_inference_steps: of the teacher of a consistency model.
        strength: in (0, 1]: start so far from the clean end, to repaint a picture. The last
            int(N strength) steps remain; consistency models keep N steps on a shorter way.

    Raises:
        GessoError: fewer than one step, more steps than the path has, times that do not fall or
            lie outside the path, or a strength that leaves no step.
    """
    n = num_inference_steps
    if n < 1:
        raise GessoError(f"num_inference_steps is {n}: give at least 1.")
    if not 0 < strength <= 1:
        raise GessoError(f"The strength {strength} is not above 0 and at most 1: try 0.6.")
    if timesteps is not None:
        t = _given(path, timesteps)
    elif spacing in ("lcm", "lcm_reference"):
        t = _consistency(path, n, spacing, original_inference_steps, strength)
    else:
        t = _even(path, n, spacing, final)
    whole = len(t) - 1
    alpha, sigma = path.alpha_sigma(t)
    if final == "zero":
        alpha[-1], sigma[-1] = 1.0, 0.0
    shortened = timesteps is None and spacing in ("lcm", "lcm_reference")
    left = whole if shortened else int(whole * strength)
    if left < 1:
        raise GessoError(
            f"A strength of {strength} leaves none of {whole} steps: "
            f"give at least {math.ceil(100 / whole) / 100}, or more steps."
        )
    first_order_end = bool(sigma[-1] == 0) or whole < (10 if spacing == "continuous" else 15)
    start = whole - left
    t, alpha, sigma = t[start:], alpha[start:], sigma[start:]
    return Schedule(t, alpha, sigma, path.model_time(t), first_order_end, strength == 1)


def _even(path: Path, n: int, spacing: Spacing, final: str) -> Tensor:
    if isinstance(path, EDM) and final == "zero":
        t = path.place(torch.linspace(1, 0, n, dtype=torch.float64))
        return torch.cat([t, t.new_zeros(1)])
    if spacing == "sd3":
        if not isinstance(path, Flow):
            raise GessoError("The spacing sd3 is one of path: flow; use another on this path.")
        first = path.place(torch.tensor(1e-3, dtype=torch.float64)).item()
        t = path.place(torch.linspace(1, first, n, dtype=torch.float64))
        return torch.cat([t, t.new_zeros(1)])
    u = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    t = path.place(u)
    if not isinstance(path, DDPM) or spacing == "continuous":
        return t
    if n >= path.steps:
        raise GessoError(f"num_inference_steps is {n}: the ddpm path allows {path.steps - 1}.")
    if spacing == "trailing":
        t = ((u * path.steps).round() - 1).clamp(min=path.t_min)
    return t.round()


def _given(path: Path, timesteps: Sequence[float]) -> Tensor:
    t = torch.tensor([*timesteps, path.t_min], dtype=torch.float64)
    if len(t) < 2 or not (t[:-1] > t[1:]).all() or t[0] > path.t_max:
        raise GessoError(
            f"The timesteps {list(timesteps)} do not fall from {path.t_max:g} towards "
            f"{path.t_min:g}: give such times."
        )
    return t


def _consistency(path: Path, n: int, spacing: Spacing, original: int, strength: float) -> Tensor:
    """N of the distilled times, counted from the noisy end (Luo et al. 2023, section 4.3)."""
    known = int(original * strength)
    if not n <= known:
        raise GessoError(
            f"num_inference_steps is {n}, but only {known} times were distilled: give 1 to 8 steps."
        )
    if spacing == "lcm":
        index = torch.linspace(0, known, n + 1, dtype=torch.float64)[:-1].floor()
    else:
        index = torch.arange(n, dtype=torch.float64) * (known // n)
    times = grid(path, original)  # [original + 1], the clean end first
    return torch.cat([times[(known - index).long()], times[:1]])
