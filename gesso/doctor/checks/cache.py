"""A feature cache: whether it is whole, readable, finite, and made from what it shall stand for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gesso.config import Recipe
from gesso.data.shard_io import Manifest, Shard, ShardInfo, open_shard, shard_files
from gesso.data.shards import read_manifest, refuse_different
from gesso.doctor.types import Check, Finding, Kind, Plan
from gesso.types import GessoError

BROKEN = Kind("broken shard", "error", "a shard of the cache is missing, cut short or damaged")
OTHER = Kind("other cache", "error", "the cache was made from something else, or is unfinished")
AGAIN = "run `gesso encode` again, which makes only what is missing"
_ROWS = 64  # of a shard, looked at at a time


class Cache(Check):
    """Examines a cache when all pictures were seen.

    Args:
        folder: the cache.
        plan: see there.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__((BROKEN, OTHER))
        self._folder = folder
        self._plan = plan

    def end(self) -> Iterator[Finding]:
        try:
            manifest = read_manifest(self._folder)
        except GessoError as e:
            yield Finding(self._folder.name, OTHER.name, str(e))
            return
        if manifest is None:
            yield Finding(self._folder.name, OTHER.name, "There is no feature cache.")
            return
        if not manifest.complete:
            yield Finding(self._folder.name, OTHER.name, f"It is unfinished: {AGAIN}.")
        yield from self._origin(manifest)
        seen: dict[str, str] = {}
        for info in manifest.shards:
            yield from self._shard(info, seen)
        listed = {info.name for info in manifest.shards}
        if manifest.complete:
            for path in shard_files(self._folder):
                if path.name not in listed:
                    why = "cache.json does not list it: it is of another cache; delete it."
                    yield Finding(path.name, BROKEN.name, why)

    def _origin(self, manifest: Manifest) -> Iterator[Finding]:
        wanted: dict[str, object] = {"source": self._plan.source.fingerprint()}
        recipe = self._plan.recipe
        if recipe is not None:
            wanted |= {"size": recipe.data.size, "buckets": recipe.data.buckets}
            if recipe.data.limit is not None:
                wanted["limit"] = recipe.data.limit
            try:
                wanted |= _fingerprints(recipe)
            except GessoError as e:
                self.notes.append(f"The cache's encoders were not compared: {e}")
        try:
            refuse_different(self._folder, manifest, wanted)
        except GessoError as e:
            yield Finding(self._folder.name, OTHER.name, str(e))

    def _shard(self, info: ShardInfo, seen: dict[str, str]) -> Iterator[Finding]:
        path = self._folder / info.name
        if not path.is_file():
            yield Finding(info.name, BROKEN.name, f"It is missing: {AGAIN}.")
            return
        size = path.stat().st_size
        if size != info.bytes:
            why = f"It has {size} bytes and was written with {info.bytes}: delete it and {AGAIN}."
            yield Finding(info.name, BROKEN.name, why)
            return
        try:
            shard = open_shard(path)
        except GessoError as e:
            yield Finding(info.name, BROKEN.name, str(e))
            return
        if not finite(shard):
            why = f"It holds values that are not finite: delete it and {AGAIN}."
            yield Finding(info.name, BROKEN.name, why)
        twice = next((k for k in shard.keys if k in seen), None)
        if twice is not None or len(shard) != info.rows:
            why = (
                f"It has {len(shard)} pictures where cache.json says {info.rows}"
                if twice is None
                else f"It holds {twice} as {seen[twice]} does"
            )
            yield Finding(info.name, BROKEN.name, f"{why}: delete the cache and encode again.")
        seen.update(dict.fromkeys(shard.keys, info.name))


def finite(shard: Shard) -> bool:
    """Whether all latents and text features are numbers; reads a few rows at a time."""
    tensors = [shard.latents, shard.text, *([] if shard.pooled is None else [shard.pooled])]
    return all(
        bool(part.isfinite().all())
        for tensor in tensors
        if tensor.is_floating_point()
        for part in tensor.split(_ROWS)
    )


def _fingerprints(recipe: Recipe) -> dict[str, object]:
    """Of a recipe's encoders."""
    from gesso.model import Model
    from gesso.train.run import with_vocabulary

    model = Model.from_recipe(with_vocabulary(recipe))
    if model.text_encoder is None:
        return {"image_encoder": model.image_encoder.fingerprint()}
    return {
        "image_encoder": model.image_encoder.fingerprint(),
        "text_encoder": model.text_encoder.fingerprint(),
    }


def build(plan: Plan) -> Cache | Check:
    """Possible where there is a cache.

    Raises:
        GessoError: no such folder.
    """
    if plan.cache is None:
        return Check((BROKEN, OTHER), "give a feature cache with --cache")
    folder = Path(plan.cache)
    if not folder.is_dir():
        if plan.recipe is not None and plan.cache == plan.recipe.data.cache:
            return Check((BROKEN, OTHER), "the recipe's data.cache is not made yet")
        raise GessoError(f"There is no cache {plan.cache!r}: give a folder of `gesso encode`.")
    return Cache(folder, plan)
