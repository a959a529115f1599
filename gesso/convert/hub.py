"""From what a user names to a file or folder on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gesso.convert.checkpoint import WEIGHT_SUFFIXES
from gesso.types import GessoError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PARTS = (
    *("transformer", "vae", "scheduler", "text_encoder", "text_encoder_2", "text_encoder_3"),
    *("tokenizer", "tokenizer_2", "tokenizer_3"),
)
SMALL = ("*.json", "*.txt", "*.model")  # in every folder
WEIGHTS = ("diffusion_pytorch_model*.safetensors", "model*.safetensors")  # at the top


def looks_like_hub_id(source: str) -> bool:
    """Whether a text could be ORG/NAME or ORG/NAME/FILE of the Hugging Face hub."""
    head = "/".join(source.split("/")[:2])
    return REPOSITORY.fullmatch(head) is not None


def resolve(source: str | Path, *, parts: Sequence[str] = PARTS) -> Path:
    """The local file or folder, from the hub's cache or the hub where it is no local path.

    Args:
        source: a path, ORG/NAME, or ORG/NAME/FILE.
        parts: folders of a pipeline whose weights are needed.

    Raises:
        GessoError: neither a path nor something that the hub gives.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path
    inside = "/".join(name.split("/")[2:])
    if not looks_like_hub_id(name) or (inside and path.suffix not in WEIGHT_SUFFIXES):
        raise GessoError(f"There is no file, folder or model {name!r}: check its spelling.")
    from huggingface_hub import hf_hub_download

    try:
        if inside:
            return Path(hf_hub_download(name.removesuffix(f"/{inside}"), inside))
        return _snapshot(name, parts)
    except Exception as e:  # the hub's client raises its own, its transport's and OS errors
        first = (str(e).strip().splitlines() or [type(e).__name__])[0][:160].rstrip(".:")
        raise GessoError(
            f"{name!r} is no local path, and the hub does not give it ({first}): check its"
            " spelling, your network or your access."
        ) from None


def _snapshot(repository: str, parts: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*SMALL, *WEIGHTS, *(f"{part}/*.safetensors" for part in parts)]
    folder = Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns="*.fp16.*"))
    # Some repositories have pickled weights only; they are read as tensors, never run.
    pickled = [
        f"{part}/*.bin".removeprefix("/")
        for part in ("", *parts)
        if (folder / part / "config.json").is_file()
        and not any((folder / part).glob("*.safetensors"))
    ]
    if pickled:
        snapshot_download(repository, allow_patterns=pickled)
    return folder
