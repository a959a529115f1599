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


def tokenizer(special: tuple[str, ...] = ()):
    """Words split at blanks; anything unknown is <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", *WORDS]
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


def save_llava(folder: Path, chat: bool = True, seed: int = 0) -> Path:
    """A LLaVA of a few thousand weights, with or without a chat template."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = tokenizer(("<image>",))
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
    with torch.no_grad():  # away from the initialisation, so that pictures matter
        for p in model.parameters():
            p.mul_(8)
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
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)
    model.save_pretrained(folder)
    BlipProcessor(
        BlipImageProcessorPil(size={"height": 32, "width": 32}),
        BertTokenizerFast(str(folder / "vocab.txt")),
    ).save_pretrained(folder)
    return folder
