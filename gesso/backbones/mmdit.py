"""MMDiT: the transformer of Stable Diffusion 3 and 3.5, two streams that attend jointly.

Esser et al. 2024, https://arxiv.org/abs/2403.03206, section 4. Parameter names and layouts are
those of the authors' checkpoints, so conversion only renames.

Dims: B batch, C latent channels, h, w latent size, p patch size, N = (h/p)(w/p) image tokens,
M text tokens, D width, H heads, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso.config import Config as BaseConfig
from gesso.nn.attention import attend, mask_bias
from gesso.nn.checks import check_heads, check_latents, check_pooled, check_text
from gesso.nn.hooks import HookPoint
from gesso.nn.init import normal_, xavier_, zero_
from gesso.nn.linear import Linear
from gesso.nn.mlp import Mlp
from gesso.nn.modulation import EPS, modulated_norm
from gesso.nn.patch import PatchEmbed, unpatchify
from gesso.nn.position import sincos_2d_centred
from gesso.nn.timestep import ScalarEmbedder
from gesso.types import Cond, GessoError, Prediction


class Config(BaseConfig):
    """A demo size by default; `SIZES` has the published ones. The width is 64 x depth there."""

    depth: int = Field(default=4, ge=1)
    hidden_size: int = Field(default=128, ge=4)
    num_heads: int = Field(default=2, ge=1)
    patch_size: int = Field(default=2, ge=1)
    in_channels: int = Field(default=4, ge=1)
    text_dim: int = Field(default=128, ge=1)  # width of the text tokens
    pooled_dim: int = Field(default=128, ge=1)  # width of the pooled text
    mlp_ratio: float = 4.0
    qk_norm: bool = True  # RMSNorm of queries and keys in each head (SD3.5; SD3-M has none)
    dual_blocks: int = Field(default=0, ge=0)  # the first so many attend to the image twice
    base_size: int = Field(default=8, ge=1)  # side of the training grid in tokens
    table_size: int = Field(default=32, ge=1)  # side of the position table that grids are cut from
    init_std: float = Field(default=0.02, gt=0)  # of the time and text MLPs, as in DiT


_PUBLISHED: dict[str, Any] = {
    "in_channels": 16,
    "text_dim": 4096,
    "pooled_dim": 2048,
    "base_size": 64,
}


def _size(depth: int, **options: Any) -> Config:
    return Config(
        **{"depth": depth, "hidden_size": 64 * depth, "num_heads": depth, **_PUBLISHED, **options}
    )


SIZES: dict[str, Config] = {
    "demo": Config(),
    "sd3-medium": _size(24, qk_norm=False, table_size=192),
    "sd3.5-medium": _size(24, table_size=384, dual_blocks=13),
    "sd3.5-large": _size(38, table_size=192),
}
"""Published sizes by name: 2.03, 2.24 and 8.06 billion parameters."""


class JointAttention(nn.Module):
    """One stream's part of an attention: projections, and norms of queries and keys.

    Args:
        dim: D.
        num_heads: H.
        qk_norm: RMSNorm over each head of queries and keys.
        only_keys: the stream is read but not written: it has no output projection.
    """

    def __init__(self, dim: int, num_heads: int, qk_norm: bool, only_keys: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = xavier_(Linear(dim, 3 * dim))
        self.ln_q: nn.Module = nn.Identity()
        self.ln_k: nn.Module = nn.Identity()
        if qk_norm:
            self.ln_q = nn.RMSNorm(dim // num_heads, eps=EPS)
            self.ln_k = nn.RMSNorm(dim // num_heads, eps=EPS)
        if not only_keys:
            self.proj = xavier_(Linear(dim, dim))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, D] -> queries, keys and values [B, H, N, d]."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, H, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 of [B, H, N, d]
        return self.ln_q(q), self.ln_k(k), v

    def out(self, heads: Tensor) -> Tensor:
        """[B, H, N, d] -> [B, N, D]."""
        return self.proj(heads.transpose(1, 2).flatten(2))


class Stream(nn.Module):
    """What one of the two streams has in a block of its own.

    Args:
        config: of the network.
        dual: with a second attention, of the stream to itself.
        last: the stream ends here: it is read by the other and goes no further.
    """

    def __init__(self, config: Config, dual: bool = False, last: bool = False) -> None:
        super().__init__()
        dim, heads = config.hidden_size, config.num_heads
        self.attn = JointAttention(dim, heads, config.qk_norm, last)
        self.attn2 = JointAttention(dim, heads, config.qk_norm) if dual else None
        self.mlp = None if last else Mlp(dim, int(dim * config.mlp_ratio), dim)
        self.chunks = 2 if last else 9 if dual else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_(nn.Linear(dim, self.chunks * dim)))

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        """c [B, D] -> (shift, scale, gate) of attention, MLP and second attention, [B, 1, D]."""
        return self.adaLN_modulation(c)[:, None].chunk(self.chunks, dim=2)

    def add(self, x: Tensor, heads: Tensor, m: tuple[Tensor, ...]) -> Tensor:
        """x [B, N, D] after what the attention gave it, [B, H, N, d], and after its MLP."""
        assert self.mlp is not None
        y = x + m[2] * self.attn.out(heads)
        if self.attn2 is not None:  # it reads what the joint attention read, not what it wrote
            q, k, v = self.attn2.project(modulated_norm(x, m[6], m[7]))
            y = y + m[8] * self.attn2.out(attend(q, k, v))
        return y + m[5] * self.mlp(modulated_norm(y, m[3], m[4]))


class Block(nn.Module):
    """Image and text with weights of their own, in one attention (section 4, figure 2b)."""

    def __init__(self, config: Config, dual: bool, last: bool) -> None:
        super().__init__()
        self.context_block = Stream(config, last=last)
        self.x_block = Stream(config, dual=dual)

    def forward(
        self, x: Tensor, text: Tensor, c: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x [B, N, D], text [B, M, D], c [B, D], bias [B, 1, 1, N + M] -> both streams."""
        streams = (self.x_block, x), (self.context_block, text)
        modulations = [stream.modulation(c) for stream, _ in streams]
        q, k, v = (
            torch.cat(parts, dim=2)  # [B, H, N + M, d]
            for parts in zip(
                *(
                    stream.attn.project(modulated_norm(y, m[0], m[1]))
                    for (stream, y), m in zip(streams, modulations, strict=True)
                ),
                strict=True,
            )
        )
        heads = attend(q, k, v, bias).split([x.shape[1], text.shape[1]], dim=2)
        x = self.x_block.add(x, heads[0], modulations[0])
        if self.context_block.mlp is not None:
            text = self.context_block.add(text, heads[1], modulations[1])
        return x, text


