"""MicroDiT: a sparse diffusion transformer made to be trained on a quarter of its patches.

Sehwag et al. 2024, "Stretching Each Dollar", https://arxiv.org/abs/2407.15811. A narrow patch-mixer
sees every patch, so that those which are dropped after it (`gesso.adapters.deferred_mask`) have
told the others what they hold. Later blocks are wider than earlier ones, and every second one is a
mixture of experts. Parameter names and layouts are those of the authors' checkpoints.

Dims: B batch, C latent channels, h, w latent size, p patch size, N = (h/p)(w/p) image tokens,
L text tokens, D width of the blocks or of the mixer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso.config import Config as BaseConfig
from gesso.nn.attention import KeysValues, mask_bias
from gesso.nn.caption_block import CaptionBlock, CaptionEmbedder, NormMlp, layer_norm
from gesso.nn.checks import check_latents, check_text
from gesso.nn.hooks import HookPoint
from gesso.nn.init import zero_
from gesso.nn.linear import Linear
from gesso.nn.mlp import SwiGLU
from gesso.nn.moe import ExpertChoice
from gesso.nn.normed_attention import NormedCrossAttention, NormedSelfAttention
from gesso.nn.patch import PatchEmbed, unpatchify
from gesso.nn.position import sincos_2d
from gesso.nn.prepared import Prepared, read_ahead
from gesso.nn.timestep import ScalarEmbedder
from gesso.types import Cond, GessoError, Prediction


class Config(BaseConfig):
    """A demo size by default; `SIZES` has the published ones."""

    depth: int = Field(default=6, ge=1)
    hidden_size: int = Field(default=128, ge=4)
    head_dim: int = Field(default=64, ge=2)
    mixer_depth: int = Field(default=2, ge=0)  # blocks of the patch-mixer; 0: none
    mixer_size: int = Field(default=128, ge=4)  # its width
    patch_size: int = Field(default=2, ge=1)
    in_channels: int = Field(default=4, ge=1)
    text_dim: int = Field(default=128, ge=1)  # width of the text encoder's tokens
    # Layer-wise scaling: widths of MLP and self-attention over hidden_size, from the first block to
    # the last one, whose the mixer has, too.
    mlp_ratio: tuple[float, float] = (4.0, 4.0)
    attention_ratio: tuple[float, float] = (1.0, 1.0)
    multiple_of: int = Field(default=64, ge=1)  # hidden widths are rounded up to
    experts: int = Field(default=0, ge=0)  # of every second block but the last; 0: dense blocks
    capacity: float = Field(default=2.0, gt=0)  # experts that choose a token, in the mean
    base_size: int = Field(default=8, ge=1)  # side of the first training grid in tokens
    init_std: float = Field(default=0.02, gt=0)  # narrow models read sooner with width**-0.5


def _published(depth: int, width: int, head_dim: int, mixer: tuple[int, int]) -> Config:
    return Config(
        depth=depth,
        hidden_size=width,
        head_dim=head_dim,
        mixer_depth=mixer[0],
        mixer_size=mixer[1],
        text_dim=1024,
        mlp_ratio=(0.5, 4.0),
        attention_ratio=(0.5, 1.0),
        multiple_of=256,
        experts=8,
        base_size=16,
    )


SIZES: dict[str, Config] = {
    "tiny": _published(16, 512, 32, mixer=(4, 512)),
    "xl": _published(28, 1024, 64, mixer=(6, 768)),
}
"""Published sizes by name, for four latent channels and CLIP-H's text: 201 million parameters and
1.165 billion. Trained at 256 px first; the grid of 512 px spans the same positions."""


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class Block(nn.Module):
    """Self-attention, cross-attention, MLP or experts; adaLN by a linear layer of the block's own.

    Args:
        dim, cond_dim: widths of the tokens and of the condition that modulates.
        mlp_ratio, attention_ratio: inner widths over dim.
        experts: of the MLP; 0: a SwiGLU.
        out_std: initial standard deviation of what writes to the residual stream.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        mlp_ratio: float,
        attention_ratio: float,
        experts: int,
        out_std: float,
        config: Config,
    ) -> None:
        super().__init__()
        d, std = config.head_dim, config.init_std
        inner = dim if attention_ratio == 1 else round_up(int(dim * attention_ratio), 2 * d)
        hidden = int(dim * mlp_ratio)
        self.norm1, self.norm2, self.norm3 = layer_norm(dim), layer_norm(dim), layer_norm(dim)
        self.attn = NormedSelfAttention(dim, inner, d, std, out_std)
        self.cross_attn = NormedCrossAttention(dim, d, std, out_std)
        self.mlp: nn.Module
        if experts:
            hidden = round_up(hidden, config.multiple_of)
            self.mlp = ExpertChoice(dim, hidden, experts, config.capacity, std, out_std)
        else:
            hidden = round_up(int(2 * hidden / 3), config.multiple_of)
            self.mlp = SwiGLU(dim, hidden, std, out_std)
        self.adaLN_modulation = nn.Sequential(
            nn.GELU(approximate="tanh"), zero_(Linear(cond_dim, 6 * dim))
        )

    def forward(
        self, x: Tensor, text: Tensor | KeysValues, bias: Tensor | None, c: Tensor
    ) -> Tensor:
        """x [B, N, dim], text [B, L, dim], bias [B, 1, 1, L], c [B, cond_dim] -> [B, N, dim]."""
        modulation = self.adaLN_modulation(c)[:, None].chunk(6, dim=2)  # 6 of [B, 1, dim]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        x = x + self.cross_attn(self.norm2(x), text, bias)
        return x + gate2 * self.mlp(self.norm3(x) * (1 + scale2) + shift2)


