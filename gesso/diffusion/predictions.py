"""What a network predicts at x_t = alpha x0 + sigma noise, and how to read x0 and noise from it.

epsilon  noise                      Ho et al. 2020
x0       the clean latent
v        alpha noise - sigma x0     Salimans & Ho 2022, appendix D
flow     noise - x0                 Liu et al. 2022
edm      F, where x0 is estimated by c_skip x + c_out F on the edm path (Karras et al. 2022, eq. 7):
         c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 + s^2), s = sigma_data. The
         error of F, evenly weighted, is that of x0 weighted by (sigma^2 + s^2) / (sigma s)^2.
"""

from __future__ import annotations

from torch import Tensor

from gesso.types import GessoError


def like(values: Tensor, x: Tensor) -> Tensor:
    """[B] or [] values, reshaped to broadcast over x [B, ...]."""
    return values.view(values.shape + (1,) * (x.dim() - values.dim()))


def picture_mean(values: Tensor, kept: Tensor | None) -> Tensor:
    """The mean over each picture, or over those of its cells that are kept: [B].

    Args:
        values: [B, C, h, w].
        kept: [B, 1, h, w] bool, some in every picture; None: all.
    """
    if kept is None:
        return values.flatten(1).mean(1)
    return (values * kept).flatten(1).sum(1) / (values.shape[1] * kept.flatten(1).sum(1))


def to_denoised(
    value: Tensor,
    x: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction: str,
    sigma_data: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(x0, noise) that a prediction stands for; alpha x0 + sigma noise = x holds exactly.

    Args:
        value: [B, C, h, w], the network's output.
        x: [B, C, h, w], its input.
        alpha, sigma: [B] or scalars; alpha > 0 for epsilon and sigma > 0 for x0.
        sigma_data: of the path, for edm; there alpha is 1.

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
    if prediction == "edm":
        power = sigma**2 + sigma_data**2
        root = sigma_data / power.sqrt()
        # The noise, (x - x0) / sigma, without a division by a small sigma.
        return root**2 * x + sigma * root * value, sigma / power * x - root * value
    raise _unknown(prediction)


def target(
    x0: Tensor,
    noise: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction: str,
    sigma_data: float = 1.0,
) -> Tensor:
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
    if prediction == "edm":  # (x0 - c_skip x) / c_out
        root = (sigma**2 + sigma_data**2).sqrt()
        return like(sigma / (sigma_data * root), x0) * x0 - like(sigma_data / root, x0) * noise
    raise _unknown(prediction)


def _unknown(prediction: str) -> GessoError:
    return GessoError(f"There is no prediction {prediction!r}: use epsilon, x0, v, flow or edm.")