class FinalLayer(nn.Module):
    """Modulated norm and projection to patches, zero at the start."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear = zero_(nn.Linear(dim, out))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_(nn.Linear(dim, 2 * dim)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, N, D], c [B, D] -> [B, N, out]."""
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=2)  # 2 of [B, 1, D]
        return self.linear(modulated_norm(x, shift, scale))


class PooledEmbedder(nn.Module):
    """The pooled text to the width of the model: [B, P] -> [B, D]."""

    def __init__(self, pooled_dim: int, dim: int, init_std: float) -> None:
        super().__init__()
        first, second = nn.Linear(pooled_dim, dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(normal_(first, init_std), nn.SiLU(), normal_(second, init_std))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.mlp(pooled)


class MMDiT(nn.Module):
    """The network. See `Config` for its options and `SIZES` for the published ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, p = config.hidden_size, config.patch_size
        check_heads(dim, config.num_heads, "mmdit")
        if config.dual_blocks > config.depth:
            raise GessoError(
                f"mmdit: dual_blocks is {config.dual_blocks}, but there are {config.depth} blocks:"
                " change it."
            )
        self.config = config
        self.in_channels, self.patch_size = config.in_channels, p
        self.x_embedder = PatchEmbed(config.in_channels, dim, p)
        self.t_embedder = ScalarEmbedder(dim, config.init_std)
        self.y_embedder = PooledEmbedder(config.pooled_dim, dim, config.init_std)
        self.context_embedder = xavier_(nn.Linear(config.text_dim, dim))
        self.tokens_in, self.patches_out = HookPoint(), HookPoint()
        self.joint_blocks = nn.ModuleList(
            Block(config, dual=i < config.dual_blocks, last=i == config.depth - 1)
            for i in range(config.depth)
        )
        self.final_layer = FinalLayer(dim, p * p * config.in_channels)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict from noisy latents.

        Args:
            x: [B, C, h, w], h and w divisible by the patch size.
            t: [B] in 0..1000, fractions allowed.
            cond: tokens [B, M, text_dim], pooled [B, pooled_dim]; mask [B, M] hides padding. The
                published models were trained without one and attend to their padding.

        Returns:
            value [B, C, h, w].

        Raises:
            GessoError: the latent size or the condition does not fit the model.
        """
        check_latents(x, self.in_channels, self.patch_size, "mmdit")
        words = check_text(cond.tokens, self.config.text_dim, "mmdit")
        pooled = check_pooled(cond.pooled, self.config.pooled_dim, "mmdit")
        self._check_positions(x)
        height, width = x.shape[2:]
        dtype = self.x_embedder.proj.weight.dtype
        tokens = self.tokens_in(self.embed(x))  # [B, N, D]
        text = self.context_embedder(words.to(dtype))  # [B, M, D]
        c = self.t_embedder(t) + self.y_embedder(pooled.to(dtype))  # [B, D]
        bias = None
        if cond.mask is not None:
            seen = cond.mask.new_ones(len(x), tokens.shape[1])
            bias = mask_bias(torch.cat([seen, cond.mask], dim=1), text.dtype)  # [B, 1, 1, N + M]
        for block in self.joint_blocks:
            tokens, text = block(tokens, text, c, bias)
        patches = self.patches_out(self.final_layer(tokens, c))  # [B, N, p p C]
        return Prediction(unpatchify(patches, height, width, self.patch_size))

    @property
    def trunk(self) -> nn.ModuleList:
        """The blocks, in the order in which image tokens pass them."""
        return self.joint_blocks

    def embed(self, x: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> tokens with their positions, [B, N, D]."""
        c = self.config
        sides = c.base_size, c.table_size
        return self.x_embedder.placed(
            x, lambda h, w: sincos_2d_centred(h, w, c.hidden_size, *sides, x.device)
        )

    def _check_positions(self, x: Tensor) -> None:
        most = self.patch_size * self.config.table_size
        if max(x.shape[2:]) > most:
            raise GessoError(
                f"mmdit has positions for latents of up to {most} a side, not {list(x.shape[2:])}:"
                " make the picture smaller or raise table_size."
            )


def build(options: Config) -> MMDiT:
    """The network for validated options, freshly initialised."""
    return MMDiT(options)
