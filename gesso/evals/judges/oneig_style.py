"""How alike the styles of pictures are: the two encoders of OneIG-Bench (arXiv 2506.07977).

CSD (Somepalli et al., arXiv 2404.01292) is CLIP ViT-L/14 with a projection of its own, in its
authors' checkpoint, whose names are those of OpenAI's CLIP; they are translated to transformers'
here. The other, xingpng/OneIG-StyleEncoder, is a vision tower of transformers.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.encoders._weights import read_safetensors
from gesso.evals.fingerprint import file_digest, fingerprint, source_digest
from gesso.evals.networks import Network, NetworkConfig, clip_pixels, in_batches, quiet
from gesso.evals.types import Image, Judge
from gesso.types import GessoError

ABILITIES = ("style",)
HEAD = 64  # width of an attention head
NAMES = (  # OpenAI's name -> transformers'
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.(\d+)\.ln_", r"encoder.layers.\1.layer_norm"),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
)


class Config(NetworkConfig):
    """Options of the judge `oneig-style`; `path` is the vision tower of transformers."""

    path: str = "xingpng/OneIG-StyleEncoder"
    csd: str  # CSD's checkpoint


class OneIGStyle(Judge):
    """See the module. Both run in float32 by default; the authors run the second in bfloat16."""

    def __init__(self, options: Config, device: str | None) -> None:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        kinds = {"CLIPVisionModelWithProjection": CLIPVisionModelWithProjection}
        self.net = Network(__name__, kinds, options, device, processor=CLIPImageProcessor)
        file = Path(options.csd)
        tower, self.projection = load_csd(file)
        self.tower = tower.to(self.net.device)
        self.projection = self.projection.to(self.net.device)
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self.name = f"oneig-style:{file.stem}+{options.path}"
        self.versions = self.net.versions
        self.fingerprint = fingerprint(
            self.net.fingerprint, file_digest(file), source_digest(__name__)
        )

    @torch.no_grad()
    def style(self, images: Sequence[Image]) -> list[np.ndarray]:
        """[D] float32 of each picture: CSD's features, and the other encoder's."""
        side = self.tower.config.image_size

        def run(some: list[int]) -> list[np.ndarray]:
            pixels = torch.stack([clip_pixels(images[i], side) for i in some])
            seen = self.tower(pixel_values=pixels.to(self.net.device)).pooler_output
            with quiet():
                batch = self.net.processor([images[i] for i in some], return_tensors="pt")
            other = self.net.model(**self.net.to(batch)).image_embeds.float()
            both = [F.normalize(x, dim=-1).cpu() for x in (seen @ self.projection, other)]
            return list(torch.cat(both, 1).numpy())

        return in_batches(run, [0] * len(images), self.batch_size)


def load_csd(file: Path) -> tuple[Any, Tensor]:
    """CSD's vision tower, and its style projection [W, D]; nothing pickled is run.

    Raises:
        GessoError: no such file, or not these weights.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if not file.is_file():
        raise GessoError(
            f"There is no CSD checkpoint {str(file)!r}: give its authors' checkpoint.pth "
            "(github.com/learn2phoenix/CSD) as --judge oneig-style:csd=FILE."
        )
    try:
        held: dict[str, Any] = (
            read_safetensors(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        held = {k.removeprefix("module."): v for k, v in held.get("model_state_dict", held).items()}
        tensors = {
            name.removeprefix("backbone."): value.float()
            for name, value in held.items()
            if name.startswith("backbone.")
        }
        width, _, patch, _ = tensors["conv1.weight"].shape
        grid = round((len(tensors["positional_embedding"]) - 1) ** 0.5)
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=len(tensors["transformer.resblocks.0.mlp.c_fc.weight"]),
            num_hidden_layers=sum(name.endswith(".ln_1.weight") for name in tensors),
            num_attention_heads=max(1, width // HEAD),
            image_size=grid * patch,
            patch_size=patch,
            hidden_act="quick_gelu",
        )
        tower = CLIPVisionModel(config)
        # Without a prefix or with "vision_model.", as the version of transformers has it.
        (first,) = (k for k in tower.state_dict() if k.endswith("embeddings.class_embedding"))
        prefix = first.removesuffix("embeddings.class_embedding")
        tower.load_state_dict({prefix + k: v for k, v in translated(tensors).items()})
        projection = held["last_layer_style"].float()
    except (
        KeyError,
        RuntimeError,
        AttributeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
    ) as e:
        raise GessoError(
            f"{str(file)!r} is no checkpoint of CSD ({(str(e).splitlines() or [''])[0]}): give its "
            "authors' checkpoint.pth, or its tensors as .safetensors."
        ) from None
    return tower.requires_grad_(False).eval(), projection


def translated(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's tensors under transformers' names; queries, keys and values are one tensor there."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = name
        for pattern, replacement in NAMES:
            new = re.sub(pattern, replacement, new)
        if ".in_proj_" in new:
            layer, _, kind = new.partition(".in_proj_")
            parts = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
            found |= {f"{layer}.{part}.{kind}": some for part, some in parts}
        else:
            found[new] = value
    return found


def build(options: Config, device: str | None) -> OneIGStyle:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return OneIGStyle(options, device)
