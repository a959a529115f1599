"""Finding, reading and fingerprinting the weights of encoders."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gesso.types import GessoError

PACKAGE = "package:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file.

    Raises:
        GessoError: the file is missing, truncated or not in the safetensors format.
    """
    if not file.is_file():
        raise GessoError(f"There is no weight file {str(file)!r}: give a path that exists.")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as e:
        raise GessoError(
            f"{str(file)!r} is truncated or not a safetensors file ({e}): copy or save it again."
        ) from None


def load_weights(model: nn.Module, file: Path, what: str) -> None:
    """Put an image encoder's weights in, and freeze it.

    Args:
        model: of the shape that the weights have.
        file: safetensors, the checkpoint folder that its training saved, or the run, whose newest
            checkpoint is meant.
        what: "a tiny autoencoder of width 64", for the message.

    Raises:
        GessoError: the file is missing, broken or of another shape.
    """
    if file.is_dir():
        saved = sorted(file.glob("checkpoints/step-*/model.safetensors"))
        file = saved[-1] if saved else file / "model.safetensors"
    prefix = "image_encoder."  # in the checkpoint of a training
    state = {k.removeprefix(prefix): v.float() for k, v in read_safetensors(file).items()}
    own = {k: v.shape for k, v in model.state_dict().items()}
    if {k: v.shape for k, v in state.items()} != own:
        raise GessoError(
            f"{str(file)!r} does not hold {what}: give the options that it was trained with."
        )
    model.load_state_dict(state)
    model.requires_grad_(False).eval()


def locate(path: str, marker: str = "config.json") -> str:
    """Turn a recipe's path into what `from_pretrained` takes.

    `package:NAME` names the folder inside the installed Python package NAME that holds `marker`
    (the shallowest one); `package:NAME/sub/folder` names it outright. Anything else is a folder or
    a hub id and is returned unchanged.

    Raises:
        GessoError: the package is not installed or holds no such folder.
    """
    if not path.startswith(PACKAGE):
        return path
    name, _, inner = path.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise GessoError(
            f"The Python package {name!r} of {path!r} is not installed: install it with pip."
        )
    root = Path(next(iter(spec.submodule_search_locations))) / inner
    found = sorted(root.rglob(marker), key=lambda p: (len(p.parts), str(p)))
    if not found:
        raise GessoError(f"{path!r} holds no {marker}: name the folder as package:NAME/FOLDER.")
    return str(found[0].parent)


def locate_model(what: str, path: str) -> str:
    """As `locate`; a name that is neither there nor ORG/NAME is refused before the hub is asked.

    Args:
        what: "captioner", "tokenizer", ...
        path: as the user wrote it.

    Raises:
        GessoError: see above, and `locate`.
    """
    folder = locate(path)
    if not Path(folder).exists() and not HUB_ID.fullmatch(folder):
        raise GessoError(
            f"There is no {what} {path!r}: give a folder that exists, or a hub id such as ORG/NAME."
        )
    return folder


@contextmanager
def loading(what: str, path: str) -> Iterator[None]:
    """Around a `from_pretrained`: whatever goes wrong inside becomes one sentence.

    Args:
        what: "KL autoencoder", "text encoder", ...
        path: as the user wrote it.

    Raises:
        GessoError: files are missing, truncated or of another architecture.
    """
    try:
        yield
    except Exception as e:  # what libraries raise on broken files has no common type
        first = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".:")
        raise GessoError(
            f"The {what} {path!r} could not be loaded ({first}): "
            "give a complete local folder, or a hub id that can be reached."
        ) from None


@contextmanager
def without_bars() -> Iterator[None]:
    """Around a transformers `from_pretrained`: no progress bars on the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_complete(missing: Iterable[str]) -> None:
    """Within `loading`: refuse weights that leave tensors at random values.

    Args:
        missing: `missing_keys` of a `from_pretrained(..., output_loading_info=True)`.

    Raises:
        OSError: there are some besides a pooler's, whose output is not used here.
    """
    lacking = sorted(key for key in missing if "pooler" not in key)
    if lacking:
        raise OSError(f"its weights lack {len(lacking)} tensors, the first {lacking[0]}")


def fingerprint(config: str, tensors: Mapping[str, Tensor], most: int = 256) -> str:
    """16 hex digits over a configuration and a sample of the weights.

    Names, shapes and dtypes count in full; of each tensor, `most` values at even steps. So it costs
    milliseconds for billions of weights, and any training step changes it.
    """
    digest = hashlib.sha256(config.encode())
    for key in sorted(tensors):
        value = tensors[key].detach()
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.reshape(-1)
        picked = flat[:: max(1, flat.numel() // most)].cpu().contiguous()
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
