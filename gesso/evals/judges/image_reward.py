"""ImageReward (Xu et al., arXiv 2304.05977): how well people would like a picture for its prompt.

BLIP with ViT-L/16 reads the prompt while it looks at the picture; five linear layers turn the first
token into a reward, which is brought to mean 0 and deviation 1 of the authors' data (their code,
github.com/THUDM/ImageReward). The weights are the authors' ImageReward.pt, whose names are
translated to transformers' BLIP here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gesso.device import pick_device
from gesso.encoders._weights import loading, locate, without_bars
from gesso.evals.fingerprint import file_digest, fingerprint, source_digest, versions
from gesso.evals.networks import (
    DTYPES,
    NetworkConfig,
    clip_pixels,
    in_batches,
    linear_head,
    quiet,
    read_tensors,
)
from gesso.evals.types import Image, Judge
from gesso.types import GessoError

ABILITIES = ("score",)
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
MOST_TOKENS = 35
HEAD = 64  # width of an attention head, in both networks
WANTED = "ImageReward.pt of huggingface.co/THUDM/ImageReward"

VISION = (  # released name -> transformers'
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm", r"encoder.layers.\1.layer_norm"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.\1."),
)


class Config(NetworkConfig):
    """Options of the judge `image-reward`; `path` is the weights' file."""

    tokenizer: str = "google-bert/bert-base-uncased"  # hub id, or folder with its vocabulary


class ImageReward(Judge):
    """See the module."""

    def __init__(self, options: Config, device: str | None) -> None:
        from transformers import AutoTokenizer

        self.device = pick_device(device)
        if options.dtype not in DTYPES:
            raise GessoError(f"dtype={options.dtype!r} is none of {', '.join(DTYPES)}.")
        file = Path(options.path)
        tensors = read_tensors(file, "ImageReward", WANTED)
        try:
            networks = translated(tensors)
        except (KeyError, RuntimeError, ValueError) as e:
            raise GessoError(
                f"{str(file)!r} is no ImageReward ({(str(e).splitlines() or [''])[0]}): give "
                f"{WANTED}."
            ) from None
        self.vision, self.text, self.head = (
            n.to(self.device, DTYPES[options.dtype]).requires_grad_(False).eval() for n in networks
        )
        self.head.float()  # as in the authors' code
        with loading("judge image-reward", options.tokenizer), quiet(), without_bars():
            self.tokenizer = AutoTokenizer.from_pretrained(
                locate(options.tokenizer), trust_remote_code=False
            )
        words = self.text.config.vocab_size
        if self.tokenizer.vocab_size > words:
            raise GessoError(
                f"The tokenizer {options.tokenizer!r} has {self.tokenizer.vocab_size} words and "
                f"ImageReward's network {words}: give that of bert-base-uncased."
            )
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self.name = f"image-reward:{file.stem}"
        self.versions = versions("torch", "transformers")
        self.fingerprint = fingerprint(
            file_digest(file),
            options.dtype,
            fingerprint(sorted(self.tokenizer.get_vocab().items())),
            source_digest(__name__, "gesso.evals.networks"),
        )

    @torch.no_grad()
    def score(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Rewards, mostly in [-2.3, 2.3]; a prompt's tokens beyond 35 are not read."""
        side = self.vision.config.image_size

        def run(some: list[int]) -> list[float]:
            pixels = torch.stack([clip_pixels(images[i], side) for i in some])  # [B, 3, H, W]
            words = self.tokenizer(
                [texts[i] for i in some],
                padding="max_length",
                truncation=True,
                max_length=MOST_TOKENS,
                return_tensors="pt",
            ).to(self.device)
            seen = self.vision(
                pixel_values=pixels.to(self.device, self.vision.dtype)
            ).last_hidden_state  # [B, P, D]
            read = self.text(
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:2], device=self.device),
            ).last_hidden_state  # [B, 35, E]
            reward = self.head(read[:, 0].float())[:, 0]
            return ((reward - MEAN) / DEVIATION).tolist()

        return in_batches(run, [0] * len(images), self.batch_size)


def translated(tensors: dict[str, Tensor]) -> tuple[Any, Any, Any]:
    """The released tensors in transformers' vision and text towers, and the head.

    All sizes are read off the tensors. BLIP's two projections for contrastive learning, which the
    reward does not use, are left.

    Raises:
        KeyError, RuntimeError, ValueError: other tensors than those.
    """
    from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    towers: dict[str, dict[str, Tensor]] = {"visual_encoder": {}, "text_encoder": {}}
    for name, value in tensors.items():
        tower, _, rest = name.removeprefix("blip.").partition(".")
        if tower in towers:
            towers[tower][rest] = value
    vision, text = towers["visual_encoder"], towers["text_encoder"]
    text.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: no weight
    width, _, patch, _ = vision["patch_embed.proj.weight"].shape
    patches = vision["pos_embed"].shape[1] - 1
    words, text_width = text["embeddings.word_embeddings.weight"].shape
    look = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=len(vision["blocks.0.mlp.fc1.weight"]),
            num_hidden_layers=_depth(vision),
            num_attention_heads=max(1, width // HEAD),
            image_size=patch * round(patches**0.5),
            patch_size=patch,
            layer_norm_eps=1e-6,  # of the released network; transformers' default is 1e-5
            hidden_act="gelu",
        )
    )
    read = BlipTextModel(
        BlipTextConfig(
            vocab_size=words,
            hidden_size=text_width,
            encoder_hidden_size=width,
            intermediate_size=len(text["encoder.layer.0.intermediate.dense.weight"]),
            num_hidden_layers=_depth(text),
            num_attention_heads=max(1, text_width // HEAD),
            max_position_embeddings=len(text["embeddings.position_embeddings.weight"]),
            layer_norm_eps=1e-12,
            hidden_act="gelu",
            pad_token_id=0,
            bos_token_id=None,
            sep_token_id=None,
            eos_token_id=None,
        ),
        add_pooling_layer=False,
    )
    look.load_state_dict({_renamed(name): value for name, value in vision.items()})
    read.load_state_dict(text)
    return look, read, linear_head(tensors, "mlp.layers.")


def _renamed(name: str) -> str:
    for pattern, new in VISION:
        if re.search(pattern, name):
            return re.sub(pattern, new, name)
    return name


def _depth(tensors: dict[str, Tensor]) -> int:
    return 1 + max(
        int(found[1])
        for name in tensors
        if (found := re.match(r"(?:blocks|encoder\.layer)\.(\d+)\.", name))
    )


def build(options: Config, device: str | None) -> ImageReward:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return ImageReward(options, device)
