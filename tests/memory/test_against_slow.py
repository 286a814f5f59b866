"""Every fast kernel equals its slow twin (`slow.py`): all evictions, overflow, ties, several sequences, wide masks."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import CLAIRVOYANT, EVICTIONS
from oracles.slow import SlowCache, slow_hits, slow_runs, slow_top_k

from dipsim.basics.errors import InputError
from dipsim.memory.cache import ColumnCache, find_residents
from dipsim.memory.eviction.rule import next_use
from dipsim.memory.stack_distance import hit_curve, hits_at
from dipsim.sparsity.plugins import load_policy
from dipsim.sparsity.ranking import first, least, top_k
from dipsim.storage.runs import ones, pack, runs

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 9)))
WIDE = 1300  # columns: more than a word of bits and more than `first` leaves to numpy


def cache_of(masks, capacity, eviction):
    return ColumnCache(masks.shape[1], capacity, eviction, masks if eviction in CLAIRVOYANT else None)


def wide_masks(seed, tokens=12):
    """Masks [T, WIDE] of some popular columns; the number of columns varies from token to token."""
    rng = np.random.default_rng(seed)
    scores = rng.random((tokens, WIDE)) * np.exp(0.5 * rng.standard_normal(WIDE))
    return scores > np.quantile(scores, rng.uniform(0.3, 0.7, tokens))[:, None]


def assert_same(masks, capacity, eviction, begin=0):
    fast, slow = cache_of(masks, capacity, eviction), SlowCache(capacity, eviction, masks)
    fast.rule.token += begin
    for mask in masks:
        hits = slow.step(mask)
        assert set(np.flatnonzero(fast.step(mask)).tolist()) == hits
        assert set(np.flatnonzero(fast.resident).tolist()) == slow.resident
        assert fast.found == (len(hits) if capacity else 0)


@given(MASKS, st.sampled_from(EVICTIONS), st.data())
def test_the_cache_is_the_slow_one_column_by_column(masks, eviction, data):
    assert_same(masks, data.draw(st.integers(0, masks.shape[1])), eviction)


@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.9, 1])
def test_the_cache_is_the_slow_one_when_wide(eviction, share):
    assert_same(wide_masks(seed=int(10 * share)), int(share * WIDE), eviction)


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_a_sequence_may_outlast_16_bits(eviction):
    assert_same(wide_masks(seed=3), WIDE // 2, eviction, begin=np.iinfo(np.int16).max - 5)
    cache = ColumnCache(2, 1, eviction)
    cache.rule.value[:] = np.iinfo(np.int16).max
    cache.rule.token = np.iinfo(np.int16).max
    cache.step(np.array([True, False]))
    assert cache.rule.value.tolist() == [np.iinfo(np.int16).max + 1, np.iinfo(np.int16).max]


@given(MASKS, st.sampled_from(EVICTIONS), st.data())
def test_every_sequence_begins_empty(masks, eviction, data):
    capacity = data.draw(st.integers(0, masks.shape[1]))
    starts = (0, *sorted(data.draw(st.sets(st.integers(1, max(1, len(masks) - 1)), max_size=3)) - {len(masks)}))
    hits = masks & find_residents(masks, capacity, eviction, starts)
    assert (hits == slow_hits(masks, capacity, eviction, starts)).all()


@given(MASKS, st.sampled_from(EVICTIONS))
def test_one_pass_over_many_capacities(masks, eviction):
    capacities = [*range(masks.shape[1] + 1), 0]
    hits = hits_at(masks, capacities, eviction)
    for column, capacity in zip(hits.T, capacities, strict=True):
        assert column.tolist() == slow_hits(masks, capacity, eviction).sum(axis=1).tolist()
    assert hits[:, :-1].sum(axis=0).tolist() == hit_curve(masks, eviction).tolist()


@pytest.mark.parametrize("eviction", ["lru", "belady"])
def test_one_pass_when_wide(eviction):
    masks = wide_masks(seed=5)
    capacities = [int(share * WIDE) for share in (0.2, 0.5, 0.7, 0.71, 0.8, 1)]
    for hits, capacity in zip(hits_at(masks, capacities, eviction).T, capacities, strict=True):
        assert (hits == slow_hits(masks, capacity, eviction).sum(axis=1)).all()


@pytest.mark.parametrize("capacity", [-1, 4, 1.5, True])
def test_misuse_of_many_capacities_is_one_line(capacity):
    with pytest.raises(InputError, match="capacity: must be a whole number of columns from 0 to 3"):
        hits_at(np.ones((2, 3), bool), [1, capacity], "lru")


@given(MASKS)
def test_next_use_by_search(masks):
    for token, row in enumerate(next_use(masks)):
        for column, found in enumerate(row):
            later = np.flatnonzero(masks[token + 1 :, column])
            assert found == (token + 1 + later[0] if len(later) else len(masks) + 1)


@given(arrays(np.int16, st.integers(2, 30), elements=st.integers(-9, 9)), st.integers(-99, 99), st.data())
def test_least_by_sorting_whatever_the_guess(values, guess, data):
    among = data.draw(arrays(bool, len(values)).filter(lambda columns: columns.sum() > 1))
    count = data.draw(st.integers(1, int(among.sum()) - 1))
    order = sorted(np.flatnonzero(among).tolist(), key=lambda column: (values[column], column))
    chosen, limit = least(values, among, count, guess)
    assert np.flatnonzero(chosen).tolist() == sorted(order[:count])
    assert (values[order[:count]] <= limit).all()


@given(st.integers(0, 2**32), st.floats(0.001, 1), st.data())
def test_first_by_listing(seed, density, data):
    columns = np.random.default_rng(seed).random(5000) < density
    if columns.any():
        count = data.draw(st.integers(1, int(columns.sum())))
        assert np.flatnonzero(first(columns.copy(), count)).tolist() == np.flatnonzero(columns)[:count].tolist()


@given(st.integers(0, 2**32), st.integers(1, 2000), st.sampled_from((2, 50, 10**6)), st.floats(0, 1))
def test_top_k_by_sorting(seed, size, levels, share):
    scores = np.random.default_rng(seed).integers(-levels, levels, (2, size)).astype(np.float32)
    for row, mask in zip(scores, top_k(scores, int(share * size)), strict=True):
        assert (mask == slow_top_k(row, int(share * size))).all()


@given(st.integers(0, 2**32), st.integers(1, 400), st.floats(0, 1))
def test_runs_by_spelling_them_out(seed, size, density):
    rng = np.random.default_rng(seed)
    misses = np.repeat(rng.random((3, size)) < density, rng.integers(1, 5), axis=1)  # longer runs, across words
    for fast, slow in zip(runs(misses), slow_runs(misses), strict=True):
        assert (fast == slow).all()
    assert ones(pack(misses)).tolist() == misses.sum(axis=1).tolist()


@pytest.mark.parametrize("size", [63, 64, 65, 127, 128, 129, 4096])
def test_one_run_of_everything(size):
    count, columns = runs(np.ones((1, size), bool))
    assert count.sum() == 1
    assert columns[0, size.bit_length() - 1] == size


@given(st.floats(0.01, 1), arrays(np.float32, 9, elements=st.floats(0, 1e6, width=32)), arrays(bool, 9))
def test_rerank_is_the_formula(gamma, scores, resident):
    expected = [s if r else np.float32(gamma) * s for s, r in zip(scores, resident, strict=True)]
    ranked = load_policy("dip-ca", gamma=gamma).rerank(scores, resident)
    assert ranked.dtype == np.float32
    assert ranked.tolist() == [float(score) for score in expected]


def test_the_baseline_of_the_benchmark_is_the_same_simulator():
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
    import baseline

    masks = wide_masks(seed=1, tokens=6)
    for eviction in ("lru", "lfu", "belady"):
        for capacity in (WIDE // 4, WIDE // 2, WIDE):
            expected = slow_hits(masks, capacity, eviction).sum(axis=1).tolist()
            assert baseline.replay(torch.from_numpy(masks), capacity, eviction) == expected
