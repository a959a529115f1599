"""PixArt-alpha and -Sigma: a diffusion transformer with cross-attention and adaLN-single.

Chen et al. 2023, https://arxiv.org/abs/2310.00426. Parameter names and layouts are those of the
authors' checkpoints, so conversion only renames.

Dims: B batch, C latent channels, h, w latent size, p patch size, N = (h/p)(w/p) image tokens,
L text tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso.config import Config as BaseConfig
from gesso.nn.attention import CrossAttention, KeysValues, SelfAttention, mask_bias
from gesso.nn.caption import CaptionEmbedder
from gesso.nn.checks import check_heads, check_latents, check_text
from gesso.nn.hooks import HookPoint
from gesso.nn.init import normal_, zero_
from gesso.nn.kv_compress import CompressedSelfAttention
from gesso.nn.mlp import Mlp
from gesso.nn.modulation import AdaLN, modulated_norm
from gesso.nn.patch import PatchEmbed, unpatchify
from gesso.nn.patch_mixer import PatchMixer
from gesso.nn.position import sincos_2d
from gesso.nn.prepared import Prepared, read_ahead
from gesso.nn.timestep import ScalarEmbedder
from gesso.types import Cond, GessoError, Prediction


class Config(BaseConfig):
    """The demo size by default; `SIZES` has the published ones."""

    depth: int = Field(default=6, ge=1)
    hidden_size: int = Field(default=256, ge=4)
    num_heads: int = Field(default=4, ge=1)
    patch_size: int = Field(default=2, ge=1)
    in_channels: int = Field(default=4, ge=1)
    text_dim: int = Field(default=256, ge=1)  # width of the text encoder's tokens
    mlp_ratio: float = 4.0
    learn_sigma: bool = True  # a second set of output channels: the learned variance
    micro_conditions: bool = False  # original size and aspect of the picture (alpha at 1024 px)
    null_tokens: int = Field(default=0, ge=0)  # rows of the learned null caption; 0: none
    base_size: int = Field(default=8, ge=1)  # side of the training grid in tokens
    interpolation_scale: float = Field(default=1.0, gt=0)  # of positions
    kv_compress: int = Field(default=1, ge=1)  # Sigma's pooling of keys and values, per side
    kv_blocks: list[int] = Field(default_factory=list)  # where; Sigma at 2K: blocks 14 to 27
    mixer_depth: int = Field(default=0, ge=0)  # blocks of a patch-mixer, for masked training
    mixer_size: int = Field(default=128, ge=4)  # its width
    modulation: Literal["single", "block"] = "single"  # block: an adaLN of its own for each, as DiT
    # Initial standard deviation of the caption, time and modulation MLPs. PixArt's 0.02 keeps unit
    # variance at its widths (4096, 1152); narrow models learn to read sooner with width**-0.5.
    init_std: float = Field(default=0.02, gt=0)


_XL: dict[str, Any] = {"depth": 28, "hidden_size": 1152, "num_heads": 16, "text_dim": 4096}

SIZES: dict[str, Config] = {
    "demo": Config(),
    "xl-256": Config(**_XL, null_tokens=120, base_size=16),
    "xl-512": Config(**_XL, null_tokens=120, base_size=32),
    "xl-1024": Config(
        **_XL, null_tokens=120, base_size=64, interpolation_scale=2, micro_conditions=True
    ),
    "sigma-256": Config(**_XL, null_tokens=300, base_size=16, interpolation_scale=0.5),
    "sigma-512": Config(**_XL, null_tokens=300, base_size=32),
    "sigma-1024": Config(**_XL, null_tokens=300, base_size=64, interpolation_scale=2),
    "sigma-2k": Config(**_XL, null_tokens=300, base_size=128, interpolation_scale=4),
    "sigma-2k-kv": Config(
        **_XL,
        null_tokens=300,
        base_size=128,
        interpolation_scale=4,
        kv_compress=2,
        kv_blocks=list(range(14, 28)),
    ),
}
"""Published sizes by name. Each XL has 610,856,096 parameters (xl-1024: 611,349,152) besides the
null caption, null_tokens x 4096, which the authors keep as a buffer and gesso as a parameter."""


class Block(nn.Module):
    """Self-attention, cross-attention to the text, MLP (PixArt, figure 4)."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, compression: int = 1, single: bool = True
    ) -> None:
        super().__init__()
        if single:
            self.scale_shift_table = nn.Parameter(torch.randn(6, dim) * dim**-0.5)
        else:
            self.adaLN_modulation = AdaLN(dim, 6)
        self.single = single
        self.compressed = compression > 1
        self.attn: nn.Module = (
            CompressedSelfAttention(dim, num_heads, compression)
            if self.compressed
            else SelfAttention(dim, num_heads)
        )
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)

    def forward(
        self,
        x: Tensor,
        text: Tensor | KeysValues,
        bias: Tensor | None,
        t: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """x [B, N, D] on a grid, text [B, L, D], bias [B, 1, 1, L], t [B, 6, D] or, for an
        adaLN of the block's own, [B, D] -> [B, N, D]."""
        # adaLN-single: one MLP of the timestep for all blocks, plus a table of the block's own.
        modulation = (
            (self.scale_shift_table + t).chunk(6, dim=1)
            if self.single
            else self.adaLN_modulation(t)
        )
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation  # 6 of [B, 1, D]
        y = modulated_norm(x, shift1, scale1)
        x = x + gate1 * (self.attn(y, grid) if self.compressed else self.attn(y))
        x = x + self.cross_attn(x, text, bias)  # neither norm nor gate
        return x + gate2 * self.mlp(modulated_norm(x, shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated norm and projection to patches, zero at the start."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear = zero_(nn.Linear(dim, out))
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) * dim**-0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, N, D], t [B, D] the time embedding itself -> [B, N, out]."""
        shift, scale = (self.scale_shift_table + t[:, None]).chunk(2, dim=1)  # 2 of [B, 1, D]
        return self.linear(modulated_norm(x, shift, scale))


class PixArt(nn.Module):
    """The network. See `Config` for its options and `SIZES` for the published ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, p, std = config.hidden_size, config.patch_size, config.init_std
        check_heads(dim, config.num_heads, "pixart")
        if config.micro_conditions and dim % 3:
            raise GessoError(
                f"pixart: micro_conditions need a hidden_size divisible by 3, not {dim}:"
                " change it or turn them off."
            )
        if unknown := [i for i in config.kv_blocks if not 0 <= i < config.depth]:
            raise GessoError(
                f"pixart: kv_blocks names the blocks {unknown}, but there are 0 to"
                f" {config.depth - 1}: change it."
            )
        self.config = config
        self.in_channels, self.patch_size = config.in_channels, p
        out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        self.x_embedder = PatchEmbed(config.in_channels, dim, p)
        self.t_embedder = ScalarEmbedder(dim, std)
        single = config.modulation == "single"
        if single:
            self.t_block = nn.Sequential(nn.SiLU(), normal_(nn.Linear(dim, 6 * dim), std))
        self.y_embedder = CaptionEmbedder(config.text_dim, dim, config.null_tokens, std)
        if config.micro_conditions:
            self.csize_embedder = ScalarEmbedder(dim // 3, std)
            self.ar_embedder = ScalarEmbedder(dim // 3, std)
        if config.mixer_depth:
            self.mixer = PatchMixer(dim, config.mixer_size, config.mixer_depth, config.mlp_ratio)
        self.tokens_in, self.patches_out = HookPoint(), HookPoint()
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.num_heads,
                config.mlp_ratio,
                config.kv_compress if i in config.kv_blocks else 1,
                single,
            )
            for i in range(config.depth)
        )
        self.final_layer = FinalLayer(dim, p * p * out_channels)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | Prepared) -> Prediction:
        """Predict from noisy latents.

        Args:
            x: [B, C, h, w], h and w divisible by the patch size.
            t: [B] in 0..1000, fractions allowed.
            cond: tokens [B, L, text_dim]; mask [B, L] if some are padding; size [B, 2] and
                aspect [B, 1] if the model has micro-conditions. Or what `prepare` made of it.

        Returns:
            value [B, C, h, w], and aux["variance"] of the same shape with `learn_sigma`.

        Raises:
            GessoError: the latent size or the condition does not fit the model.
        """
        check_latents(x, self.in_channels, self.patch_size, "pixart")
        ready = cond if isinstance(cond, Prepared) else self._embed(cond)
        config, (height, width) = self.config, x.shape[2:]
        grid = (height // self.patch_size, width // self.patch_size)
        tokens = self.embed(x)  # [B, N, D]
        time, shared = ready.at(t) or self._modulation(self.t_embedder(t), ready.micro)
        tokens = self.mixer(tokens, time) if config.mixer_depth else tokens  # [B, N, mixer_size]
        tokens = self.tokens_in(tokens)
        tokens = self.mixer.expand(tokens) if config.mixer_depth else tokens  # [B, N, D]
        for block, text in zip(self.blocks, ready.text, strict=True):
            tokens = block(tokens, text, ready.bias, shared, grid)
        patches = self.patches_out(self.final_layer(tokens, time))  # [B, N, p p C or p p 2C]
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
        c = self.config
        scale = c.base_size, c.interpolation_scale
        return self.x_embedder.placed(
            x, lambda h, w: sincos_2d(h, w, c.hidden_size, *scale, x.device)
        )

    def prepare(self, cond: Cond, times: Tensor | None = None) -> Prepared:
        """What does not depend on x, once for many steps: the same pictures sooner.

        Padding is dropped and every block's text keys and values are computed. Adapters that
        change pictures (skipped blocks, reused attention, merged tokens) attach to the blocks and
        have no part in this.

        Args:
            cond: as `forward` takes it. Weights must not change while the result is in use.
            times: [S] the t to come, whose embeddings are computed at once. Used on their own
                device, which is the CPU: to look t up, a GPU would have to wait.
        """
        ready = self._embed(cond.trim())
        ready = replace(ready, text=read_ahead(self.blocks, ready.text))  # type: ignore[arg-type]
        if times is None or times.device != self.x_embedder.proj.weight.device:
            return ready
        rows = zip(*self._modulation(self.t_embedder(times)[:, None], ready.micro), strict=True)
        return replace(ready, times=dict(zip(times.tolist(), rows, strict=True)))

    def _embed(self, cond: Cond) -> Prepared:
        config = self.config
        tokens = check_text(cond.tokens, config.text_dim, "pixart")
        text = self.y_embedder(tokens.to(self.x_embedder.proj.weight.dtype))  # [B, L, D]
        bias = None if cond.mask is None else mask_bias(cond.mask, text.dtype)
        micro = self._micro(cond) if config.micro_conditions else None
        return Prepared.of(cond, [text] * config.depth, bias, micro)

    def _modulation(self, time: Tensor, micro: Tensor | None) -> tuple[Tensor, Tensor]:
        """A time embedding [..., D] with micro-conditions, and what blocks take of it: t_block's
        output [..., 6, D], or itself."""
        time = time if micro is None else time + micro
        if self.config.modulation == "block":
            return time, time
        return time, self.t_block(time).unflatten(-1, (6, -1))

    def null(self, cond: Cond) -> Cond:
        """The learned unconditional branch: the null caption under the prompt's own mask.

        Raises:
            GessoError: the model has no null caption, or the prompt is longer than it.
        """
        null = self.y_embedder.y_embedding  # [null_tokens, text_dim]
        if null is None:
            raise GessoError(
                "This pixart has no learned null caption: set null_tokens, or guide with the"
                " empty prompt."
            )
        assert cond.tokens is not None
        batch, length = cond.tokens.shape[:2]
        if length > null.shape[0]:
            raise GessoError(
                f"The prompt has {length} tokens but pixart's null caption only {null.shape[0]}:"
                " shorten it or set null_tokens."
            )
        return cond.replace(tokens=null[:length].expand(batch, -1, -1).to(cond.tokens.dtype))

    def _micro(self, cond: Cond) -> Tensor:
        """Embedding [B, D] of the picture's original height, width and aspect."""
        if cond.size is None or cond.aspect is None:
            raise GessoError(
                "This pixart has micro-conditions: give the condition `size` and `aspect`."
            )
        size = self.csize_embedder(cond.size.flatten()).view(len(cond.size), -1)  # [B, 2D/3]
        return torch.cat([size, self.ar_embedder(cond.aspect.flatten())], dim=1)


def build(options: Config) -> PixArt:
    """The network for validated options, freshly initialised."""
    return PixArt(options)
