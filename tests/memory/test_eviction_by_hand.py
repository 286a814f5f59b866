"""What leaves a cache and what enters, by hand and by sorting everything."""

import numpy as np
import pytest

from dipsim.memory.eviction import RULES
from dipsim.memory.eviction.lru import Lru
from dipsim.memory.eviction.rule import EvictionRule, nearness, next_use

LFU = RULES["lfu"]


def rule(value, sizes=None, kind=LFU):
    """A rule whose units have these values."""
    made = kind(len(value))
    made.value = np.array(value, dtype=np.int16)
    if sizes is not None:
        made.sizes = np.array(sizes, dtype=np.float64)
    return made


def mask(*columns, size=5):
    return np.isin(np.arange(size), columns)


@pytest.mark.parametrize(
    ("excess", "leaving"), [(0.5, [3]), (1, [3]), (1.5, [3, 1]), (3, [3, 1]), (3.5, [3, 1, 4]), (99, [3, 1, 4, 2, 0])]
)
def test_units_leave_by_value_then_by_age_until_enough_is_free(excess, leaving):
    made = rule([5, 1, 3, 1, 2], [1, 2, 1, 1, 4])
    assert made.leaving(np.ones(5, dtype=bool), excess, np.array([0, 4, 1, 2, 3])).tolist() == leaving


def test_only_residents_leave():
    made = rule([5, 1, 3, 1, 2], [1, 2, 1, 1, 4])
    assert made.leaving(mask(0, 2, 4), 4.5, np.arange(5)).tolist() == [4, 2]
    assert made.leaving(mask(0), 0.1, np.arange(5)).tolist() == [0]


@pytest.mark.parametrize("seed", range(40))
def test_leaving_is_what_sorting_everything_finds(seed):
    rng = np.random.default_rng(seed)
    made = rule(rng.integers(0, 4, 30), rng.choice([1.0, 1.5, 4.0], 30))
    among, last_use = rng.random(30) < 0.7, rng.permutation(30)
    excess = rng.uniform(0.1, 20)
    order = sorted(np.flatnonzero(among).tolist(), key=lambda unit: (made.value[unit], last_use[unit]))
    freed = np.cumsum(made.sizes[order])
    assert made.leaving(among, excess, last_use).tolist() == order[: int((freed < excess).sum()) + 1]


@pytest.mark.parametrize(("count", "leave", "enter"), [(1, [1], [0]), (2, [1, 3], [0, 2]), (3, [1, 3, 4], [0, 2, 4])])
def test_the_least_valuable_leave_and_the_most_valuable_enter(count, leave, enter):
    made, every = rule([5, 1, 3, 1, 2]), np.ones(5, dtype=bool)
    for _ in range(2):  # the second search begins where the first ended
        assert np.flatnonzero(made.victims(every, count)).tolist() == leave
        assert np.flatnonzero(made.newcomers(every, count)).tolist() == enter


def test_of_equals_the_lowest_index_comes_first():
    made = rule([2, 2, 2, 2, 2])
    assert np.flatnonzero(made.victims(mask(1, 2, 4), 2)).tolist() == [1, 2]
    assert np.flatnonzero(made.newcomers(mask(1, 2, 4), 2)).tolist() == [1, 2]


def test_how_near_the_next_use_is():
    """Of three tokens: column 0 is used at 0 and 2, column 1 at 1, column 2 never again after 0."""
    masks = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=bool)
    assert nearness(masks).tolist() == [[2, 3, 0], [2, 0, 0], [0, 0, 0]]
    assert next_use(masks).tolist() == [[2, 1, 4], [2, 4, 4], [4, 4, 4]]
    assert nearness(masks).dtype == np.int16
    long = np.zeros((np.iinfo(np.int16).max, 1), dtype=bool)
    assert nearness(long).dtype == np.int64
    assert nearness(long[1:]).dtype == np.int16


def test_values_widen_before_they_overflow():
    made = Lru(2)
    made.token = np.iinfo(np.int16).max - 1
    made.count_token()
    assert made.value.dtype == np.int16
    made.use(mask(1, size=2), mask(size=2))
    assert made.value.dtype == np.int64
    assert made.value.tolist() == [0, 2**15]


def test_a_plain_rule_does_nothing():
    made = EvictionRule(3)
    assert (made.value.tolist(), made.sizes.tolist(), made.capacity, made.token) == ([0, 0, 0], [1, 1, 1], 3, 0)
    made.use(mask(1, size=3), mask(size=3))
    made.admit(mask(1, size=3), mask(size=3), mask(1, size=3))
    assert made.value.tolist() == [0, 0, 0]
    facts = (made.caches, made.fixed, made.needs_future, made.bypass, made.inclusive, made.on_gpu, made.drift)
    assert facts == (True, False, False, False, False, None, 0)
