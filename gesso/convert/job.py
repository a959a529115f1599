"""The job behind `gesso convert`: weights into another format, proven before they are kept.

Source and result are run on the same random inputs: diffusers' files by diffusers' own class, all
others by gesso's. The result is what was read back from disk.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gesso.config import module, modules
from gesso.convert import checkpoint, lora
from gesso.convert.checkpoint import read_json
from gesso.convert.network import METADATA, Network
from gesso.convert.pixart import COMFYUI, first
from gesso.convert.published import find
from gesso.model import PARTS, WEIGHTS, Model, checkpoint_in, read_description, read_tensors
from gesso.types import GessoError

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
    layout = _layout(network)
    notes = [*network.notes, *layout.notes(network, to)]
    before = _run(network)
    if published is not None and network.format == "diffusers":
        before = layout.run_diffusers(network.config, network.raw, published.transformer_config)

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
            config = _config_of(partial)
            written = layout.read(files, str(out), config)
            after, count = _run(written), len(written.raw)
            if to == "diffusers":
                after = layout.run_diffusers(written.config, written.raw, config)
        difference, largest = (before - after).abs().max().item(), before.abs().max().item()
        changed = [
            key
            for key in network.state.keys() | written.state.keys()
            if key not in layout.MAY_LACK
            and not _identical(network.state.get(key), written.state.get(key))
        ]
        if changed or not difference <= TOLERANCE * largest:
            what = f"changes {first(changed)}" if changed else "computes something else"
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


def _check_target(out: Path, to: str) -> None:
    kinds = {"original": (".safetensors", ".pth"), "comfyui": (".safetensors",)}
    kinds |= {"diffusers": (".safetensors", ""), "gesso": ("",)}
    if out.suffix not in kinds[to] and not (out.is_dir() and "" in kinds[to]):
        wanted = " or ".join(f"a {k} file" if k else "a folder" for k in kinds[to])
        raise GessoError(f"{out} cannot hold the format {to}: name {wanted}.")
    if out.is_dir() and (any(out.iterdir()) or "" not in kinds[to]):
        raise GessoError(f"{out} is a folder with something in it: name a new one.")


def _layout(network: Network) -> Any:
    """What is known of the network's family."""
    return module("convert.layouts", network.backbone)


def _of_gesso(folder: Path) -> Network:
    described = read_description(folder)
    name = (described.backbone or {}).get("name")
    if name not in modules("convert.layouts"):
        raise GessoError(
            f"{folder} holds no PixArt or MMDiT, so no published format has a place for it."
        )
    tensors = read_tensors(folder / WEIGHTS, lambda key: key.startswith("backbone."))
    state = {k.removeprefix("backbone."): v for k, v in tensors.items()}
    found: Network = module("convert.layouts", name).of_gesso(state, described, str(folder))
    return found


def _write(network: Network, partial: Path, out: Path, to: str) -> None:
    layout = _layout(network)
    saved = layout.saved(network)
    metadata = {"format": "pt", METADATA: saved}
    tensors = layout.tensors(network, "diffusers" if to == "diffusers" else "original")
    if to == "diffusers":
        file = partial
        if out.suffix != ".safetensors":
            partial.mkdir()
            config = json.dumps(layout.diffusers_config(network.config), indent=2)
            (partial / "config.json").write_text(config + "\n")
            file = partial / DIFFUSERS_WEIGHTS
        save_file(tensors, file, metadata=metadata)
        return
    if to == "comfyui":
        if network.adapter is not None:
            raise GessoError(
                f"ComfyUI has no place for the {network.adapter['name']} of {network.where}: "
                "convert to original or gesso."
            )
        tensors = {COMFYUI + k: v for k, v in tensors.items()}
    if out.suffix == ".pth":
        torch.save({"state_dict": tensors, METADATA: saved}, partial)
    else:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata=metadata)


def _config_of(partial: Path) -> dict[str, Any] | None:
    config = partial / "config.json"
    return read_json(config) if config.is_file() else None


@torch.no_grad()
def _run(network: Network) -> Tensor:
    """gesso's [2, C or 2C, h, w] outputs, in float32."""
    out = network.build(torch.float32)(*_layout(network).inputs(network.config))
    return torch.cat([out.value, *out.aux.values()], dim=1)


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
