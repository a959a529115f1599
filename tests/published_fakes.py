"""Tiny PixArt pipelines with random weights, saved by diffusers itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "red", "blue", "circle", "square", "left", "of", "two", "stars", "cactus", "hat"]


def tokenizer(shared: Path | None = None) -> Any:
    """T5's own tokenizer from the real data, or one of a few words that ends texts as T5 does."""
    from transformers import PreTrainedTokenizerFast, T5Tokenizer

    if shared is not None:
        return T5Tokenizer.from_pretrained(
            shared / "weights" / "tokenizers" / "text_encoders" / "t5_tokenizer"
        )
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def transformer(**changes: Any) -> Any:
    """diffusers' class with every parameter random, so that no branch is silent."""
    from diffusers import PixArtTransformer2DModel

    options = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "cross_attention_dim": 24,
        "caption_channels": 16,
        "sample_size": 8,
        "use_additional_conditions": False,
    }
    model = PixArtTransformer2DModel(**options | changes).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.15)
    return model


def pipeline(
    folder: Path, family: str = "alpha", seed: int = 0, shared: Path | None = None, **changes: Any
) -> Any:
    """Save a pipeline into a folder and return it.

    Args:
        family: "alpha" or "sigma".
        shared: the real data, for T5's own tokenizer.
        changes: of the transformer.
    """
    import diffusers
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    words = tokenizer(shared)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    text = T5EncoderModel(T5Config(vocab_size=max(len(words), 32), **sizes)).eval()
    with torch.no_grad():
        for p in text.parameters():
            p.normal_(std=0.4)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=0.18215 if family == "alpha" else 0.13025,
    ).eval()
    kind = {"alpha": diffusers.PixArtAlphaPipeline, "sigma": diffusers.PixArtSigmaPipeline}[family]
    pipe = kind(
        tokenizer=words,
        text_encoder=text,
        vae=vae,
        transformer=transformer(**changes),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02),
    )
    pipe.set_progress_bar_config(disable=True)
    if folder.exists():
        shutil.rmtree(folder)
    pipe.save_pretrained(folder)
    return pipe
