"""ViT-VQGAN: a transformer encoder and decoder around a codebook of small normalised codes.

Yu et al. 2022, https://arxiv.org/abs/2110.04627, section 3. Every patch of the picture becomes one
code. Parameter names are those of the public re-implementation, thuanz123/enhancing-transformers.

Dims: B pictures, H x W pixels, p patch size, h = H/p, w = W/p, N = h w, D width, C code width,
K codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.draws import Draws
from gesso.encoders._weights import fingerprint, load_weights
from gesso.encoders.image import check_sides
from gesso.nn.attention import attend
from gesso.nn.codebook import Codebook, Quantised
from gesso.nn.likelihood import logit_laplace_mean
from gesso.nn.position import sincos_2d
from gesso.types import GessoError

if TYPE_CHECKING:
    from gesso.draws import Draws


class Config(config.Config):
    """A small model by default; `SIZES` has the published ones.

    Attributes:
        patch_size: p, pixels per code along each side.
        image_size: of training pictures, which sets the scale of positions.
        depth, hidden_size, num_heads, mlp_size: of the encoder's transformer.
        decoder_depth, decoder_hidden_size, ...: of the decoder's; default: as the encoder's.
        head_dim: width of an attention head.
        codes: K.
        code_dim: C.
        l2_norm: compare codes on the unit sphere.
        logit_laplace: the decoder gives mean and scale of a logit-Laplace distribution.
        weights: a safetensors file or checkpoint folder; None for random weights that are trained.
    """

    patch_size: int = Field(default=8, ge=1)
    image_size: int = Field(default=64, ge=1)
    depth: int = Field(default=3, ge=1)
    hidden_size: int = Field(default=128, ge=4, multiple_of=4)
    num_heads: int = Field(default=2, ge=1)
    mlp_size: int = Field(default=512, ge=1)
    decoder_depth: int | None = None
    decoder_hidden_size: int | None = None
    decoder_num_heads: int | None = None
    decoder_mlp_size: int | None = None
    head_dim: int = Field(default=64, ge=1)
    codes: int = Field(default=512, ge=2)
    code_dim: int = Field(default=8, ge=1)
    l2_norm: bool = True
    logit_laplace: bool = True
    weights: str | None = None


def _size(depth: int, width: int, heads: int, mlp: int, **options: Any) -> Config:
    return Config(
        image_size=256,
        codes=8192,
        code_dim=32,
        depth=depth,
        hidden_size=width,
        num_heads=heads,
        mlp_size=mlp,
        **options,
    )


_LARGE = {
    "decoder_depth": 32,
    "decoder_hidden_size": 1280,
    "decoder_num_heads": 16,
    "decoder_mlp_size": 5120,
}

SIZES: dict[str, Config] = {
    "demo": Config(),
    "small": _size(8, 512, 8, 2048),
    "base": _size(12, 768, 12, 3072),
    "small-large": _size(8, 512, 8, 2048, **_LARGE),
}
"""Table 1 of the paper; "small-large" has a small encoder and a large decoder."""


class Attention(nn.Module):
    """Multi-head self-attention without biases in its projections to heads."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        qkv = self.to_qkv(x).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, heads, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 of [B, heads, N, d]
        return self.to_out(attend(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers around a tanh: the re-implementation has one in every block."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """x + fn(norm(x))."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class Transformer(nn.Module):
    """Blocks of attention and feed-forward."""

    def __init__(self, depth: int, dim: int, num_heads: int, head_dim: int, mlp_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                PreNorm(dim, Attention(dim, num_heads, head_dim)),
                PreNorm(dim, FeedForward(dim, mlp_size)),
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pictures to features of their patches."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, p = config.hidden_size, config.patch_size
        self.base_size = config.image_size // p
        self.to_patch_embedding = nn.Sequential(nn.Conv2d(3, dim, p, stride=p))
        self.transformer = Transformer(
            config.depth, dim, config.num_heads, config.head_dim, config.mlp_size
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, h, w, D]."""
        x = self.to_patch_embedding(pictures)  # [B, D, h, w]
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # [B, N, D]
        x = x + sincos_2d(*grid, x.shape[2], self.base_size, device=x.device)  # float32
        return self.norm(self.transformer(x)).unflatten(1, grid)


class Decoder(nn.Module):
    """Features of patches to pictures, or to the parameters of their distribution."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.decoder_hidden_size or config.hidden_size
        p, channels = config.patch_size, 6 if config.logit_laplace else 3
        self.base_size = config.image_size // p
        self.transformer = Transformer(
            config.decoder_depth or config.depth,
            dim,
            config.decoder_num_heads or config.num_heads,
            config.head_dim,
            config.decoder_mlp_size or config.mlp_size,
        )
        self.norm = nn.LayerNorm(dim)
        self.to_pixel = nn.ModuleDict({"conv_out": nn.ConvTranspose2d(dim, channels, p, stride=p)})

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, D] -> [B, 3 or 6, H, W]."""
        grid = x.shape[1:3]
        x = x.flatten(1, 2)  # [B, N, D]
        x = x + sincos_2d(*grid, x.shape[2], self.base_size, device=x.device)  # float32
        x = self.norm(self.transformer(x)).transpose(1, 2).unflatten(2, grid)  # [B, D, h, w]
        return self.to_pixel["conv_out"](x)


class ViTVQGAN(nn.Module):
    """The autoencoder; the contracts are `ImageEncoder` and `Tokenizer` of `encoders.image`.

    Raw latents are the encoder's vectors before quantisation, normalised latents the codes' own.
    """

    def __init__(self, options: Config) -> None:
        super().__init__()
        if options.image_size % options.patch_size:
            raise GessoError(
                f"vit_vqgan: image_size {options.image_size} is no multiple of patch_size"
                f" {options.patch_size}: change one of them."
            )
        self.config = options
        self.factor = options.patch_size
        self.channels = self.raw_channels = options.code_dim
        self.vocabulary, self.logit_laplace = options.codes, options.logit_laplace
        self.encoder, self.decoder = Encoder(options), Decoder(options)
        self.pre_quant = nn.Linear(options.hidden_size, options.code_dim)
        width = options.decoder_hidden_size or options.hidden_size
        self.post_quant = nn.Linear(options.code_dim, width)
        self.quantizer = Codebook(options.codes, options.code_dim, options.l2_norm)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to vectors [B, C, h, w] before quantisation.

        Raises:
            GessoError: H or W is no multiple of the patch size.
        """
        check_sides(pixels, self.factor)
        z = self.pre_quant(self.encoder((pixels + 1) / 2))  # [B, h, w, C]
        return z.permute(0, 3, 1, 2).float()

    def quantise(self, raw: Tensor) -> Quantised:
        """Vectors [B, C, h, w] to latents [B, C, h, w], codes [B, N] and the loss."""
        found: Quantised = self.quantizer(raw.permute(0, 2, 3, 1))
        return Quantised(found.value.permute(0, 3, 1, 2), found.codes.flatten(1), found.loss)

    def sample(self, raw: Tensor, generator: Draws | None = None) -> Tensor:
        """The nearest entries [B, C, h, w]; nothing is drawn."""
        return self.quantise(raw).value

    def codes(self, raw: Tensor) -> Tensor:
        """Vectors [B, C, h, w] to codes [B, N], row by row."""
        return self.quantizer.nearest(raw.permute(0, 2, 3, 1)).flatten(1)

    def from_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes [B, N] of a grid (h, w) to latents [B, C, h, w]."""
        return self.quantizer.look_up(codes.unflatten(1, grid)).permute(0, 3, 1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pictures [B, 3, H, W], about [-1, 1], not clamped."""
        return self.picture(self.distribution(latents))

    def distribution(self, latents: Tensor) -> Tensor:
        """What the decoder says of latents [B, C, h, w].

        Returns:
            [B, 6, H, W], location and log scale of each value's logit, with `logit_laplace`; else
            [B, 3, H, W], pictures in [0, 1].
        """
        return self.decoder(self.post_quant(latents.permute(0, 2, 3, 1)))

    def picture(self, out: Tensor) -> Tensor:
        """The picture [B, 3, H, W] in [-1, 1] that a `distribution` stands for."""
        return logit_laplace_mean(out) if self.logit_laplace else 2 * out - 1

    def fingerprint(self) -> str:
        """16 hex digits over the options that shape the model and its weights."""
        shape = self.config.model_dump(exclude={"weights"})
        return fingerprint(f"vit_vqgan {shape}", self.state_dict())


def build(options: Config) -> ViTVQGAN:
    """Build the autoencoder: frozen if weights are named, trainable if not.

    Raises:
        GessoError: the weight file is missing, broken or of another shape.
    """
    model = ViTVQGAN(options)
    if options.weights is not None:
        load_weights(model, Path(options.weights), "a ViT-VQGAN of this shape")
    return model
