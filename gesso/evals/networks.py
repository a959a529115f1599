"""Networks of judges: loading what transformers knows, batches of pictures, autocast."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gesso.config import Config
from gesso.device import pick_device
from gesso.encoders._weights import fingerprint as weights_fingerprint
from gesso.encoders._weights import loading, locate, read_safetensors, without_bars
from gesso.evals.fingerprint import fingerprint, source_digest, versions
from gesso.types import GessoError

T = TypeVar("T")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
HEAD_PLACES = (0, 2, 4, 6, 7)  # of the linear layers among the head's, whose others drop out
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NetworkConfig(Config):
    """Options that every judge with a transformers network has."""

    path: str  # hub id, folder, or package:NAME
    batch_size: int = 16
    dtype: str = "float32"  # of the weights: float32, bfloat16, float16


class Network:
    """A transformers model with its processor, in evaluation mode on its device.

    Attributes:
        config: of the network.
        processor, device: what it says.
        fingerprint: 16 hex digits over weights, configuration, options and the judge's source.
        versions: of the libraries.
    """

    def __init__(
        self,
        judge: str,
        autos: dict[str, Any],
        options: NetworkConfig,
        device: str | None,
        *,
        processor: Any = None,
    ) -> None:
        """Load.

        Args:
            judge: its module, for messages and the fingerprint.
            autos: architecture (as config.json has it) -> class with `from_pretrained`; "*": any
                other architecture.
            options: what to load and how.
            device: default: CUDA where there is one, else the CPU.
            processor: a class with `from_pretrained`; default AutoProcessor.

        Raises:
            GessoError: weights that are absent, incomplete or of another kind; no such device.
        """
        from transformers import AutoConfig, AutoProcessor

        self.device = pick_device(device)
        if options.dtype not in DTYPES:
            raise GessoError(f"dtype={options.dtype!r} is none of {', '.join(DTYPES)}.")
        short = judge.rpartition(".")[2].replace("_", "-")
        folder = locate(options.path)
        with loading(f"judge {short}", options.path), quiet(), without_bars():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            self.architecture = (config.architectures or [config.model_type])[0]
        auto = autos.get(self.architecture) or autos.get("*")
        if auto is None:
            kinds = ", ".join(sorted(autos)[:6])
            raise GessoError(
                f"{options.path!r} is a {self.architecture}, which the judge {short} cannot use: "
                f"give weights of a kind such as {kinds}."
            )
        with loading(f"judge {short}", options.path), quiet(), without_bars():
            model, info = auto.from_pretrained(
                folder,
                dtype=DTYPES[options.dtype],
                weights_only=True,  # of pickled weights, tensors are read and nothing is run
                trust_remote_code=False,
                output_loading_info=True,
            )
            if missing := sorted(info["missing_keys"]):
                raise OSError(f"its weights lack {len(missing)} tensors, the first {missing[0]}")
            self.processor = (processor or AutoProcessor).from_pretrained(
                folder, trust_remote_code=False
            )
        self.config = model.config
        self._model = model.requires_grad_(False).eval()
        self.versions = versions("torch", "transformers")
        described = weights_fingerprint(
            f"{model.config.to_json_string()} {_told(self.processor)}", model.state_dict()
        )
        told = options.model_dump(exclude={"path", "batch_size"})
        self.fingerprint = fingerprint(described, told, source_digest(judge, __name__))

    @cached_property
    def model(self) -> Any:
        """The network, which moves to its device when it is first used."""
        return self._model.to(self.device)

    def to(self, batch: Any) -> dict[str, Any]:
        """A processor's tensors on the device, floats in the weights' dtype."""
        dtype = self.model.dtype
        return {
            name: value.to(self.device, dtype if value.is_floating_point() else None)
            for name, value in batch.items()
            if isinstance(value, torch.Tensor)
        }


def _told(processor: Any) -> tuple[Any, ...]:
    """What a processor does: its picture options and its vocabulary."""
    images = getattr(processor, "image_processor", processor)
    tokenizer = getattr(processor, "tokenizer", processor)
    options = sorted(images.to_dict().items()) if hasattr(images, "to_dict") else []
    words = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return fingerprint(options), fingerprint(sorted(words.items()))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Around transformers' loading and processing: its advice is not shown."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def in_batches(
    run: Callable[[list[int]], Sequence[T]], groups: Sequence[Any], batch_size: int
) -> list[T]:
    """Run over indices in batches of equal `groups` value, results in the original order.

    Args:
        run: indices -> one result each.
        groups: a sortable value for each item; only equal ones share a batch (picture sizes).
    """
    order = sorted(range(len(groups)), key=lambda i: groups[i])  # stable: order within a group
    results: dict[int, T] = {}
    start = 0
    while start < len(order):
        stop = start + 1
        while (
            stop < len(order)
            and stop - start < batch_size
            and groups[order[stop]] == groups[order[start]]
        ):
            stop += 1
        some = order[start:stop]
        results.update(zip(some, run(some), strict=True))
        start = stop
    return [results[i] for i in range(len(groups))]


def same_pictures(images: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
    """Which pictures are distinct, so that each goes through the network once.

    Returns:
        indices of the first of each kind, and for every picture its place among those.
    """
    first: dict[Any, int] = {}
    unique: list[int] = []
    place = []
    for i, image in enumerate(images):
        key = (image.shape, image.tobytes())
        if key not in first:
            first[key] = len(unique)
            unique.append(i)
        place.append(first[key])
    return unique, place


def read_tensors(file: Path, what: str, wanted: str) -> dict[str, Tensor]:
    """The tensors of a weight file; of a pickled one nothing is run.

    Args:
        what, wanted: the network and its file, for messages.

    Raises:
        GessoError: no such file, or no table of tensors.
    """
    if not file.is_file():
        raise GessoError(f"There is no {what} file {str(file)!r}: give {wanted}.")
    try:
        if file.suffix == ".safetensors":
            return read_safetensors(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError("it holds something else than tensors")
        return dict(tensors)
    except (RuntimeError, AttributeError, EOFError, ValueError, pickle.UnpicklingError) as e:
        raise GessoError(
            f"{str(file)!r} cannot be read as {what} ({(str(e).splitlines() or [''])[0]}): give "
            f"{wanted}."
        ) from None


def linear_head(tensors: dict[str, Tensor], prefix: str) -> nn.Sequential:
    """The five linear layers, without activations, that turn features into a learned score.

    Args:
        tensors: with PREFIX0.weight [1024, D], ..., PREFIX7.bias [1].

    Raises:
        KeyError, RuntimeError: others.
    """
    inputs = tensors[f"{prefix}0.weight"].shape[1]
    layers = []
    for place, width in zip(HEAD_PLACES, HEAD_WIDTHS, strict=True):
        layer = nn.Linear(inputs, width)
        layer.load_state_dict({k: tensors[f"{prefix}{place}.{k}"] for k in ("weight", "bias")})
        layers.append(layer)
        inputs = width
    return nn.Sequential(*layers)


def clip_pixels(image: np.ndarray, side: int) -> Tensor:
    """CLIP's preprocessing: [H, W, 3] uint8 -> [3, side, side], normalised.

    The shorter side is resized to `side` (bicubic, antialiased), and the middle cut out.
    """
    from PIL import Image

    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (max(side, int(width * scale)), max(side, int(height * scale)))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in size)
    pixels = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32) / 255
    normal = (pixels - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_DEVIATION, np.float32)
    return torch.from_numpy(normal).movedim(-1, 0)
