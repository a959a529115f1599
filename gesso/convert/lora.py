"""LoRA files: read any trainer's, write each one's, prove that nothing changed.

read(path) -> LoraFile         layers in gesso's names, ready for gesso.adapters.fused.Adapters
convert(path, out, "kohya")    reads, arranges, writes; refuses where the result differs
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from gesso.adapters.lora import FOLDER
from gesso.convert.checkpoint import WEIGHT_SUFFIXES, Checkpoint, read_json
from gesso.convert.checkpoint import read as read_checkpoint
from gesso.convert.lora_formats import CONFIG, choose, encode, save_files
from gesso.convert.lora_keys import Parsed, is_adapter_key, metadata_config, parse
from gesso.model import checkpoint_in, fingerprint
from gesso.nn.low_rank import Layer
from gesso.types import GessoError

WEIGHTS = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "transformer_lora/pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
TOLERANCE = 1e-6  # of the largest change; folding alpha into float32 factors costs about 1e-7
PROBES = 8  # random inputs that source and result are both run on


@dataclass
class LoraFile:
    """A LoRA as it was read.

    Attributes:
        layers: in gesso's names.
        name: of the file, or of the folder where the file's own name says nothing.
        format: the prefixes that its keys have, for messages.
        fingerprint: over names and bytes of its tensors.
        notes: one sentence each on what was assumed.
    """

    layers: list[Layer]
    name: str
    format: str
    fingerprint: str
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_lora(path: str | Path) -> bool:
    """Whether a file or folder holds adapters; False where there is nothing or a model.

    Raises:
        GessoError: a truncated file, or one that would run code.
    """
    file = _file(Path(path))
    if file is None:
        return False
    if file.name in WEIGHTS or (file.parent / CONFIG).is_file():
        return True
    return any(map(is_adapter_key, read_checkpoint([file]).tensors))


def read(path: str | Path, own: Container[str] = ()) -> LoraFile:
    """Read a LoRA.

    Args:
        path: a file of tensors (safetensors, or a pickle under `weights_only`), the folder that
            peft, diffusers or PixArt's trainer saved, or a run of `gesso train`. peft's
            `adapter_config.json` is looked for beside the file, and one folder up from
            `transformer_lora` (the trainer's copy).
        own: names of the network's layers, for networks besides PixArt.

    Raises:
        GessoError: no such file, a truncated one, or one with nothing for this model.
    """
    path = Path(path)
    file = _file(path)
    if file is None:
        if path.is_dir():
            raise GessoError(f"{path} is no LoRA: it has none of {', '.join(WEIGHTS)}.")
        what = "is no file" if not path.exists() else "is no LoRA by its name"
        raise GessoError(f"{path} {what}: give one that ends in {', '.join(WEIGHT_SUFFIXES)}.")
    checkpoint = read_checkpoint([file])
    config = _config(file) or metadata_config(checkpoint.metadata)
    parsed = parse(checkpoint.tensors, config, str(file), own)
    name = file.stem
    if any(file.name == Path(w).name for w in WEIGHTS):
        folder = file.parent.parent if file.parent.name == "transformer_lora" else file.parent
        name = folder.resolve().name
    read = LoraFile(
        parsed.layers,
        name,
        _named(checkpoint, parsed),
        fingerprint(checkpoint.tensors),
        parsed.left_out,
    )
    if parsed.left_out:
        read.notes.append(
            f"{file}: {len(parsed.left_out)} tensors for the text encoder are left out."
        )
    if parsed.assumed_alpha:
        read.notes.append(
            f"{file} has no {CONFIG} beside it: its products count once, as if alpha were the rank;"
            " peft's own default is alpha 8."
        )
    return read


def convert(path: str | Path, out: str | Path, to: str) -> dict[str, Any]:
    """Convert a LoRA into another trainer's format, proving the result before it is written.

    The tensors that would be written are read back, source and result change the same random
    weights, and both are run on the same random inputs, in float64.

    Args:
        path: see `read`.
        out: a file; for "peft" and "official" a folder.
        to: a name of `gesso.convert.lora_formats.FORMATS`.

    Returns:
        in, out, from, to, layers, largest_difference (over the largest change of a weight),
        largest_output_difference (likewise of outputs), notes.

    Raises:
        GessoError: unknown format, one that cannot hold this adapter, or a result that differs.
    """
    source = read(path)
    if source.left_out:
        raise GessoError(
            f"{path} also adapts the text encoder ({source.left_out[0]}), which gesso does not "
            "convert: remove those tensors first."
        )
    form = choose(to, source.layers)
    layers = form.arrange(source.layers)
    tensors, config = form.tensors(layers), form.config(layers)
    written = parse(load(encode(tensors)), config, str(out))
    apart = difference(source.layers, written.layers)
    if max(apart) > TOLERANCE:
        raise GessoError(
            f"The LoRA {path} as {to} would change a weight by {apart[0]:.1e} and an output by "
            f"{apart[1]:.1e} of the largest change: nothing was written."
        )
    save_files(Path(out), form, tensors, config)
    return {
        "in": str(path),
        "out": str(out),
        "from": source.format,
        "to": to,
        "layers": len(source.layers),
        "largest_difference": apart[0],
        "largest_output_difference": apart[1],
        "notes": source.notes,
    }


def difference(ours: list[Layer], theirs: list[Layer]) -> tuple[float, float]:
    """How far two sets of adapters are apart in what they do, over the largest that one does.

    Returns:
        of changed weights and of outputs for random inputs; both are 0 for equal adapters.
    """
    generator = torch.Generator().manual_seed(0)
    apart, largest = [0.0, 0.0], [0.0, 0.0]
    for target in sorted({layer.target for layer in (*ours, *theirs)}):
        pair = [[la for la in some if la.target == target] for some in (ours, theirs)]
        shape = _widest(pair[0] + pair[1])
        weight = torch.zeros(shape, dtype=torch.float64)
        if any(layer.magnitude is not None for layer in (*pair[0], *pair[1])):
            weight.normal_(generator=generator)  # only a DoRA's change depends on it
        probe = torch.randn(
            PROBES, weight[0].numel(), generator=generator, dtype=torch.float64
        )  # [P, i k k]
        changes = [_total(some, weight) for some in pair]
        outputs = [probe @ change.flatten(1).t() for change in changes]  # [P, o]
        for i, (a, b) in enumerate((changes, outputs)):
            differs = float((a - b).abs().max())
            apart[i] = max(apart[i], differs if math.isfinite(differs) else math.inf)
            largest[i] = max(largest[i], float(a.abs().max()))
    return tuple(a / n if n else a for a, n in zip(apart, largest, strict=True))  # type: ignore[return-value]


def _total(layers: list[Layer], weight: Tensor) -> Tensor:
    change = torch.zeros_like(weight)
    for layer in layers:
        index, count = layer.part
        size = weight.shape[0] // count
        rows = slice(index * size, (index + 1) * size)
        change[rows] += layer.change(weight[rows])
    return change


def _widest(layers: list[Layer]) -> list[int]:
    """Of the weight that adapters of one target are for; the longest form, as of a Conv2d."""
    shapes = [(list(la.shape()), la.part[1]) for la in layers]
    shape, count = max(shapes, key=lambda s: len(s[0]))
    return [shape[0] * count, *shape[1:]]


def _named(checkpoint: Checkpoint, parsed: Parsed) -> str:
    kinds = sorted({"dora" if la.magnitude is not None else la.kind for la in parsed.layers})
    return f"{' and '.join(kinds)}, keys {' and '.join(p + '*' for p in parsed.prefixes)}"


def _file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix in WEIGHT_SUFFIXES else None
    checkpoint = checkpoint_in(path) if path.is_dir() else None
    if checkpoint is not None:  # of a training whose adapter was a LoRA
        path = checkpoint / FOLDER
    found = [path / name for name in WEIGHTS if (path / name).is_file()]
    if found or not path.is_dir():
        return found[0] if found else None
    single = [p for p in path.iterdir() if p.suffix == ".safetensors"]
    return single[0] if len(single) == 1 else None


def _config(file: Path) -> dict[str, Any] | None:
    above = [file.parent.parent] if file.parent.name == "transformer_lora" else []
    for folder in (file.parent, *above):  # the official trainer's copy lies one folder down
        if (folder / CONFIG).is_file():
            return read_json(folder / CONFIG)
    return None
