"""What a file that is no PixArt is, told by the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable

# The first row whose parts all occur in some tensor's name, each in any.
SIGNS: list[tuple[str, tuple[str, ...]]] = [
    ("a LoRA or another adapter", ("lora_A.",)),
    ("a LoRA or another adapter", ("lora_down.",)),
    ("a LoRA or another adapter", ("hada_w1_a",)),
    ("a LoRA or another adapter", ("lokr_w1",)),
    ("a PixArt ControlNet", ("controlnet.", "copied_block.")),
    ("Flux", ("double_blocks.", "single_blocks.", "img_attn")),
    ("Flux", ("single_transformer_blocks.", "transformer_blocks.", "context_embedder.")),
    ("Stable Diffusion 3", ("joint_blocks.", "context_block.")),
    ("Stable Diffusion 3", ("attn.add_k_proj", "context_embedder.", "time_text_embed.")),
    ("Stable Diffusion XL", ("input_blocks.", "label_emb.")),
    ("Stable Diffusion XL", ("conditioner.embedders.",)),
    ("Stable Diffusion XL", ("down_blocks.", "add_embedding.linear_1.")),
    ("Stable Diffusion 1 or 2", ("input_blocks.", "output_blocks.")),
    ("Stable Diffusion 1 or 2", ("down_blocks.", "time_embedding.linear_1.", "mid_block.")),
    ("LTX-Video", ("adaln_single.", "patchify_proj.")),
    ("SANA", ("conv_inverted.", "caption_projection.")),
    ("Hunyuan-DiT", ("style_embedder.", "pooler.positional_embedding")),
    ("a class-conditional DiT", ("adaLN_modulation.", "y_embedder.embedding_table")),
    ("an autoencoder (give it as --vae)", ("decoder.conv_in.", "encoder.conv_in.")),
    ("a T5 text encoder (give it as --text-encoder)", ("encoder.block.0.layer.0.SelfAttention",)),
    ("a CLIP text encoder", ("text_model.encoder.layers.",)),
]


def name_family(keys: Iterable[str]) -> str | None:
    """What these names of tensors belong to, as a phrase; None if unknown."""
    keys = list(keys)
    for name, parts in SIGNS:
        if all(any(part in key for key in keys) for part in parts):
            return name
    return None
