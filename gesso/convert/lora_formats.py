"""LoRA formats that gesso writes: names, suffixes, and where alpha goes. See docs/lora.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from gesso.convert.lora_keys import flat
from gesso.convert.lora_peft import peft_config
from gesso.convert.lora_projections import fuse, split
from gesso.convert.pixart import diffusers_modules
from gesso.nn.low_rank import Kind, Layer
from gesso.types import GessoError

CONFIG = "adapter_config.json"

# The factor that a scale is multiplied into.
_SCALED = {"lora": ("up",), "loha": ("w1_a",), "lokr": ("w1", "w1_a")}


@dataclass(frozen=True)
class Format:
    """How one trainer writes its adapters.

    Attributes:
        prefix: before every path.
        paths: projections split, under diffusers' names; fused, under the original's; or as they
            are, each under the names that fit.
        flat: underscores for dots in paths.
        ab: LoRA's factors are lora_A and lora_B, not lora_down and lora_up.
        magnitude: DoRA's suffix.
        alpha: a tensor a layer, peft's configuration, or multiplied into the factors.
        kinds: that the trainer knows.
        files: of a folder, with what stands before `prefix` in each; none: one file.
    """

    prefix: str
    paths: Literal["split", "fused", "any"]
    flat: bool = False
    ab: bool = True
    magnitude: Literal[
        "dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight", "magnitude"
    ] = "dora_scale"
    alpha: Literal["key", "config", "folded"] = "key"
    kinds: tuple[Kind, ...] = ("lora", "loha", "lokr")
    files: Mapping[str, str] = field(default_factory=dict)

    def arrange(self, layers: list[Layer]) -> dict[str, Layer]:
        """The adapters by the paths of this format, without prefix.

        Raises:
            GessoError: a layer that the format has no name for, or one that cannot be rearranged.
        """
        arranged: dict[str, Layer] = {}
        for target in dict.fromkeys(layer.target for layer in layers):
            for layer in self._projections([la for la in layers if la.target == target]):
                path = self._path(layer)
                if path in arranged:
                    raise GessoError(
                        f"The LoRA has two adapters of {path}, fused and split: this format holds "
                        "one."
                    )
                # Keys hold no scale of a Kronecker product of two whole factors.
                if self.alpha == "folded" or (self.alpha == "key" and layer.whole):
                    layer = fold(layer)
                arranged[path] = layer if self.alpha == "key" else _without_mid(layer)
        return arranged

    def _projections(self, layers: list[Layer]) -> list[Layer]:
        """The adapters of one target, split or fused as the format has them."""
        if self.paths == "any":
            return layers
        names = diffusers_modules(layers[0].target) or ("",)
        if self.paths == "split":
            whole = [la for la in layers if la.part[1] == 1 and len(names) > 1]
            parts = [la for la in layers if la not in whole]
            return parts + [part for la in whole for part in split(la, len(names))]
        parts = [la for la in layers if la.part[1] > 1]
        whole = [la for la in layers if la.part[1] == 1]
        return whole + ([fuse(parts, parts[0].part[1])] if parts else [])

    def _path(self, layer: Layer) -> str:
        index, count = layer.part
        names = diffusers_modules(layer.target)
        if names is None and self.paths != "any":
            raise GessoError(f"This format has no name for {layer.target}: convert to gesso.")
        own = self.paths != "split" and count == 1
        return layer.target if own or names is None else names[index]

    def tensors(self, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """By their keys, without what a file of `files` has before the prefix.

        Raises:
            GessoError: a DoRA that the format's magnitude cannot hold.
        """
        tensors: dict[str, Tensor] = {}
        for path, layer in layers.items():
            start = self.prefix + (flat(path) if self.flat else path) + "."
            for name, value in layer.factors.items():
                tensors[start + self._suffix(layer.kind, name)] = value
            if layer.magnitude is not None:
                tensors[start + self.magnitude] = self._magnitude(layer)
            if self.alpha == "key":
                tensors[start + "alpha"] = _exact(layer.scale * layer.rank)
        return {key: value.contiguous() for key, value in tensors.items()}

    def _suffix(self, kind: Kind, name: str) -> str:
        if kind == "lora":
            ab = {"down": "lora_A", "up": "lora_B"} if self.ab else {}
            return ab.get(name, f"lora_{name}") + ".weight"
        return f"{'hada' if kind == 'loha' else 'lokr'}_{name}"

    def _magnitude(self, layer: Layer) -> Tensor:
        m = layer.magnitude
        assert m is not None
        if self.magnitude == "dora_scale":
            return m
        if m.shape[0] == 1:
            raise GessoError(
                f"The DoRA of {layer.target} has one norm per input, where this format has one per "
                "output: convert to gesso, kohya, lycoris or onetrainer."
            )
        if self.magnitude == "magnitude" or m.dim() == 2:
            return m.flatten()  # [o]
        return m.transpose(0, 1)  # [1, o, 1, 1]

    def config(self, layers: Mapping[str, Layer]) -> dict[str, Any] | None:
        """peft's configuration, if the format has one."""
        return peft_config(layers) if self.alpha == "config" else None


