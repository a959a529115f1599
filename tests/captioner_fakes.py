"""Tiny captioners with random weights, saved as folders that transformers loads."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ["a", "red", "circle", "square", "blue", "star", "above", "picture", "describe", "of"]
LLAVA_TEMPLATE = (
    "{% for m in messages %}user {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant{% endif %}"
)


def tokenizer(special: tuple[str, ...] = (), known: list[str] = WORDS):
    """Words split at blanks; anything not known is <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", *known]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    outer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    outer.add_special_tokens({"additional_special_tokens": list(special)})
    return outer


def save_llava(folder: Path, chat: bool = True, seed: int = 0, known: list[str] = WORDS) -> Path:
    """A LLaVA of a few thousand weights, with or without a chat template."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = tokenizer(("<image>",), known)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                **sizes, num_attention_heads=2, image_size=32, patch_size=16, projection_dim=16
            ),
            text_config=LlamaConfig(
                **sizes,
                num_attention_heads=2,
                num_key_value_heads=2,
                vocab_size=len(words),
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            ),
            image_token_index=words.convert_tokens_to_ids("<image>"),
        )
    )
    _stretch(model)
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=words,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE if chat else None,
    ).save_pretrained(folder)
    return folder


def save_blip(folder: Path, seed: int = 0) -> Path:
    """A BLIP captioner of a few thousand weights."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipProcessor,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(seed)
    text = {
        **sizes,
        "num_attention_heads": 2,
        "vocab_size": len(words),
        "encoder_hidden_size": 16,
        "bos_token_id": 2,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {**sizes, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    _stretch(model)
    model.save_pretrained(folder)
    BlipProcessor(
        BlipImageProcessorPil(size={"height": 32, "width": 32}),
        BertTokenizerFast(str(folder / "vocab.txt")),
    ).save_pretrained(folder)
    return folder


def save_blip2(folder: Path, seed: int = 0, known: list[str] = WORDS) -> Path:
    """A BLIP-2 with an OPT of a few thousand weights."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = tokenizer(("<image>",), known)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
    qformer = {**sizes, "intermediate_size": 32, "encoder_hidden_size": 16}
    text = {
        **sizes,
        "model_type": "opt",
        "ffn_dim": 32,
        "vocab_size": len(words),
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=vision,
            qformer_config={**qformer, "vocab_size": len(words)},
            text_config=text,
            num_query_tokens=4,
            image_token_index=words.convert_tokens_to_ids("<image>"),
        )
    )
    _stretch(model)
    model.save_pretrained(folder)
    Blip2Processor(
        BlipImageProcessorPil(size={"height": 32, "width": 32}), words, num_query_tokens=4
    ).save_pretrained(folder)
    return folder


def save_florence(folder: Path, seed: int = 0) -> Path:
    """A Florence-2 of a few thousand weights."""
    from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = tokenizer(("<image>",))
    words.image_token = words.init_kwargs["image_token"] = "<image>"
    words.image_token_id = words.convert_tokens_to_ids("<image>")
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    text = {
        **heads,
        "model_type": "bart",
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "vocab_size": len(words),
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": 2,
    }
    vision = {
        "depths": [1] * 4,
        "embed_dim": [8, 16, 16, 16],
        "num_heads": [1, 2, 2, 2],
        "num_groups": [1, 2, 2, 2],
        "window_size": 4,
        "projection_dim": 16,
    }
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(
        Florence2Config(text_config=text, vision_config=vision, image_token_id=words.image_token_id)
    )
    _stretch(model)
    model.save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    pictures.image_seq_length = 5
    Florence2Processor(image_processor=pictures, tokenizer=words).save_pretrained(folder)
    return folder


def _stretch(model: torch.nn.Module) -> None:
    """Away from the initialisation, so that pictures matter."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)
