"""The job behind `gesso quantize`: what smaller weights cost, in layers and in pictures."""

from __future__ import annotations

import copy
import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from gesso.loading import load
from gesso.nn.quantize import Kind, block_linears, quantize_layer, stored_bytes
from gesso.pipeline import Pipeline
from gesso.progress import steps_bar


def measure_quantization(
    kind: Kind,
    prompt: str,
    *,
    model: str | None = None,
    n: int = 4,
    seed: int = 0,
    steps: int | None = None,
    size: tuple[int | None, int | None] = (None, None),
    device: Any = None,
    quiet: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Paint a prompt in float32, then with quantised weights from the same noise, and compare.

    Args:
        kind: "int8" or "bfloat16", see `gesso.nn.quantize`.
        prompt: what to paint.
        model, device, options: as in `gesso.loading.load`.
        n: pictures, seeds from `seed` on.
        steps: sampling steps; default: the model's.
        size: (height, width) in pixels; None: the model's.
        quiet: no progress bar.

    Returns:
        model, kind, pictures, psnr (mean over the pictures, in dB; None if they are equal),
        psnr_worst, layers: {name: relative error of its output}, error_mean, error_worst,
        kinds: {name with * for the block: (mean, worst)}, and bytes_before, bytes_after of
        denoiser and text encoder.
    """
    pipe = load(model, dtype=torch.float32, device=device, low_memory=False, **options)
    networks = pipe.model.quantizable(kind)
    before = {name: stored_bytes(network) for name, network in networks.items()}
    call: dict[str, Any] = {
        "num_images_per_prompt": n,
        "seed": seed,
        "num_inference_steps": steps,
        "height": size[0],
        "width": size[1],
        "output_type": "pt",
    }
    with steps_bar("in float32", quiet) as show:
        errors, exact = _errors(pipe, networks, kind, prompt, call | {"callback": show})
    pipe.quantize(kind)
    with steps_bar(f"in {kind}", quiet) as show:
        rough = pipe(prompt, **call, callback=show).images
    psnr = [_psnr(a, b) for a, b in zip(exact, rough, strict=True)]
    finite = [p for p in psnr if math.isfinite(p)]
    after = {name: stored_bytes(network) for name, network in networks.items()}
    return {
        "model": pipe.source,
        "kind": kind,
        "pictures": n,
        "psnr": round(sum(finite) / len(finite), 2) if finite else None,
        "psnr_worst": round(min(finite), 2) if finite else None,
        "error_mean": sum(errors.values()) / len(errors),
        "error_worst": max(errors.values()),
        "layers": errors,
        "kinds": _by_kind(errors),
        "bytes_before": before,
        "bytes_after": after,
    }


def _errors(
    pipe: Pipeline, networks: dict[str, nn.Module], kind: Kind, prompt: str, call: dict[str, Any]
) -> tuple[dict[str, float], Tensor]:
    """Paint in float32; beside every layer a quantised copy answers to the same inputs.

    Returns:
        By layer |quantised - exact| / |exact| over all its outputs, and the pictures.
    """
    wrong: dict[str, float] = defaultdict(float)
    right: dict[str, float] = defaultdict(float)
    hooks, names = [], []
    for part, network in networks.items():
        for name, layer in block_linears(network).items():
            twin = copy.deepcopy(layer)
            quantize_layer(twin, kind)
            names.append(f"{part}.{name}")

            def compare(
                _: nn.Module, args: Any, out: Tensor, twin: Any = twin, key: str = names[-1]
            ) -> None:
                x = args[0].bfloat16() if kind == "bfloat16" else args[0]
                wrong[key] += (twin(x).float() - out.float()).double().square().sum().item()
                right[key] += out.double().square().sum().item()

            hooks.append(layer.register_forward_hook(compare))
    try:
        images = pipe(prompt, **call).images
    finally:
        for hook in hooks:
            hook.remove()
    return {key: math.sqrt(wrong[key] / max(right[key], 1e-30)) for key in names}, images


def _by_kind(errors: dict[str, float]) -> dict[str, tuple[float, float]]:
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, error in errors.items():
        kinds[re.sub(r"\.\d+\.", ".*.", name)].append(error)
    return {kind: (sum(found) / len(found), max(found)) for kind, found in kinds.items()}


def _psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of pictures in [0, 1]; infinite for equal ones."""
    error = (a - b).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)
