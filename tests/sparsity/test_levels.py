"""Levels of precision: their bytes against a table made by hand, and choices against trying every level."""

import numpy as np
import pytest

from dipsim.sparsity.calibrated import NESTED
from dipsim.sparsity.levels import Level, Levels, Units, at_levels, costs_of_levels, worth_levels

NO = np.inf
LEVELS = 6


def test_bytes_of_the_nested_code():
    """Codes of 1 to 4 bits, each with scales of 0.25 bits of its own; the highest level has scales of 0.5 bits."""
    assert NESTED.shares * 4.5 == pytest.approx([0, 1.25, 2.25, 3.25, 4.25, 4.5])
    steps = [
        [0, 1.25, 2.25, 3.25, 4.25, 4.5],
        [NO, 0, 1.25, 2.25, 3.25, 3.5],
        [NO, NO, 0, 1.25, 2.25, 2.5],
        [NO, NO, NO, 0, 1.25, 1.5],
        [NO, NO, NO, NO, 0, 0.5],
        [NO, NO, NO, NO, NO, 0],
    ]
    assert NESTED.steps * 4.5 == pytest.approx(np.array(steps))
    assert NESTED.rises
    assert NESTED.top == 5
    assert NESTED.resident_bytes(288) == pytest.approx([5, 80 + 4, 144 + 3, 208 + 2, 272 + 1, 288])


def test_scales_that_are_shared_are_read_once():
    shared = Levels((Level(0), Level(2, 0.5), Level(3, 0.5, False), Level(5, 1.0)))
    assert shared.steps * 6 == pytest.approx(
        np.array([[0, 2.5, 3.5, 6], [NO, 0, 1, 4], [NO, NO, 0, 3], [NO, NO, NO, 0]])
    )


@pytest.mark.parametrize(
    "each",
    [
        (Level(0),),
        (Level(1), Level(2)),
        (Level(0), Level(2, 0.5), Level(2, 0.5, False)),
        (Level(0), Level(3, 0.5), Level(2, 0.5)),
        (Level(0), Level(2, 1.0), Level(2, 1.0)),
    ],
)
def test_levels_that_do_not_increase(each):
    assert not Levels(each).rises


def test_from_nothing_scales_are_always_read():
    assert Levels((Level(0), Level(2, 0.5, False))).steps[0, 1] * 2.5 == pytest.approx(2.5)


def random_units(units=7, parts=5, lowest=0, seed=3):
    random = np.random.default_rng(seed)
    errors = np.sort(random.exponential(2.0, (units, LEVELS)))[:, ::-1].copy()
    errors[:, -1] = 0
    weights = random.dirichlet(np.ones(parts))
    return Units(errors, random.exponential(1.0, (parts, units)), weights, lowest)


@pytest.mark.parametrize("command", [0.0, 40.0])
def test_costs_of_levels_by_loops(command):
    """Streaming costs its bytes, reading a unit by itself a command besides; with free commands nothing is streamed."""
    units, price = random_units(lowest=1), 0.03
    fetch = NESTED.steps * 72
    reading = price * (fetch + np.where(fetch > 0, command, 0.0))
    found, bases = costs_of_levels(units, price * fetch, reading)
    for unit in range(7):
        for resident in range(LEVELS):
            each = {}
            for base in range(max(resident, 1), LEVELS):
                asked = sum(
                    weight
                    * min(score * units.errors[unit, to] + reading[base, to] for to in range(base, LEVELS))
                    for weight, score in zip(units.weights, units.scores[:, unit], strict=True)
                )  # fmt: skip
                each[base] = price * fetch[resident, base] + asked
            assert found[unit, resident] == pytest.approx(min(each.values()))
            assert bases[unit, resident] == min(each, key=each.get)
    streamed = bases > np.arange(LEVELS)
    assert streamed[:, 0].all()
    assert streamed[:, 1:].any() == (command > 0)


def test_the_level_of_least_cost_by_trying_all():
    units = random_units()
    resident = np.array([0, 1, 2, 3, 5, 2, 4])
    reading = 0.02 * 72 * NESTED.steps[resident]
    scores = np.random.default_rng(5).exponential(1.5, (3, 11, 7)).astype(np.float32)
    found = worth_levels(scores, units.errors.astype(np.float32), reading.astype(np.float32))
    assert found.dtype == np.uint8
    expected = (scores[..., None] * units.errors + reading).argmin(axis=-1)
    assert (found == expected).all()
    assert (found >= resident).all()
    assert len(set(found.ravel().tolist())) >= 4
    assert (at_levels(reading, found) == np.take_along_axis(reading[None, None], found[..., None], -1)[..., 0]).all()


def test_equal_levels_take_the_lowest():
    assert worth_levels(np.zeros((1, 2)), np.ones((2, 3)), np.zeros((2, 3))).tolist() == [[0, 0]]


def test_tensors_are_chosen_alike():
    torch = pytest.importorskip("torch")
    units = random_units()
    scores, reading = np.random.default_rng(6).random((20, 7)), 0.01 * 72 * NESTED.steps[[0, 0, 1, 2, 2, 3, 5]]
    found = worth_levels(*map(torch.from_numpy, (scores, units.errors, reading)))
    assert (found.numpy() == worth_levels(scores, units.errors, reading)).all()
