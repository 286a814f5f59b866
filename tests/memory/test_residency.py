"""Which levels are held: against all combinations, and against the bound that any price of a byte gives."""

from itertools import product

import numpy as np
import pytest

from dipsim.memory.residency import hold_levels


def problem(units, levels=4, seed=0):
    random = np.random.default_rng(seed)
    costs = np.sort(random.exponential(1.0, (units, levels)))[:, ::-1].copy()
    sizes = np.cumsum(random.integers(1, 9, (units, levels)), axis=1).astype(float)
    sizes[:, 0] = 0
    return costs, sizes


def taken(levels, table):
    return float(table[np.arange(len(levels)), levels].sum())


@pytest.mark.parametrize("seed", range(6))
def test_it_fits_and_is_near_the_best_combination(seed):
    costs, sizes = problem(6, seed=seed)
    room = 0.55 * sizes[:, -1].sum()
    found = hold_levels(costs, sizes, room)
    assert taken(found, sizes) <= room
    combinations = [np.array(each) for each in product(range(4), repeat=6)]
    best = min(taken(each, costs) for each in combinations if taken(each, sizes) <= room)
    assert best <= taken(found, costs) <= best + costs.max()  # at most one unit is held too low


def test_many_units_fill_the_room_exactly():
    costs, sizes = problem(4000, seed=9)
    room = 0.4 * sizes[:, -1].sum()
    found = hold_levels(costs, sizes, room)
    assert room - 10 < taken(found, sizes) <= room


def test_room_for_all_and_levels_that_cannot_be():
    costs, sizes = problem(50, seed=2)
    assert (hold_levels(costs, sizes, sizes[:, -1].sum()) == 3).all()
    costs[:, 0] = np.inf
    tight = sizes[:, 1].sum() + 3
    found = hold_levels(costs, sizes, tight)
    assert found.min() == 1
    assert taken(found, sizes) <= tight
    with pytest.raises(ValueError, match=r"at least .* are needed"):
        hold_levels(costs, sizes, sizes[:, 1].sum() - 1)


def test_what_costs_nothing_is_not_held():
    costs = np.array([[0.0, 0.0, 0.0], [5.0, 1.0, 0.5]])
    assert hold_levels(costs, np.array([[0.0, 2, 4], [0.0, 2, 4]]), 100).tolist() == [0, 2]
