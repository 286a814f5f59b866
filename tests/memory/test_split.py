"""Bytes go where they save most: by hand, against all splits there are, and never beyond the room."""

from itertools import product

import numpy as np
import pytest

from dipsim.memory.split import Claim, best_split, total_cost


def claim(costs, unit=2.0, name="a", layer=0):
    """A claim that costs so much with 0, 1, 2, ... units."""
    return Claim(name, layer, unit, unit * np.arange(len(costs)), np.array(costs, dtype=float))


STEEP, FLAT, LATE = claim([9, 4, 2, 1]), claim([9, 8, 7, 6]), claim([9, 9, 9, 0])  # LATE as LRU on a loop


def test_the_dearest_bytes_come_first():
    """Units save 5, 2, 1 of one claim, and 1, 1, 1 of the other; of equals, the first claim's come first."""
    for units, expected in ((1, [1, 0]), (2, [2, 0]), (3, [3, 0]), (4, [3, 1]), (6, [3, 3]), (9, [3, 3])):
        split = best_split([STEEP, FLAT], np.zeros(2), 2.0 * units + 1.5)
        assert split.best.tolist() == [2.0 * each for each in expected], units
    assert best_split([FLAT, STEEP], np.zeros(2), 6).best.tolist() == [2, 4]


def test_what_the_next_byte_saves_is_read_off_the_hull():
    assert [STEEP.saves(size) for size in (0, 1, 2, 5.9, 6)] == [2.5, 2.5, 1, 0.5, 0]
    assert [LATE.saves(size) for size in (0, 5, 6)] == [1.5, 1.5, 0]
    assert [STEEP.cost(size) for size in (0, 1, 6)] == [9, 6.5, 1]
    assert claim([3, 3]).steps() == []


def test_a_cost_that_falls_late_gets_all_or_is_left_to_the_even_split():
    split = best_split([LATE, FLAT], np.array([2.0, 4.0]), 6)
    assert (split.best.tolist(), split.best_cost, split.even_cost) == ([6, 0], 9, 16)
    even = np.array([2.0, 2.0])  # with 4 bytes the hull of LATE promises 6, and its two units save nothing
    split = best_split([LATE, FLAT], even, 4)
    assert (split.best.tolist(), split.best_cost) == ([2, 2], 17)


def test_what_saves_nothing_is_shared_by_what_is_lacking():
    idle = [claim([5, 0, *[0] * 4]), claim([5, 0, *[0] * 8])]
    assert best_split(idle, np.zeros(2), 4 + 12).best.tolist() == [2 + 4, 2 + 8]  # a half of 8 and of 16
    assert best_split(idle, np.zeros(2), 100).best.tolist() == [10, 18]


def test_streams_take_any_number_of_bytes():
    stream = Claim("whole", None, 1.0, np.array([0, 10.5]), np.array([21, 0]))
    assert best_split([stream, STEEP], np.zeros(2), 3.9).best.tolist() == [1, 2]
    assert best_split([stream, STEEP], np.zeros(2), 99).best.tolist() == [10.5, 6]


@pytest.mark.parametrize("seed", range(6))
def test_no_split_is_better_where_no_byte_saves_more_than_the_one_before(seed):
    rng = np.random.default_rng(seed)
    claims = [claim(20 - np.cumsum([0, *np.sort(rng.integers(0, 5, 4))[::-1]])) for _ in range(3)]
    room = 2.0 * rng.integers(1, 12)
    every = [2.0 * np.array(units) for units in product(range(5), repeat=3)]
    least = min(total_cost(claims, sizes) for sizes in every if sizes.sum() <= room)
    found = best_split(claims, np.zeros(3), room)
    assert found.best_cost == least
    assert room - 3 * 2 < found.best.sum() <= room  # less than a unit of each lies idle


@pytest.mark.parametrize("seed", range(6))
def test_any_claims_fit_and_cost_no_more_than_evenly(seed):
    rng = np.random.default_rng(seed)
    units = rng.choice([0.5, 3, 7], 5)
    claims = [claim(np.sort(rng.integers(0, 30, 9))[::-1], unit) for unit in units]
    room = 40 * rng.random()
    even = room / 5 // units * units
    found = best_split(claims, even, room)
    assert found.best.sum() <= room
    assert found.best_cost <= found.even_cost
    assert (found.best / units == np.round(found.best / units)).all()
    assert all(0 <= size <= each.sizes[-1] for size, each in zip(found.best, claims, strict=True))
