"""The job behind `gesso caption`: pictures -> a file of captions beside them.

It can be stopped at any time. A batch is appended whole or not at all, so a kill loses at most the
batch in flight, and the next run goes on behind the last one with the same batches and seeds: it
ends with the captions of a run that was never interrupted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

from gesso.captioners import Captioner, Settings, adapter_of, template_for
from gesso.captioning.file import CaptionFile
from gesso.captioning.work import Described, Work, batches, describe
from gesso.config import validate
from gesso.data.open import beside, data_at, open_data
from gesso.data.source import Source, first, read
from gesso.progress import steps_bar
from gesso.types import Bad, GessoError

_NAMED = 20  # pictures that a result names


def caption(
    path: str,
    model: str,
    *,
    overrides: list[str] | None = None,
    out: Path | None = None,
    kind: str = "dense",
    template: str | None = None,
    with_original: bool = False,
    temperature: float = 0.2,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    dtype: str | None = None,
    device: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    ray: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Let a model describe the pictures of a path or recipe; an interrupted job is continued.

    Args:
        path, overrides: see `gesso.data.open.data_at`.
        model: image-text-to-text: folder, `package:NAME` or hub id.
        out: the caption file; None: beside the pictures, see `gesso.data.open.beside`.
        kind: of the captions, which `data.caption_weights` refers to.
        template: what the model is asked; None: as suits it.
        with_original: tell it the first caption that a picture has, at the template's `{caption}`.
        temperature, max_new_tokens, dtype, device: see `gesso.captioners.Settings`.
        batch_size: pictures at a time.
        limit: only the first so many pictures.
        seed: of what is sampled.
        ray: so many workers of Ray, on as many machines as its cluster has; None: this process.
        quiet: show no progress.

    Returns:
        out; pictures (with a line in it), of which `resumed` were there before and `empty` got no
        text; empty_keys, the first few; skipped, with reasons and how often each; seconds;
        interrupted.

    Raises:
        GessoError: bad input, or no picture got a caption.
    """
    started = time.monotonic()
    data = data_at(path, overrides)
    values = {
        "model": model,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "device": device,
    }
    settings = validate(Settings, values, "The captioner")
    adapter = adapter_of(model)
    asked = template_for(adapter, template, with_original)
    plain = adapter.TEMPLATE if with_original else asked
    work = Work(data, settings, asked, plain, batch_size, seed)
    about = {
        "model": model,
        "template": asked,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    source = open_data(data)
    limit = limit if data.limit is None or limit is not None else data.limit
    bad: list[Bad] = []
    interrupted = False
    place = out or beside(data.source)
    with CaptionFile(place, about, kind) as file, steps_bar("captioning", quiet) as show:
        resumed = len(file.done)
        left = None if limit is None else max(0, limit - resumed)
        total = limit if limit is not None else len(source) if isinstance(source, Sized) else None
        try:
            for said in _everything(source, work, file, left, ray):
                texts = [s for s in said if isinstance(s, Described)]
                file.add(texts)
                bad += [s for s in said if isinstance(s, Bad)]
                show(len(file.done), total)
        except KeyboardInterrupt:
            interrupted = True
        pictures, empty = len(file.done), file.empty
    if not interrupted and pictures == len(empty):
        raise GessoError(_nothing(model, pictures, bad))
    return {
        "out": str(place),
        "kind": kind,
        "pictures": pictures,
        "resumed": resumed,
        "empty": len(empty),
        "empty_keys": empty[:_NAMED],
        "skipped": len(bad),
        "reasons": dict(Counter(b.reason for b in bad)),
        "seconds": time.monotonic() - started,
        "interrupted": interrupted,
    }


def _everything(
    source: Source, work: Work, file: CaptionFile, limit: int | None, ray: int | None
) -> Iterator[list[Described | Bad]]:
    if ray is not None:
        from gesso.captioning.spread import spread

        yield from spread(work, file.done, limit, ray)
        return
    captioner: Captioner | None = None
    items = first(read(source, frozenset(file.done), captioned=False), limit)
    for pictures, bad in batches(items, work.batch_size):
        captioner = captioner or (Captioner(work.settings) if pictures else None)
        said = describe(captioner, pictures, work) if captioner and pictures else []
        yield [*said, *bad]


def _nothing(model: str, pictures: int, bad: list[Bad]) -> str:
    if pictures:
        return (
            f"{model} said nothing of any of the {pictures} pictures: give another --template, a "
            "higher --max-new-tokens or another model."
        )
    reason = f", the first, {bad[0].key}: {bad[0].reason}" if bad else "."
    return f"No picture could be captioned ({len(bad)} skipped){reason}"
