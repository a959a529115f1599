"""Finding, loading and sampling from an image-text-to-text model of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from gesso.config import Config
from gesso.device import pick_device
from gesso.encoders._weights import check_complete, loading, locate_model, without_bars
from gesso.types import GessoError


class Settings(Config):
    """Which captioner, and how it writes.

    Attributes:
        model: folder, `package:NAME` or hub id.
        temperature: of sampling; 0 takes the likeliest token. PixArt-alpha's captions: 0.2.
        max_new_tokens: longest caption, in the model's tokens.
        dtype: of the weights; None: bfloat16 on CUDA, else float32.
        device: "cpu", "cuda:1"; None: CUDA where there is one.
    """

    model: str
    temperature: float = Field(default=0.2, ge=0)
    max_new_tokens: int = Field(default=256, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = None


def model_type(model: str) -> str:
    """The `model_type` of a model's config.json.

    Raises:
        GessoError: no such model, or one that is not image-text-to-text.
    """
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as MAPPING
    from transformers import AutoConfig

    folder = locate_model("captioner", model)
    with loading("captioner", model):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MAPPING:
        raise GessoError(
            f"The model {model!r} is a {config.model_type or 'model without a type'}, which does "
            "not turn pictures and text into text: give a LLaVA, Qwen-VL, BLIP or Florence kind."
        )
    return config.model_type


def load(settings: Settings) -> tuple[Any, Any]:
    """(model, processor), on the device and ready to generate.

    Raises:
        GessoError: files are missing or broken, or no such device.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = pick_device(settings.device)
    dtype = settings.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    folder = locate_model("captioner", settings.model)
    cls: Any = AutoModelForImageTextToText  # its stubs know one return value
    with loading("captioner", settings.model), without_bars():
        model, info = cls.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            weights_only=True,  # of pickled weights, tensors are read and nothing is run
            trust_remote_code=False,  # nor is code that a folder brings along
            output_loading_info=True,
        )
        check_complete(info["missing_keys"])
    with loading("processor of the captioner", settings.model):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        tokenizer = processor.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"  # a decoder goes on where the row ends
    return model.to(device).eval(), processor


@contextmanager
def generation(settings: Settings, seed: int) -> Iterator[dict[str, Any]]:
    """Arguments of `generate`, while torch's own random state is the seed's and then put back."""
    arguments: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "do_sample": False}
    if settings.temperature > 0:
        arguments |= {"do_sample": True, "temperature": settings.temperature}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        yield arguments


def generate(model: Any, processor: Any, inputs: Any, arguments: dict[str, Any]) -> list[str]:
    """The texts that a model adds to its inputs, without the prompt and special tokens."""
    inputs = inputs.to(model.device)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    rows: Tensor = model.generate(**inputs, **arguments)  # [B, L] or [B, prompt + L]
    prompt = inputs.get("input_ids")
    if prompt is not None and rows.shape[1] >= prompt.shape[1]:
        n = prompt.shape[1]
        if torch.equal(rows[:, :n], prompt.to(rows.device)):  # decoders repeat what they were given
            rows = rows[:, n:]
    return processor.batch_decode(rows, skip_special_tokens=True)


def pictures(images: list[Any]) -> list[Image.Image]:
    """[H, W, 3] uint8 arrays as PIL images, which every processor takes."""
    return [Image.fromarray(image) for image in images]
