"""What a network predicts at x_t = alpha x0 + sigma noise, and how to read x0 and noise from it.

epsilon  noise                      Ho et al. 2020
x0       the clean latent
v        alpha noise - sigma x0     Salimans & Ho 2022, appendix D
flow     noise - x0                 Liu et al. 2022
"""

from __future__ import annotations

from torch import Tensor

from gesso.types import GessoError


def like(values: Tensor, x: Tensor) -> Tensor:
    """[B] or [] values, reshaped to broadcast over x [B, ...]."""
    return values.view(values.shape + (1,) * (x.dim() - values.dim()))


def to_denoised(
    value: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: str
) -> tuple[Tensor, Tensor]:
    """(x0, noise) that a prediction stands for; alpha x0 + sigma noise = x holds exactly.

    Args:
        value: [B, C, h, w], the network's output.
        x: [B, C, h, w], its input.
        alpha, sigma: [B] or scalars; alpha > 0 for epsilon and sigma > 0 for x0.

    Raises:
        GessoError: an unknown prediction.
    """
    alpha, sigma = like(alpha, x), like(sigma, x)
    if prediction == "epsilon":
        return (x - sigma * value) / alpha, value
    if prediction == "x0":
        return value, (x - alpha * value) / sigma
    if prediction == "v":  # for any path: alpha^2 + sigma^2 need not be 1
        power = alpha**2 + sigma**2
        return (alpha * x - sigma * value) / power, (sigma * x + alpha * value) / power
    if prediction == "flow":
        total = alpha + sigma
        return (x - sigma * value) / total, (x + alpha * value) / total
    raise _unknown(prediction)


def target(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """What the network should output for a clean latent and a noise; the inverse of the above.

    Raises:
        GessoError: an unknown prediction.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return x0
    if prediction == "v":
        return like(alpha, x0) * noise - like(sigma, x0) * x0
    if prediction == "flow":
        return noise - x0
    raise _unknown(prediction)


def _unknown(prediction: str) -> GessoError:
    return GessoError(f"There is no prediction {prediction!r}: use epsilon, x0, v or flow.")