_PEFT = Format(
    "base_model.model.", "split", magnitude="lora_magnitude_vector", alpha="config",
    files={"adapter_model.safetensors": ""},
)  # fmt: skip
_DIFFUSERS = Format(
    "transformer.", "split", magnitude="lora_magnitude_vector.weight", alpha="folded",
    kinds=("lora",),
)  # fmt: skip
_LYCORIS = Format("lycoris_", "split", flat=True, ab=False)

FORMATS: dict[str, tuple[Format, ...]] = {
    "gesso": (Format("", "any"),),
    "peft": (_PEFT,),
    "official": (
        replace(
            _PEFT,
            kinds=("lora",),
            files={**_PEFT.files, "transformer_lora/pytorch_lora_weights.safetensors": "unet."},
        ),
    ),
    "diffusers": (_DIFFUSERS,),
    "simpletuner": (_DIFFUSERS, replace(_LYCORIS, kinds=("loha", "lokr"))),
    "onetrainer": (Format("lora_transformer_", "split", flat=True, ab=False),),
    "ai-toolkit": (
        Format(
            "lora_transformer_", "split", flat=True, ab=False, magnitude="magnitude",
            kinds=("lora",),
        ),
        replace(_LYCORIS, kinds=("lokr",)),
    ),
    "kohya": (Format("lora_unet_", "fused", flat=True, ab=False),),
    "lycoris": (_LYCORIS,),
    "original": (Format("", "fused"),),
    "comfyui": (Format("diffusion_model.", "fused"),),
}  # fmt: skip
"""By name; where a trainer writes its kinds of adapters in two ways, the first that knows them."""


def choose(to: str, layers: list[Layer]) -> Format:
    """The format of a name that can hold these adapters.

    Raises:
        GessoError: no such format, or none for adapters of this kind.
    """
    if to not in FORMATS:
        raise GessoError(f"There is no LoRA format {to!r}: use one of {', '.join(FORMATS)}.")
    kinds = {layer.kind for layer in layers}
    for form in FORMATS[to]:
        if kinds <= set(form.kinds):
            return form
    raise GessoError(
        f"The format {to} cannot hold {' and '.join(sorted(kinds))}: use gesso, peft or lycoris."
    )


def fold(layer: Layer) -> Layer:
    """The same adapter with s = 1: the factors carry it.

    Multiplying by a power of two is exact; otherwise the factor becomes float32.
    """
    if layer.scale == 1:
        return replace(layer, alpha=None)
    name = next(n for n in _SCALED[layer.kind] if n in layer.factors)
    factor = layer.factors[name]
    scaled = factor * layer.scale
    if not torch.equal(scaled.double(), factor.double() * layer.scale):
        scaled = (factor.double() * layer.scale).float()
    return replace(layer, factors={**layer.factors, name: scaled}, alpha=None)


def save_files(
    out: Path, form: Format, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None
) -> None:
    """Write a converted LoRA; a file that is there already is replaced when the new one is whole.

    Raises:
        GessoError: `out` is a file where the format is a folder, or has another suffix.
    """
    if not form.files:
        if out.suffix != ".safetensors":
            raise GessoError(f"{out} is not a .safetensors file: give a name that ends so.")
        _replace(out, encode(tensors))
        return
    if out.suffix == ".safetensors" or out.is_file():
        raise GessoError(f"{out} is a file, where this format is a folder: give a folder's name.")
    for name, start in form.files.items():
        _replace(out / name, encode({start + key: value for key, value in tensors.items()}))
    _replace(out / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file's bytes."""
    # Two layers may share one factor, which safetensors wants to be two tensors.
    return save({key: value.clone() for key, value in tensors.items()}, {"format": "pt"})


def _replace(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_bytes(content)
    new.replace(file)


def _without_mid(layer: Layer) -> Layer:
    """A Tucker decomposition's core multiplied into the input factor, for formats without one."""
    if "mid" not in layer.factors:
        return layer
    mid, down = layer.factors["mid"], layer.factors["down"]
    down = torch.einsum("mnxy,ni->mixy", mid.double(), down.double().flatten(1)).float()
    return replace(layer, factors={"down": down, "up": layer.factors["up"]})


def _exact(value: float) -> Tensor:
    """A scalar in the smallest precision that holds it."""
    small = torch.tensor(value, dtype=torch.float32)
    return small if small.item() == value else torch.tensor(value, dtype=torch.float64)
