"""Batches: a function of (step, batch size, seed), one bucket each, every picture equally often."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_fakes import FakeImageEncoder, FakeTextEncoder, ListSource, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from gesso.data.dataset import CachedDataset, PixelDataset
from gesso.data.encode import encode
from gesso.data.order import Order
from gesso.data.shards import Cache, open_cache
from gesso.types import Bad, Batch, Caption, GessoError, Sample

SHAPES = [(16, 16), (16, 40), (40, 16)]


def items(n: int = 40, label: bool = True) -> list[Sample | Bad]:
    made: list[Sample | Bad] = []
    for i in range(n):
        s = sample(i, SHAPES[min(i % 5, 2)])
        if label:
            s.meta["label"] = i
        made.append(s)
    return made


def make_cache(folder: Path, made: list[Sample | Bad], trainable: bool = False) -> Cache:
    encoders = (FakeImageEncoder(), FakeTextEncoder(trainable))
    options: dict[str, Any] = {"size": 16, "buckets": True}
    encode(
        ListSource(made), *encoders, folder, multiple=4, shard_size=5, dtype="float32", **options
    )
    return open_cache(folder, image_encoder=encoders[0], text_encoder=encoders[1], **options)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("data") / "c", items())


def same(a: Batch, b: Batch) -> bool:
    fields = ("ids", "tokens", "mask", "size", "aspect", "label")
    pairs = [(getattr(a.cond, f), getattr(b.cond, f)) for f in fields]
    pairs += [(a.latents, b.latents), (a.pixels, b.pixels)]
    return a.keys == b.keys and all(
        x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs
    )


# Order


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 24),
    st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_every_picture_is_seen_equally_often(counts: list[int], batch: int, seed: int) -> None:
    order = Order(counts, batch, seed)
    steps = sum(counts)  # after `batch` epochs every stream is at the end of a pass
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(steps):
        bucket, rows = order.rows(step)
        assert len(rows) == batch
        seen.update((bucket, r) for r in rows.tolist())
    assert set(seen.values()) == {batch}
    assert len(seen) == sum(counts)


@given(st.permutations(range(30)))
@settings(max_examples=10, deadline=None)
def test_order_does_not_remember(steps: list[int]) -> None:
    order = Order([20, 3, 9], 4, 1)
    forwards = [order.rows(s) for s in range(30)]
    for s in steps:
        bucket, rows = Order([20, 3, 9], 4, 1).rows(s)
        assert bucket == forwards[s][0] and (rows == forwards[s][1]).all()


def test_buckets_are_mixed_and_epochs_and_seeds_differ() -> None:
    order = Order([64, 64], 4, 0)
    buckets = [order.rows(s)[0] for s in range(32)]
    assert sum(a != b for a, b in pairwise(buckets)) > 5
    first = np.concatenate([order.rows(s)[1] for s in range(32)])
    second = np.concatenate([order.rows(s)[1] for s in range(32, 64)])
    other = np.concatenate([Order([64, 64], 4, 1).rows(s)[1] for s in range(32)])
    assert (first != second).any() and (first != other).any()


def test_far_steps_are_found_at_once() -> None:
    order = Order([1000, 7, 31], 64, 0)
    start = time.perf_counter()
    order.rows(10**9)
    assert time.perf_counter() - start < 1


# Cached features


def test_batch_holds_what_was_encoded(cache: Cache) -> None:
    dataset = CachedDataset(cache, FakeImageEncoder(std=0))
    assert len(dataset) == 40
    for step in range(12):
        batch = dataset.batch(step, 6, seed=0)
        cond = batch.cond
        assert batch.latents is not None and cond.tokens is not None and cond.mask is not None
        assert cond.size is not None and cond.aspect is not None and cond.label is not None
        h, w = batch.latents.shape[2:]
        for i, key in enumerate(batch.keys):
            n = int(key[1:])
            assert cond.label[i] == n
            assert tuple(cond.size[i].tolist()) == SHAPES[min(n % 5, 2)]
            assert cond.aspect[i].item() == pytest.approx(round(h / w, 2))
            words = int(cond.mask[i].sum())
            assert cond.mask[i, :words].all()  # right-padded
            assert words in (n % 5 + 1, 2)
            assert (cond.tokens[i, words:] == 0).all()
            assert cond.tokens[i, :words, 1].tolist() == list(range(words))
        assert cond.mask.any(0).all()  # no longer than the longest
        values = torch.tensor([int(k[1:]) / 127.5 - 1 for k in batch.keys])
        # std is 0.5 in the cache, and this encoder's sample adds it times noise
        assert abs(batch.latents.mean((1, 2, 3)) - values).max() < 0.5


def test_batches_depend_on_step_and_seed_alone(cache: Cache) -> None:
    a, b = (CachedDataset(cache, FakeImageEncoder(), holdout=4) for _ in range(2))
    forwards = [a.batch(s, 4, seed=3) for s in range(25)]
    backwards = [b.batch(s, 4, seed=3) for s in reversed(range(25))][::-1]
    assert all(same(x, y) for x, y in zip(forwards, backwards, strict=True))
    assert not same(forwards[0], a.batch(0, 4, seed=4))


def test_posterior_is_sampled_anew_at_every_read(tmp_path: Path) -> None:
    dataset = CachedDataset(make_cache(tmp_path / "c", items(1)), FakeImageEncoder())
    first, second = dataset.batch(0, 1, 0), dataset.batch(1, 1, 0)
    assert first.keys == second.keys
    assert first.latents is not None and second.latents is not None
    assert not torch.equal(first.latents, second.latents)
    assert same(first, dataset.batch(0, 1, 0))


def test_memory_mapped_and_in_memory_are_the_same(cache: Cache) -> None:
    memory = CachedDataset(cache, FakeImageEncoder(), holdout=5)
    mapped = CachedDataset(cache, FakeImageEncoder(), holdout=5, ram_limit=0)
    for step in range(12):
        assert same(memory.batch(step, 7, 1), mapped.batch(step, 7, 1))
    pairs = zip(memory.validation_batches(3), mapped.validation_batches(3), strict=True)
    assert all(same(x, y) for x, y in pairs)


def test_trainable_text_gives_ids(tmp_path: Path) -> None:
    dataset = CachedDataset(make_cache(tmp_path / "c", items(9), True), FakeImageEncoder())
    cond = dataset.batch(0, 4, 0).cond
    assert cond.tokens is None and cond.ids is not None and cond.mask is not None
    assert cond.ids.dtype == torch.int64
    assert ((cond.ids > 0) == cond.mask).all()


def test_label_is_left_out_unless_every_picture_has_one(tmp_path: Path) -> None:
    made = items(10)
    made[3].meta.clear()  # type: ignore[union-attr]
    dataset = CachedDataset(make_cache(tmp_path / "c", made), FakeImageEncoder())
    assert dataset.batch(0, 4, 0).cond.label is None


def test_holdout_is_kept_out_and_does_not_depend_on_order(tmp_path: Path, cache: Cache) -> None:
    dataset = CachedDataset(cache, FakeImageEncoder(), holdout=8)
    assert len(dataset) == 32 and len(set(dataset.holdout_keys)) == 8
    trained = {k for s in range(60) for k in dataset.batch(s, 5, 0).keys}
    assert not trained & set(dataset.holdout_keys)
    assert len(trained) == 32
    reversed_cache = make_cache(tmp_path / "c", items()[::-1])
    again = CachedDataset(reversed_cache, FakeImageEncoder(), holdout=8)
    assert set(again.holdout_keys) == set(dataset.holdout_keys)
    pixels = PixelDataset(ListSource(items()), 16, buckets=True, multiple=4, holdout=8)
    assert set(pixels.holdout_keys) == set(dataset.holdout_keys)


def test_validation_covers_the_holdout_once_and_is_fixed(cache: Cache) -> None:
    dataset = CachedDataset(
        cache, FakeImageEncoder(), holdout=9, caption_weights={"short": 1, "dense": 3}
    )
    batches = list(dataset.validation_batches(4))
    assert sorted(k for b in batches for k in b.keys) == sorted(dataset.holdout_keys)
    for batch in batches:
        assert batch.latents is not None and batch.cond.mask is not None
        values = torch.tensor([int(k[1:]) / 127.5 - 1 for k in batch.keys])
        assert torch.allclose(batch.latents.mean((1, 2, 3)), values, atol=1e-6)  # no noise
        words = [int(k[1:]) % 5 + 1 for k in batch.keys]  # the dense caption
        assert batch.cond.mask.sum(1).tolist() == words
    assert all(same(x, y) for x, y in zip(batches, dataset.validation_batches(4), strict=True))


def test_captions_are_mixed_by_weight(tmp_path: Path) -> None:
    captions = [Caption("one two three", "dense"), Caption("one", "short"), Caption("x y", "bad")]
    made: list[Sample | Bad] = [sample(i, captions=captions) for i in range(20)]
    opened = make_cache(tmp_path / "c", made)
    dataset = CachedDataset(
        opened, FakeImageEncoder(), caption_weights={"dense": 3, "short": 1, "bad": 0}
    )
    lengths: Counter[int] = Counter()
    for step in range(50):
        mask = dataset.batch(step, 20, 0).cond.mask
        assert mask is not None
        lengths.update(mask.sum(1).tolist())
    assert set(lengths) == {1, 3}
    assert 0.70 < lengths[3] / 1000 < 0.80
    with pytest.raises(GessoError, match=r"bad, dense, short.*did you mean 'dense'"):
        CachedDataset(opened, FakeImageEncoder(), caption_weights={"dens": 1})


def test_a_picture_without_a_weighted_caption_is_refused_at_the_start(tmp_path: Path) -> None:
    made = [sample(0), sample(1, captions=[Caption("x", "noisy")])]
    opened = make_cache(tmp_path / "c", [*made])
    with pytest.raises(GessoError, match="noisy"):
        CachedDataset(opened, FakeImageEncoder(), caption_weights={"dense": 1})


@pytest.mark.parametrize("holdout", [40, 41, -1])
def test_nothing_left_to_train_on_is_refused(cache: Cache, holdout: int) -> None:
    with pytest.raises(GessoError, match=r"40 pictures.*validation\.holdout"):
        CachedDataset(cache, FakeImageEncoder(), holdout=holdout)


# Pixels


def test_pixels_are_those_of_the_pictures() -> None:
    dataset = PixelDataset(
        ListSource([*items(), Bad("x", "Broken.")]), 16, buckets=True, multiple=4
    )
    assert dataset.bad == [Bad("x", "Broken.")]
    shapes = set()
    for step in range(20):
        batch = dataset.batch(step, 4, 0)
        assert batch.pixels is not None and batch.latents is None
        assert batch.cond.size is not None and batch.cond.aspect is not None
        shapes.add(tuple(batch.pixels.shape[2:]))
        for i, key in enumerate(batch.keys):
            n = int(key[1:])
            assert torch.allclose(batch.pixels[i], torch.tensor(n / 127.5 - 1))
            assert tuple(batch.cond.size[i].tolist()) == SHAPES[min(n % 5, 2)]
    assert len(shapes) == 3
    assert same(dataset.batch(3, 4, 0), dataset.batch(3, 4, 0))


def test_pixels_holdout_limit_and_refusals() -> None:
    dataset = PixelDataset(ListSource(items()), 16, limit=10, holdout=3)
    assert len(dataset) == 7
    held = [k for b in dataset.validation_batches(2) for k in b.keys]
    assert held == dataset.holdout_keys
    with pytest.raises(GessoError, match=r"after 3 of them: set data\.limit"):
        PixelDataset(ListSource(items()), 16, ram_limit=2 * 16 * 16 * 3)
    with pytest.raises(GessoError, match=r"the first: Broken\."):
        PixelDataset(ListSource([Bad("x", "Broken.")]), 16)
