"""A small transformer over words, trained together with the backbone: for closed worlds.

The vocabulary is a list of words in the options, so a model folder is complete without tokenizer
files. Text is lower-cased and split into words and punctuation marks.

Dims: B prompts, L tokens, D width.
"""

from __future__ import annotations

import hashlib
import re

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.nn.attention import SelfAttention, mask_bias
from gesso.nn.mlp import Mlp
from gesso.types import Cond, GessoError

SPECIAL = ("<pad>", "<eos>", "<unk>")
PAD, EOS, UNKNOWN = range(3)
PIECE = re.compile(r"\w+|[^\w\s]")


class Config(config.Config):
    """Options of the learned text encoder.

    Attributes:
        words: the vocabulary; `gesso train` fills it from the source where the recipe leaves it
            out. Other words become <unk>.
        width: D.
        depth: transformer blocks; 0 gives words without context.
        heads: attention heads.
        max_tokens: the longest prompt in words and punctuation marks, plus one for <eos>.
    """

    words: list[str] = Field(default_factory=list)
    width: int = Field(default=256, ge=1)
    depth: int = Field(default=2, ge=0)
    heads: int = Field(default=4, ge=1)
    max_tokens: int = Field(default=32, ge=2)


class Block(nn.Module):
    """Pre-norm transformer block: [B, L, D] -> [B, L, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))


class LearnedTextEncoder(nn.Module):
    """Words -> features; the contract is `gesso.encoders.text.TextEncoder`.

    Raises:
        GessoError: no words, or a width that the heads do not divide.
    """

    trainable = True

    def __init__(self, options: Config) -> None:
        super().__init__()
        if not options.words:
            raise GessoError(
                "The learned text encoder has no words: set text_encoder.words, or train it with "
                "`gesso train`, which reads them from the source."
            )
        if options.width % options.heads:
            raise GessoError(
                f"The text encoder's width {options.width} is no multiple of its "
                f"{options.heads} heads: change one of them."
            )
        self.config = options
        self.max_tokens = options.max_tokens
        self.dim = self.pooled_dim = options.width
        vocabulary = dict.fromkeys([*SPECIAL, *(w.lower() for w in options.words)])
        self._ids = {word: number for number, word in enumerate(vocabulary)}
        self.embed = nn.Embedding(len(self._ids), options.width)
        self.position = nn.Parameter(torch.empty(options.max_tokens, options.width))
        for table in (self.embed.weight, self.position):
            nn.init.normal_(table, std=options.width**-0.5)
        self.blocks = nn.ModuleList(
            Block(options.width, options.heads) for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(options.width)

    def prepare(self, prompts: list[str]) -> Cond:
        """Prompts to `ids` [B, L] and `mask` [B, L]; "" is <eos> alone."""
        rows = [
            [self._ids.get(p, UNKNOWN) for p in split_words(prompt)[: self.max_tokens - 1]] + [EOS]
            for prompt in prompts
        ]
        length = max((len(row) for row in rows), default=0)
        ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows], dtype=torch.int64)
        return Cond(ids=ids, mask=ids != PAD)

    def forward(self, cond: Cond) -> Cond:
        """Fill in `tokens` [B, L, D] and `pooled` [B, D], the mean of the real ones.

        Padding is neither attended to nor moves any real token.
        """
        if cond.tokens is not None or cond.ids is None or cond.mask is None:
            return cond
        x = self.embed(cond.ids) + self.position[: cond.ids.shape[1]]  # [B, L, D]
        bias = mask_bias(cond.mask, x.dtype)  # [B, 1, 1, L]
        for block in self.blocks:
            x = block(x, bias)
        x = self.norm(x)
        real = cond.mask[..., None].to(x.dtype)  # [B, L, 1]
        return cond.replace(tokens=x, pooled=(x * real).sum(1) / real.sum(1))

    def dropped(self, prompt: str) -> str:
        """The words after the last one that fits."""
        return " ".join(split_words(prompt)[self.max_tokens - 1 :])

    def fingerprint(self) -> str:
        """16 hex digits over the vocabulary and length: what `prepare` depends on.

        Not over the weights: a cache of ids stays valid while they are trained.
        """
        text = "\n".join(["learned", str(self.max_tokens), *self._ids])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_words(text: str) -> list[str]:
    """Words and punctuation marks in lower case."""
    return PIECE.findall(text.lower())


def build(options: Config) -> LearnedTextEncoder:
    """Build the encoder with random weights.

    Raises:
        GessoError: no words, or a width that the heads do not divide.
    """
    return LearnedTextEncoder(options)
