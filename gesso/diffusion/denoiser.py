"""A backbone as a denoiser: whatever it predicts, x0 and noise come out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gesso.diffusion.paths import Path
from gesso.diffusion.predictions import like, target, to_denoised
from gesso.types import Cond, Denoise, Denoised, Prediction


@dataclass(frozen=True)
class Denoiser:
    """A backbone on a noise path.

    Attributes:
        backbone: (x [B, C, h, w], model time [B], cond) -> Prediction. Where it has a
            `prepare(cond, model times)`, it takes the result of that in place of a condition.
        path: its noise path.
        prediction: what `Prediction.value` means, see `gesso.diffusion.predictions`.
    """

    backbone: Callable[[Tensor, Tensor, Any], Prediction]
    path: Path
    prediction: str

    def copied(self, learns: bool) -> tuple[Denoiser, nn.Module]:
        """The same with a copy of the backbone; and the copy.

        Args:
            learns: what learns in the backbone learns in its copy, too; else nothing does.
        """
        backbone = copy.deepcopy(self.backbone)
        assert isinstance(backbone, nn.Module)
        if not learns:
            backbone.requires_grad_(False)
        backbone.eval()
        return replace(self, backbone=backbone), backbone

    def bind(self, cond: Cond, times: Tensor | None = None) -> Denoise:
        """Fix the condition: (x [B, C, h, w], t [B] in the path's units) -> Denoised, float32.

        Call it under the autocast that the evaluations will run under; see `prepare`.
        """
        ready = self.prepare(cond, times)

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            prediction = self.predict(x, t, ready)
            return self.views(prediction.value, x, t, prediction.aux.get("variance"))

        return denoise

    def prepare(self, cond: Cond, times: Tensor | None = None) -> Any:
        """The condition as `predict` takes it soonest, or as it is while gradients are recorded.

        Args:
            cond: B rows.
            times: [S] the t to come, in the path's units, if they are known.
        """
        prepare = getattr(self.backbone, "prepare", None)
        if prepare is None or torch.is_grad_enabled():
            return cond
        return prepare(cond, None if times is None else self.path.model_time(times.float()))

    def guided(
        self,
        x: Tensor,
        t: Tensor,
        both: Any,
        guidance_scale: float,
        rescale: float = 0.0,
        *,
        worse: Tensor | None = None,
        worse_scale: float = 0.0,
    ) -> Denoised:
        """null + guidance_scale (cond - null) (Ho & Salimans 2022, in Imagen's convention).

        Args:
            x: [B, C, h, w].
            t: [B].
            both: 2B rows, the conditions and then their unconditional branches, or `prepare`'s
                result for them: they run as one batch.
            guidance_scale: 1 is conditional only, 0 is null only.
            rescale: phi in 0..1 of Lin et al. 2023, eq. 15-16: how far each picture's prediction is
                brought back to the standard deviation of the conditional one.
            worse: [B, C, h, w] the conditional prediction of a weakened network, if the result
                shall also be led away from it, by worse_scale (cond - worse).
            worse_scale: see there.
        """
        prediction = self.predict(torch.cat([x, x]), torch.cat([t, t]), both)
        with_cond, without = prediction.value.chunk(2)  # 2 of [B, C, h, w]
        value = without + guidance_scale * (with_cond - without)
        if worse is not None:
            value = value + worse_scale * (with_cond - worse)
        if rescale:
            dims = tuple(range(1, value.dim()))
            ratio = with_cond.std(dims, keepdim=True) / value.std(dims, keepdim=True)
            value = value * (rescale * ratio + (1 - rescale))
        variance = prediction.aux.get("variance")
        return self.views(value, x, t, None if variance is None else variance.chunk(2)[0])

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Prediction:
        """The backbone's output, value and variance in float32 whatever it computes in."""
        out = self.backbone(self.path.scale_input(x, t), self.path.model_time(t), cond)
        aux = {k: v.float() if k == "variance" else v for k, v in out.aux.items()}
        return Prediction(out.value.float(), aux)

    def views(
        self, value: Tensor, x: Tensor, t: Tensor, variance: Tensor | None = None
    ) -> Denoised:
        """x0 and noise for a predicted value at (x, t)."""
        alpha, sigma = self.path.alpha_sigma(t)
        s = self.path.sigma_data
        x0, noise = to_denoised(value, x, alpha, sigma, self.prediction, s)
        return Denoised(x0, noise, variance)

    def value(self, denoised: Denoised, t: Tensor) -> Tensor:
        """The inverse of `views`: the prediction that stands for x0 and noise."""
        return self.target(denoised.x0, denoised.noise, t)

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [B, C, h, w] for a clean latent and a noise of its shape at t [B]."""
        alpha, sigma = self.path.alpha_sigma(t)
        return like(alpha, x0) * x0 + like(sigma, x0) * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the backbone should output for a clean latent and a noise, [B, C, h, w] each."""
        alpha, sigma = self.path.alpha_sigma(t)
        return target(x0, noise, alpha, sigma, self.prediction, self.path.sigma_data)
