"""The job behind `gesso convert`: weights into another format, proven before they are kept.

Source and result are run on the same random inputs: diffusers' files by diffusers' own class, all
others by gesso's. The result is what was read back from disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gesso.backbones.pixart import Config
from gesso.config import resolve
from gesso.convert import checkpoint, lora, pixart, variants
from gesso.convert.checkpoint import read_json
from gesso.convert.network import METADATA, Network, network_of, read_pixart, saved_options
from gesso.convert.published import find
from gesso.model import PARTS, WEIGHTS, Model, checkpoint_in, read_description, read_tensors
from gesso.types import Cond, GessoError

FORMATS = ("original", "diffusers", "comfyui", "gesso")
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
TOLERANCE = 1e-4  # of the largest output; float32 rounding of another order of sums is below 1e-5


def convert(
    source: str | Path,
    out: str | Path,
    to: str,
    *,
    variant: str | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
) -> dict[str, Any]:
    """Convert weights; a LoRA goes to `gesso.convert.lora.convert`.

    Args:
        source: what `gesso.load` takes.
        out: a `.safetensors` file (original, comfyui, diffusers), a `.pth` file (original) or a
            folder (diffusers, gesso). A file is replaced, a folder must be new or empty.
        to: one of `FORMATS`.
        variant, vae, text_encoder: as in `gesso.load`; the encoders are needed for gesso only.

    Returns:
        in, out, from, to, tensors (how many), largest_difference (of any output),
        largest_output, notes.

    Raises:
        GessoError: unreadable source, a format that has no place for it, or a result that differs.
    """
    if Path(out).exists() and Path(out).resolve() == Path(source).resolve():
        raise GessoError(f"{out} is the source itself: give the result another name.")
    if lora.is_lora(source):
        return lora.convert(source, out, to)
    if to not in FORMATS:
        raise GessoError(f"There is no format {to!r}: use one of {', '.join(FORMATS)}.")
    out = Path(out)
    _check_target(out, to)
    published = None
    folder = checkpoint_in(Path(source))
    if folder is not None:
        network = _of_gesso(folder)
    else:
        published = find(source, variant=variant, vae=vae, text_encoder=text_encoder)
        network = published.network()
    notes = list(network.notes)
    if to == "original" and pixart.NULL not in network.state:
        notes.append(
            f"The source has no null caption, so {pixart.NULL} is not in the result: the authors'"
            " code leaves it random; guide with the empty prompt instead."
        )
    before = _run(network)
    if published is not None and network.format == "diffusers":
        before = _run_diffusers(network.config, network.raw, published.hints.transformer)

    partial = out.with_name(f".partial-{out.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        if to == "gesso":
            if published is None:
                raise GessoError(f"{source} is a gesso model already: choose another format.")
            published.check_encoders(PARTS)
            partial.mkdir()
            Model(published.describe(network), backbone=network.build()).save(partial)
            written = _of_gesso(partial)
            after, count = _run(written), len(written.state)
        else:
            _write(network, partial, out, to)
            files = checkpoint.weight_files(partial) if partial.is_dir() else [partial]
            read = read_pixart(files, str(out))
            hints = _hints(partial)
            written = network_of(read, hints)
            after, count = _run(written), len(read.tensors)
            if to == "diffusers":
                after = _run_diffusers(written.config, read.tensors, hints.transformer)
        difference, largest = (before - after).abs().max().item(), before.abs().max().item()
        changed = [
            key
            for key in network.state.keys() | written.state.keys()
            if key != pixart.NULL and not _identical(network.state.get(key), written.state.get(key))
        ]
        if changed or not difference <= TOLERANCE * largest:
            what = f"changes {pixart.first(changed)}" if changed else "computes something else"
            raise GessoError(
                f"The conversion of {source} to {to} {what} (largest difference {difference:.1e} of"
                f" {largest:.1e}): nothing was written; please report it."
            )
        if partial.is_dir() and out.is_dir():
            out.rmdir()
        partial.replace(out)
    finally:
        _remove(partial)
    if largest == 0:
        notes.append("All outputs are zero, as of an untrained model: the tensors were compared.")
    return {
        "in": str(source),
        "out": str(out),
        "from": "gesso" if published is None else network.format,
        "to": to,
        "tensors": count,
        "largest_difference": difference,
        "largest_output": largest,
        "notes": notes,
    }


def diffusers_config(config: Config) -> dict[str, Any]:
    """`config.json` of diffusers' PixArtTransformer2DModel for gesso's options."""
    return {
        "_class_name": "PixArtTransformer2DModel",
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "num_layers": config.depth,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels * (2 if config.learn_sigma else 1),
        "cross_attention_dim": config.hidden_size,
        "caption_channels": config.text_dim,
        "patch_size": config.patch_size,
        "sample_size": config.base_size * config.patch_size,
        "interpolation_scale": config.interpolation_scale,
        "use_additional_conditions": config.micro_conditions,
    }


def _check_target(out: Path, to: str) -> None:
    kinds = {"original": (".safetensors", ".pth"), "comfyui": (".safetensors",)}
    kinds |= {"diffusers": (".safetensors", ""), "gesso": ("",)}
    if out.suffix not in kinds[to] and not (out.is_dir() and "" in kinds[to]):
        wanted = " or ".join(f"a {k} file" if k else "a folder" for k in kinds[to])
        raise GessoError(f"{out} cannot hold the format {to}: name {wanted}.")
    if out.is_dir() and (any(out.iterdir()) or "" not in kinds[to]):
        raise GessoError(f"{out} is a folder with something in it: name a new one.")


def _of_gesso(folder: Path) -> Network:
    described = read_description(folder)
    spec = described.backbone or {}
    if spec.get("name") != "pixart":
        raise GessoError(f"{folder} holds no PixArt, so no published format has a place for it.")
    config = resolve("backbones", spec)[1]
    tensors = read_tensors(folder / WEIGHTS, lambda key: key.startswith("backbone."))
    state = {k.removeprefix("backbone."): v for k, v in tensors.items()}
    tokens = (described.text_encoder or {}).get("max_tokens", 0)
    return Network(state, config, variants.TOKENS.get(tokens), "original", str(folder))


def _write(network: Network, partial: Path, out: Path, to: str) -> None:
    saved = saved_options(network)
    metadata = {"format": "pt", METADATA: saved}
    if to == "diffusers":
        tensors = pixart.to_diffusers(network.state)
        file = partial
        if out.suffix != ".safetensors":
            partial.mkdir()
            config = json.dumps(diffusers_config(network.config), indent=2)
            (partial / "config.json").write_text(config + "\n")
            file = partial / DIFFUSERS_WEIGHTS
        save_file(tensors, file, metadata=metadata)
        return
    tensors = pixart.to_original(network.state, network.config)
    if to == "comfyui":
        tensors = {pixart.COMFYUI + k: v for k, v in tensors.items()}
    if out.suffix == ".pth":
        torch.save({"state_dict": tensors, METADATA: saved}, partial)
    else:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata=metadata)


def _hints(partial: Path) -> variants.Hints:
    config = partial / "config.json"
    return variants.Hints(transformer=read_json(config) if config.is_file() else None)


def _inputs(config: Config) -> tuple[Tensor, Tensor, Cond]:
    """x [2, C, h, w], t [2] and a condition, the same in every call."""
    g, p = torch.Generator().manual_seed(0), config.patch_size
    x = torch.randn(2, config.in_channels, 4 * p, 6 * p, generator=g)
    tokens = torch.randn(2, 7, config.text_dim, generator=g)
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    size = torch.tensor([[512.0, 768.0], [1024.0, 640.0]])
    cond = Cond(tokens=tokens, mask=mask, size=size, aspect=size[:, :1] / size[:, 1:])
    return x, torch.tensor([3.0, 742.0]), cond


@torch.no_grad()
def _run(network: Network) -> Tensor:
    """gesso's [2, C or 2C, h, w] outputs, in float32."""
    out = network.build(torch.float32)(*_inputs(network.config))
    return torch.cat([out.value, *out.aux.values()], dim=1)


@torch.no_grad()
def _run_diffusers(
    config: Config, tensors: Mapping[str, Tensor], options: Mapping[str, Any] | None
) -> Tensor:
    """The same of diffusers' class with a file's tensors and its `config.json`, if it has one."""
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel.from_config(dict(options or diffusers_config(config)))
    buffers = {"caption_projection.y_embedding", "pos_embed.pos_embed"}
    state = {k: v.float() for k, v in tensors.items() if k not in buffers}
    model.load_state_dict(state, assign=True)
    x, t, cond = _inputs(config)
    added = {"resolution": cond.size, "aspect_ratio": cond.aspect}
    result: Tensor = model.eval()(
        x,
        encoder_hidden_states=cond.tokens,
        timestep=t,
        added_cond_kwargs=added if config.micro_conditions else dict.fromkeys(added),
        encoder_attention_mask=cond.mask,
    ).sample
    return result


def _identical(a: Tensor | None, b: Tensor | None) -> bool:
    """Bit for bit, so that NaN equals NaN."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(FileNotFoundError):
        path.unlink()
