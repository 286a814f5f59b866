"""The column cache against the reference's counts (tests/data/cache_hits.json says how they were obtained)."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import (
    CLAIRVOYANT,
    EVICTIONS,
    FIGURES,
    explicit_masks,
    libcachesim_hits,
    lognormal_masks,
    most_hits,
    zipf_stream,
)

from dipsim.basics.errors import InputError
from dipsim.memory.cache import ColumnCache, replay
from dipsim.memory.stack_distance import hit_curve

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 9)))


@pytest.mark.parametrize("case", FIGURES["cases"], ids=lambda case: f"seed{case['seed']}-{case['args']['density']}")
def test_reference_counts(case):
    masks = lognormal_masks(case["seed"], **case["args"])
    digest = hashlib.sha256(np.packbits(masks, axis=1).tobytes()).hexdigest()
    assert digest == case["sha256_packbits_axis1"]
    assert masks.sum() == case["total_requests"]
    for row in case["hits"]:
        for eviction in ("lru", "lfu", "belady"):
            assert replay(masks, row["capacity"], eviction).sum() == row[eviction]
            assert hit_curve(masks, eviction)[row["capacity"]] == row[eviction]


@pytest.mark.parametrize("case", FIGURES["explicit"], ids=lambda case: f"{case['policy']}-{case['N']}x{case['T']}")
def test_reference_token_by_token(case):
    masks = explicit_masks(case)
    assert replay(masks, case["capacity"], case["policy"]).tolist() == case["hits_per_token"]
    cache = ColumnCache(case["N"], case["capacity"], case["policy"], masks if case["policy"] in CLAIRVOYANT else None)
    for mask in masks:
        cache.step(mask)
    assert np.flatnonzero(cache.resident).tolist() == case["final_cache"]


@given(MASKS, st.sampled_from(EVICTIONS))
def test_one_pass_equals_a_replay_at_every_capacity(masks, eviction):
    replays = [replay(masks, capacity, eviction).sum() for capacity in range(masks.shape[1] + 1)]
    assert hit_curve(masks, eviction).tolist() == replays


@given(MASKS, st.sampled_from(("lru", "lfu", "belady", "optimal")))
def test_a_larger_cache_never_hits_less(masks, eviction):
    assert (np.diff(hit_curve(masks, eviction)) >= 0).all()


@given(MASKS)
def test_no_rule_beats_optimal_and_belady_beats_the_blind_when_masks_fit(masks):
    curves = {eviction: hit_curve(masks, eviction) for eviction in EVICTIONS}
    for curve in curves.values():
        assert (curve <= curves["optimal"]).all()
    fits = np.arange(masks.shape[1] + 1) >= masks.sum(axis=1).max()
    for blind in ("lru", "lfu"):
        assert (curves[blind][fits] <= curves["belady"][fits]).all()


@given(MASKS, st.data())
def test_optimal_equals_the_linear_program(masks, data):
    capacity = data.draw(st.integers(0, masks.shape[1]))
    assert replay(masks, capacity, "optimal").sum() == pytest.approx(most_hits(masks, capacity))


@pytest.mark.parametrize("capacity", [1, 2, 5, 20, 45])
@pytest.mark.parametrize(("eviction", "peer"), [("lru", "LRU"), ("belady", "Belady")])
def test_libcachesim_agrees_request_by_request(eviction, peer, capacity):
    """An independent simulator, on streams of one column a token."""
    columns = zipf_stream(tokens=2000, columns=60, seed=capacity)
    masks = columns[:, None] == np.arange(60)
    assert replay(masks, capacity, eviction).astype(bool).tolist() == libcachesim_hits(peer, columns, capacity)


@given(MASKS, st.sampled_from(EVICTIONS), st.data())
def test_residents_never_exceed_the_capacity_and_hits_were_resident(masks, eviction, data):
    capacity = data.draw(st.integers(0, masks.shape[1]))
    cache = ColumnCache(masks.shape[1], capacity, eviction, masks if eviction in CLAIRVOYANT else None)
    for mask in masks:
        before = cache.resident.copy()
        hits = cache.step(mask)
        assert (hits == (mask & before)).all()
        assert cache.resident.sum() <= capacity
        if eviction in ("lru", "lfu", "belady") and mask.sum() <= capacity:
            assert (cache.resident & mask).sum() == mask.sum()


@pytest.mark.parametrize(
    ("masks", "capacity", "eviction", "complaint"),
    [
        (np.ones((2, 3), bool), 4, "lru", "capacity: must be a whole number of columns from 0 to 3"),
        (np.ones((2, 3), bool), -1, "lru", "capacity"),
        (np.ones((2, 3), bool), 1.5, "lru", "capacity"),
        (np.ones((2, 3), bool), True, "lru", "capacity"),
        (np.ones((2, 3), int), 1, "lru", "must be bool"),
        (np.ones(3, bool), 1, "lru", "must be bool"),
        (np.ones((2, 3), bool), 1, "nonesuch", "eviction: 'nonesuch' is not one of"),
    ],
)
def test_misuse_is_one_line(masks, capacity, eviction, complaint):
    with pytest.raises(InputError, match=complaint):
        replay(masks, capacity, eviction)
