"""DiT: a diffusion transformer conditioned on class labels by adaLN-Zero.

Peebles & Xie 2022, https://arxiv.org/abs/2212.09748. Parameter names and layouts are those of the
authors' checkpoints. PixArt-alpha's first stage.

Dims: B batch, C latent channels, h, w latent size, p patch size, N = (h/p)(w/p) image tokens,
D width, K classes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso.config import Config as BaseConfig
from gesso.nn.attention import SelfAttention
from gesso.nn.checks import check_heads, check_latents
from gesso.nn.hooks import HookPoint
from gesso.nn.label import LabelEmbedder
from gesso.nn.mlp import Mlp
from gesso.nn.modulation import AdaLN, modulated_norm
from gesso.nn.patch import PatchEmbed, unpatchify
from gesso.nn.position import sincos_2d
from gesso.nn.timestep import ScalarEmbedder
from gesso.types import Cond, GessoError, Prediction


class Config(BaseConfig):
    """A small size by default; `SIZES` has the published ones."""

    depth: int = Field(default=6, ge=1)
    hidden_size: int = Field(default=256, ge=4)
    num_heads: int = Field(default=4, ge=1)
    patch_size: int = Field(default=2, ge=1)
    in_channels: int = Field(default=4, ge=1)
    num_classes: int = Field(default=1000, ge=1)  # K; what the text encoder `classes` knows
    mlp_ratio: float = 4.0
    learn_sigma: bool = True  # a second set of output channels: the learned variance
    base_size: int = Field(default=8, ge=1)  # side of the training grid in tokens
    init_std: float = Field(default=0.02, gt=0)  # of the time MLP and the class table


_WIDTHS = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}

SIZES: dict[str, Config] = {
    f"{name}-{patch}": Config(
        depth=depth, hidden_size=width, num_heads=heads, patch_size=patch, base_size=32 // patch
    )
    for name, (depth, width, heads) in _WIDTHS.items()
    for patch in (2, 4, 8)
}
"""Published sizes (table 1 of the paper) for ImageNet at 256 px, by name: "xl-2", "b-4", ..."""


class Block(nn.Module):
    """Self-attention and MLP, each modulated and gated by adaLN-Zero (figure 3)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = SelfAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)
        self.adaLN_modulation = AdaLN(dim, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, N, D], c [B, D] time plus class -> [B, N, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)  # 6 of [B, 1, D]
        x = x + gate1 * self.attn(modulated_norm(x, shift1, scale1))
        return x + gate2 * self.mlp(modulated_norm(x, shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated norm and projection to patches, zero at the start."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = AdaLN(dim, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, N, D], c [B, D] -> [B, N, out]."""
        shift, scale = self.adaLN_modulation(c)  # 2 of [B, 1, D]
        return self.linear(modulated_norm(x, shift, scale))


class DiT(nn.Module):
    """The network. See `Config` for its options and `SIZES` for the published ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, p, std = config.hidden_size, config.patch_size, config.init_std
        check_heads(dim, config.num_heads, "dit")
        self.config = config
        self.in_channels, self.patch_size = config.in_channels, p
        self.num_classes = config.num_classes
        self.x_embedder = PatchEmbed(config.in_channels, dim, p)
        self.t_embedder = ScalarEmbedder(dim, std)
        self.y_embedder = LabelEmbedder(config.num_classes, dim, std, "dit")
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        self.final_layer = FinalLayer(dim, p * p * out_channels)
        self.tokens_in, self.patches_out = HookPoint(), HookPoint()

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict from noisy latents.

        Args:
            x: [B, C, h, w], h and w divisible by the patch size.
            t: [B] in 0..1000, fractions allowed.
            cond: label [B] in 0..K, where K means no class.

        Returns:
            value [B, C, h, w], and aux["variance"] of the same shape with `learn_sigma`.

        Raises:
            GessoError: the latent size or the labels do not fit the model.
        """
        check_latents(x, self.in_channels, self.patch_size, "dit")
        if cond.label is None:
            raise GessoError(
                "dit takes class labels, and the condition has none: use the text encoder"
                " `classes`, or a source with labels."
            )
        config, (height, width) = self.config, x.shape[2:]
        tokens = self.tokens_in(self.embed(x))  # [B, N, D]
        c = self.t_embedder(t) + self.y_embedder(cond.label)  # [B, D]
        for block in self.blocks:
            tokens = block(tokens, c)
        patches = self.patches_out(self.final_layer(tokens, c))
        out = unpatchify(patches, height, width, self.patch_size)
        if not config.learn_sigma:
            return Prediction(out)
        value, variance = out.chunk(2, dim=1)  # 2 of [B, C, h, w]
        return Prediction(value, {"variance": variance})

    @property
    def trunk(self) -> nn.ModuleList:
        """The blocks, in the order in which image tokens pass them."""
        return self.blocks

    def embed(self, x: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> tokens with their positions, [B, N, D]."""
        dim, base, device = self.config.hidden_size, self.config.base_size, x.device
        return self.x_embedder.placed(x, lambda h, w: sincos_2d(h, w, dim, base, 1.0, device))

    def null(self, cond: Cond) -> Cond:
        """The unconditional branch: the row of the class table that means no class."""
        assert cond.label is not None
        return cond.replace(label=torch.full_like(cond.label, self.num_classes))


def build(options: Config) -> DiT:
    """The network for validated options, freshly initialised."""
    return DiT(options)