class MixerBlock(Block):
    """A block of the patch-mixer, with a function of its own to compile: it sees all N tokens."""

    def forward(self, x: Tensor, text: Any, bias: Tensor | None, c: Tensor) -> Tensor:
        return super().forward(x, text, bias, c)


class FinalLayer(nn.Module):
    """Modulated norm and projection to patches, zero at the start."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm_final = layer_norm(dim)
        self.linear = zero_(nn.Linear(dim, out))
        self.adaLN_modulation = nn.Sequential(
            nn.GELU(approximate="tanh"), zero_(nn.Linear(dim, 2 * dim))
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=2)  # 2 of [B, 1, dim]
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class MicroDiT(nn.Module):
    """The network. See `Config` for its options and `SIZES` for the published ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, p, std, depth = config.hidden_size, config.patch_size, config.init_std, config.depth
        _check_widths(config)
        self.config = config
        self.in_channels, self.patch_size = config.in_channels, p
        self.x_embedder = PatchEmbed(config.in_channels, dim, p)
        self.t_embedder = ScalarEmbedder(dim, std, 512, nn.GELU(approximate="tanh"))
        self.y_embedder = CaptionEmbedder(config.text_dim, dim, std)
        hidden = round_up(int(2 * 4 * dim / 3), config.multiple_of)
        self.y_emb_preprocess = CaptionBlock(dim, config.head_dim, hidden, std)
        self.pooled_y_emb_process = NormMlp(dim, dim, std)
        if config.mixer_depth:
            width = config.mixer_size
            self.patch_mixer_map_xin = _bridge(dim, width)
            self.patch_mixer_map_y = _bridge(dim, width)
            self.patch_mixer_map_xout = _bridge(width, dim)
            out_std = std / (2 * depth) ** 0.5
            ratios = config.mlp_ratio[1], config.attention_ratio[1]
            self.patch_mixer = nn.ModuleList(
                MixerBlock(width, dim, *ratios, config.experts * (i % 2), out_std, config)
                for i in range(config.mixer_depth)
            )
        self.tokens_in, self.patches_out = HookPoint(), HookPoint()
        self.blocks = nn.ModuleList(
            Block(
                dim,
                dim,
                _between(config.mlp_ratio, i, depth),
                _between(config.attention_ratio, i, depth),
                config.experts * (i % 2) if i < depth - 1 else 0,
                std / (2 * (i + 1)) ** 0.5,
                config,
            )
            for i in range(depth)
        )
        self.final_layer = FinalLayer(dim, p * p * config.in_channels)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | Prepared) -> Prediction:
        """Predict from noisy latents.

        Args:
            x: [B, C, h, w], h and w divisible by the patch size.
            t: [B] the path's model time; the published weights know ln(sigma) / 4 of EDM.
            cond: tokens [B, L, text_dim]; mask [B, L] if some are padding, which then is neither
                attended to nor part of the mean. Or what `prepare` made of it.

        Returns:
            value [B, C, h, w].

        Raises:
            GessoError: the latent size or the condition does not fit the model.
        """
        check_latents(x, self.in_channels, self.patch_size, "microdit")
        ready = cond if isinstance(cond, Prepared) else self._embed(cond)
        config, (height, width) = self.config, x.shape[2:]
        tokens = self.embed(x)  # [B, N, D]
        c = self.t_embedder(t) + ready.micro  # [B, D]
        texts = iter(ready.text)
        if config.mixer_depth:
            tokens = self.patch_mixer_map_xin(tokens)  # [B, N, mixer_size]
            for block in self.patch_mixer:
                tokens = block(tokens, next(texts), ready.bias, c)
        tokens = self.tokens_in(tokens)
        if config.mixer_depth:
            tokens = self.patch_mixer_map_xout(tokens)  # [B, N, D]
        for block in self.blocks:
            tokens = block(tokens, next(texts), ready.bias, c)
        patches = self.patches_out(self.final_layer(tokens, c))  # [B, N, p p C]
        return Prediction(unpatchify(patches, height, width, self.patch_size))

    @property
    def trunk(self) -> nn.ModuleList:
        """The blocks, in the order in which image tokens pass them."""
        return self.blocks

    def embed(self, x: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> tokens with their positions, [B, N, D]."""
        dim, base, device = self.config.hidden_size, self.config.base_size, x.device
        return self.x_embedder.placed(x, lambda h, w: sincos_2d(h, w, dim, base, 1.0, device))

    def prepare(self, cond: Cond, times: Tensor | None = None) -> Prepared:
        """What does not depend on x, once for many steps: every block's text keys and values.

        Args:
            cond: as `forward` takes it. Weights must not change while the result is in use.
        """
        ready = self._embed(cond.trim())
        blocks = [*self.patch_mixer, *self.blocks] if self.config.mixer_depth else self.blocks
        return replace(ready, text=read_ahead(blocks, ready.text))  # type: ignore[arg-type]

    def null(self, cond: Cond) -> Cond:
        """The unconditional branch: zeroed text features under the prompt's own mask."""
        assert cond.tokens is not None
        return cond.replace(tokens=torch.zeros_like(cond.tokens))

    def _embed(self, cond: Cond) -> Prepared:
        """The text for every block, its mask, and its mean as part of what modulates."""
        config = self.config
        tokens = check_text(cond.tokens, config.text_dim, "microdit")
        y = self.y_embedder(tokens.to(self.x_embedder.proj.weight.dtype))  # [B, L, D]
        bias = None if cond.mask is None else mask_bias(cond.mask, y.dtype)
        y = self.y_emb_preprocess(y, bias)
        if cond.mask is None:
            mean = y.mean(dim=1)  # [B, D]
        else:
            real = cond.mask[..., None].to(y.dtype)  # [B, L, 1]
            mean = (y * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        text = [y] * config.depth
        if config.mixer_depth:
            text = [self.patch_mixer_map_y(y)] * config.mixer_depth + text
        return Prepared.of(cond, text, bias, self.pooled_y_emb_process(mean))


def _between(ends: tuple[float, float], i: int, n: int) -> float:
    """The i-th of n even steps from the first to the last."""
    return ends[0] + (ends[1] - ends[0]) * i / max(1, n - 1)


def _bridge(dim: int, out: int) -> nn.Module:
    """Between the mixer and the rest: a norm and a linear layer where the widths differ."""
    if dim == out:
        return nn.Identity()
    layer = nn.Linear(dim, out, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(layer_norm(dim), layer)


def _check_widths(config: Config) -> None:
    mixer = {"mixer_size": config.mixer_size} if config.mixer_depth else {}
    for name, width in {"hidden_size": config.hidden_size, **mixer}.items():
        if width % config.head_dim or width % 4:
            raise GessoError(
                f"microdit: {name} {width} must be divisible by 4 and by head_dim"
                f" {config.head_dim}: change one of them."
            )


def build(options: Config) -> MicroDiT:
    """The network for validated options, freshly initialised."""
    return MicroDiT(options)
