"""The job behind `gesso encode --prompts`: a file of prompts to a prompt pack."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from gesso.device import pick_device
from gesso.encoders.pack import Origin, Pack
from gesso.loading import find_source
from gesso.model import Model
from gesso.types import GessoError


def encode_prompts(
    file: Path,
    out: Path | None = None,
    *,
    model: str | None = None,
    negative: str | None = None,
    device: Any = None,
    batch_size: int = 16,
    **published: Any,
) -> dict[str, Any]:
    """Encode prompts with a model's text encoder, which is all of the model that is loaded.

    Args:
        file: text, a prompt a line; empty lines do not count.
        out: the pack; default: beside `file`, with the suffix `.safetensors`.
        model: as in `gesso.loading.load`.
        negative: a negative prompt that the pack shall hold, too; the empty one always is in it.
        device: default: CUDA where there is one, else the CPU.
        batch_size: prompts at a time.
        published: variant, text_encoder and clean of published weights, as in `load`.

    Returns:
        pack (the file's name), prompts (their number), bytes.

    Raises:
        GessoError: no such file, no prompt in it, or a model without a text encoder.
    """
    target = out or file.with_suffix(".safetensors")
    if target.is_dir() or target.resolve() == file.resolve():
        raise GessoError(f"The pack cannot be {target}, which is there: give another file name.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise GessoError(f"There is no file {file}: write prompts into it, one a line.") from None
    except (OSError, UnicodeDecodeError) as e:
        raise GessoError(f"{file} cannot be read as text: {e}.") from None
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise GessoError(f"{file} holds no prompt: write one a line.")
    loaded = find_source(model, **published).load({"text_encoder"})
    if loaded.text_encoder is None:
        raise GessoError(f"{model} has no text encoder: give a text-to-image model.")
    loaded.to(pick_device(device))
    guides = [g for g in dict.fromkeys(["", negative or ""]) if g not in prompts]
    pack = make_pack(loaded, [*prompts, *guides], guides, batch_size)
    pack.source = str(file)
    pack.save(target)
    return {"pack": str(target), "prompts": len(prompts), "bytes": target.stat().st_size}


@torch.inference_mode()
def make_pack(model: Model, prompts: list[str], guides: list[str], batch_size: int = 16) -> Pack:
    """Encode prompts into a pack.

    Args:
        model: its text encoder is used.
        prompts: all that the pack shall hold.
        guides: those of them that are for guidance only.
        batch_size: prompts at a time.
    """
    encoder, described = model.text_encoder, model.description
    for prompt in prompts:
        lost = encoder.dropped(prompt)
        if lost:
            warnings.warn(
                f"The prompt {prompt[:40]!r} ... is longer than {encoder.max_tokens} tokens; "
                f"{len(lost.split())} words were dropped.",
                stacklevel=2,
            )
    rows, pooled = [], []
    for i in range(0, len(prompts), batch_size):
        cond = encoder(encoder.prepare(prompts[i : i + batch_size]).to(model.device))
        if cond.pooled is not None:
            pooled.append(cond.pooled.float().cpu())
        rows += [
            tokens[mask].float().cpu() for tokens, mask in zip(cond.tokens, cond.mask, strict=True)
        ]
    origin = Origin(
        text_encoder=described.text_encoder,
        fingerprint=encoder.fingerprint(),
        trained_in=described.fingerprint if encoder.trainable else None,
        max_tokens=encoder.max_tokens,
        prompts=prompts,
        guides=guides,
    )
    return Pack(origin, rows, torch.cat(pooled) if pooled else None)
