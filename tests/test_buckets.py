"""Bucket tables: the published facts, an independent copy of them, and properties at any size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gesso.data.buckets import assign, bucket_table, ratio_key
from gesso.types import GessoError

# Entries of the published 40 that diffusers' tables leave out.
NOT_IN_DIFFUSERS = {0.26, 0.27, 2.89, 3.11, 3.62, 3.75, 3.88}


def test_1024_has_the_published_facts() -> None:
    table = bucket_table(1024)
    assert len(table) == 40
    assert min(table) == 0.25 and max(table) == 4.0
    assert list(table) == sorted(table)
    for key, (h, w) in table.items():
        assert key == round(h / w, 2)
        assert h % 64 == 0 and w % 64 == 0
        assert 512 <= h <= 2048 and 512 <= w <= 2048
        assert 0.90 <= h * w / 1024**2 <= 1.0
    extra = {(704, 1344), (832, 1152), (896, 1088), (960, 1024)}
    extra |= {(1024, 960), (1088, 896), (1152, 832)}
    assert extra <= set(table.values())
    by_rule = set(table.values()) - extra
    assert len(by_rule) == 33
    for h, w in by_rule:
        assert w == 1024**2 // h // 64 * 64 or h == 1024**2 // w // 64 * 64


@pytest.mark.parametrize(("size", "scale"), [(256, 0.25), (512, 0.5), (2048, 2)])
def test_other_published_tables_are_scaled(size: int, scale: float) -> None:
    expected = {k: (int(h * scale), int(w * scale)) for k, (h, w) in bucket_table(1024).items()}
    assert bucket_table(size) == expected
    assert bucket_table(size, 16) == expected  # factor 8, patch 2


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_diffusers_tables_are_a_part_of_ours(size: int) -> None:
    module = pytest.importorskip("diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha")
    bins = getattr(module, f"ASPECT_RATIO_{size}_BIN")
    published = {float(k): (int(h), int(w)) for k, (h, w) in bins.items()}
    ours = bucket_table(size)
    assert {k: v for k, v in ours.items() if k not in NOT_IN_DIFFUSERS} == published


@given(st.integers(1, 64), st.sampled_from([1, 4, 8, 16, 32]))
def test_any_base_gives_a_symmetric_table_within_the_area(units: int, multiple: int) -> None:
    base = units * multiple
    table = bucket_table(base, multiple)
    assert table[1.0] == (base, base)
    assert all(h % multiple == 0 and w % multiple == 0 for h, w in table.values())
    assert all(0 < h * w <= base * base for h, w in table.values())
    assert all(key == ratio_key(size) for key, size in table.items())


@pytest.mark.parametrize(("base", "multiple"), [(64, 8), (96, 8), (256, 32)])
def test_small_tables_reach_from_a_quarter_to_four_both_ways_up(base: int, multiple: int) -> None:
    table = bucket_table(base, multiple)
    assert min(table) == 0.25 and max(table) == 4.0
    sizes = set(table.values())
    assert {(w, h) for h, w in sizes} == sizes


def test_a_size_off_the_grid_is_refused_with_one_that_fits() -> None:
    with pytest.raises(GessoError, match="100 is not a multiple of 16 pixels: choose 96"):
        bucket_table(100, 16)
    with pytest.raises(GessoError, match="choose 16"):
        bucket_table(0, 16)


@given(st.integers(8, 20_000), st.integers(8, 20_000))
def test_assign_is_nearest_by_linear_ratio(height: int, width: int) -> None:
    table = bucket_table(512)
    chosen = assign(height, width, table)
    gap = abs(ratio_key(chosen) - height / width)
    assert all(gap <= abs(key - height / width) for key in table)


def test_assign_is_linear_and_not_logarithmic() -> None:
    table = {1.0: (64, 64), 4.0: (128, 32)}
    # 2.2 is nearer to 4 than to 1 by logarithm, and the other way round by difference.
    assert assign(220, 100, table) == (64, 64)
    assert assign(260, 100, table) == (128, 32)


def test_every_bucket_is_assigned_to_itself() -> None:
    table = bucket_table(1024)
    for h, w in table.values():
        assert assign(h, w, table) == (h, w)
