"""Tiny Stable Diffusion 3 pipelines with random weights, saved by diffusers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "red", "blue", "circle", "square", "left", "of", "two", "stars", "cactus", "hat"]
TEXT_DIM = 24  # of T5; CLIP's two widths are 8 and 12


def _tokenizer(ends: bool, length: int) -> Any:
    """Of a few words; as CLIP's it begins texts, too."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "<s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>" if ends else "<s> $A </s>", special_tokens=[("</s>", 1), ("<s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>" if ends else "</s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )


def _clip(width: int, pooled: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=32,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=pooled,
        max_position_embeddings=77,
        bos_token_id=3,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config)


def pipeline(folder: Path, *, t5: bool = True, seed: int = 0, **changes: Any) -> Any:
    """Save a pipeline into a folder and return it.

    Args:
        t5: with the third text encoder.
        changes: of the transformer.
    """
    import diffusers
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    sizes = {"d_model": TEXT_DIM, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    third = T5EncoderModel(T5Config(vocab_size=32, **sizes)) if t5 else None
    options = {
        "sample_size": 8,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_DIM,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 10,
        "in_channels": 4,
        "out_channels": 4,
        "pos_embed_max_size": 12,
    }
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    parts = {
        "text_encoder": _clip(8, 6),
        "text_encoder_2": _clip(12, 4),
        "text_encoder_3": third,
        "vae": vae,
        "transformer": diffusers.SD3Transformer2DModel(**options | changes),
    }
    for name, part in parts.items():
        for p in () if part is None or name == "vae" else part.parameters():
            p.data.normal_(std=0.15 if name == "transformer" else 0.4)
    pipe = diffusers.StableDiffusion3Pipeline(
        tokenizer=_tokenizer(False, 77),
        tokenizer_2=_tokenizer(False, 77),
        tokenizer_3=_tokenizer(True, 512) if t5 else None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **{name: None if part is None else part.eval() for name, part in parts.items()},
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe
