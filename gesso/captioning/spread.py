"""A caption job over Ray Data: many processes, on as many machines as the cluster has.

Each reader opens the source anew and takes its share of the pictures, so the source must be
reachable from every machine (a shared disk, or the hub). Captions come back in the order in which
they are ready, and this process alone writes them.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from PIL import Image

from gesso.captioners import Captioner
from gesso.captioning.work import Described, Work, describe
from gesso.data.images import load_rgb
from gesso.data.open import open_data
from gesso.data.source import first, read
from gesso.device import pick_device
from gesso.types import Bad, Caption, GessoError, Sample

_ROWS = 16  # pictures that a reader hands on at a time

Batch = dict[str, np.ndarray]


def spread(
    work: Work, done: Collection[str], limit: int | None, workers: int
) -> Iterator[list[Described | Bad]]:
    """What captioners in `workers` processes say of the pictures that are not done.

    Raises:
        GessoError: Ray is not installed, or a captioner failed for all.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise GessoError("--ray needs Ray: pip install 'gesso[ray]'.") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not ray.is_initialized():  # joins the cluster of RAY_ADDRESS, or starts one here
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = 1 if pick_device(work.settings.device).type == "cuda" else 0
    unit = "GPU" if gpus else "CPU"
    room = int(ray.cluster_resources().get(unit, 0))
    if workers > room:
        raise GessoError(
            f"--ray {workers} needs {workers} {unit}s and the cluster has {room}: ask for fewer, "
            "or name a larger cluster in RAY_ADDRESS."
        )
    shares = min(workers, limit or workers)
    reader = Reader(work, frozenset(done), limit, shares)
    captions = (
        ray.data.from_items([{"share": n} for n in range(shares)], override_num_blocks=shares)
        .map_batches(reader, batch_size=1)
        .map_batches(
            Worker,
            fn_constructor_args=(work,),
            batch_size=work.batch_size,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=gpus,
        )
    )
    try:
        for batch in captions.iter_batches(batch_size=work.batch_size):
            yield [_said(*row) for row in zip(*(batch[c] for c in _SAID), strict=True)]
    except ray.exceptions.RayError as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[-1][:160].rstrip(".")
        raise GessoError(
            f"A worker of Ray failed ({reason}): run again to continue; what was captioned is kept."
        ) from None


_SAID = ("key", "text", "reason")


class Reader:
    """The pictures of one share, every n-th of those that are left, as rows of picture files."""

    def __init__(self, work: Work, done: frozenset[str], limit: int | None, shares: int) -> None:
        self._arguments = work, done, limit, shares

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        work, done, limit, shares = self._arguments
        [share] = batch["share"].tolist()
        rows: list[tuple[str, bytes, str, str]] = []
        items = first(read(open_data(work.data), done, captioned=False), limit)
        for number, item in enumerate(items):
            if number % shares != share:
                continue
            if isinstance(item, Bad):
                rows.append((item.key, b"", "", item.reason))
            else:
                original = item.captions[0].text if item.captions else ""
                rows.append((item.key, _png(item.image), original, ""))
            if len(rows) == _ROWS:
                yield _columns(("key", "image", "original", "reason"), rows)
                rows = []
        if rows:
            yield _columns(("key", "image", "original", "reason"), rows)


class Worker:
    """A captioner in a process of its own."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._captioner = Captioner(work.settings)

    def __call__(self, batch: Batch) -> Batch:
        said: list[Described | Bad] = []
        samples = []
        for key, image, original, reason in zip(
            *(batch[c] for c in ("key", "image", "original", "reason")), strict=True
        ):
            if reason:
                said.append(Bad(str(key), str(reason)))
                continue
            captions = [Caption(str(original))] if original else []
            samples.append(Sample(str(key), load_rgb(bytes(image)), captions))
        if samples:
            said += describe(self._captioner, samples, self._work)
        rows = [
            (s.key, s.text, "") if isinstance(s, Described) else (s.key, "", s.reason) for s in said
        ]
        return _columns(_SAID, rows)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _columns(names: tuple[str, ...], rows: list[Any]) -> Batch:
    return {
        name: np.array(column, dtype=object)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def _said(key: str, text: str, reason: str) -> Described | Bad:
    return Bad(str(key), str(reason)) if reason else Described(str(key), str(text))
