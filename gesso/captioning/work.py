"""Describing pictures, a batch at a time: what one process does, alone or as one of many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gesso.captioners import PLACE, Captioner, Settings
from gesso.config import DataConfig
from gesso.types import Bad, GessoError, Sample


class Described(NamedTuple):
    """What a captioner said of a picture; "" if nothing."""

    key: str
    text: str


@dataclass(frozen=True)
class Work:
    """A caption job.

    Attributes:
        data: the pictures.
        settings: the captioner.
        template: what it is asked; `{caption}` stands for the original caption.
        plain: what it is asked of a picture without one.
        batch_size: pictures that it describes at a time.
        seed: of what it samples.
    """

    data: DataConfig
    settings: Settings
    template: str
    plain: str
    batch_size: int
    seed: int


def describe(captioner: Captioner, samples: list[Sample], work: Work) -> list[Described | Bad]:
    """Captions of a batch; a picture that the captioner cannot take comes out as `Bad`.

    The texts depend on the pictures of the batch, the job and nothing else.

    Raises:
        GessoError: out of memory.
    """
    try:
        return list(_texts(captioner, samples, work))
    except torch.OutOfMemoryError:
        raise GessoError(
            f"{work.batch_size} pictures at a time do not fit into memory: set a smaller "
            "--batch-size; what was captioned is kept."
        ) from None
    except Exception as e:  # each processor and model has its own way to refuse a picture
        if len(samples) == 1:
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:160].rstrip(".")
            return [Bad(samples[0].key, f"The captioner cannot take it ({reason}).")]
    return [d for sample in samples for d in describe(captioner, [sample], work)]


def _texts(captioner: Captioner, samples: list[Sample], work: Work) -> Iterator[Described]:
    prompts = [
        work.template.replace(PLACE, s.captions[0].text) if s.captions else work.plain
        for s in samples
    ]
    digest = hashlib.sha256(f"{work.seed} {samples[0].key}".encode()).digest()
    seed = int.from_bytes(digest[:7], "big")
    texts = captioner([s.image for s in samples], prompts, seed)
    for sample, text in zip(samples, texts, strict=True):
        yield Described(sample.key, text)


def batches(items: Iterable[Sample | Bad], size: int) -> Iterator[tuple[list[Sample], list[Bad]]]:
    """(pictures, those that were skipped on the way), with `size` pictures but in the last."""
    pictures: list[Sample] = []
    bad: list[Bad] = []
    for item in items:
        if isinstance(item, Bad):
            bad.append(item)
            continue
        pictures.append(item)
        if len(pictures) == size:
            yield pictures, bad
            pictures, bad = [], []
    if pictures or bad:
        yield pictures, bad
