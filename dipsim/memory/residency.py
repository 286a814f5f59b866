"""Which level of precision of each unit is held in DRAM: the static set that costs least and fits."""

from __future__ import annotations

import numpy as np

from dipsim.basics.arrays import Floats, Ints
from dipsim.basics.units import show

ROUNDS = 60  # of the bisection: finer than float64 can tell


def hold_levels(costs: Floats, sizes: Floats, room: float) -> Ints:
    """The level [U] of each unit that minimises the sum of costs [U, levels] while sizes [U, levels] fit into `room`.

    A level that cannot be costs inf. The optimum for a price of a byte is taken, the lowest price that fits being found
    by bisection; then what is left is filled with the steps up that save most a byte. Raises ValueError if not even
    the least that every unit may take fits.
    """
    units = np.arange(len(costs))
    possible = np.where(np.isfinite(costs), sizes, np.inf)
    if possible.min(axis=1).sum() > room:
        raise ValueError(f"at least {show(float(possible.min(axis=1).sum()), 'size')} are needed")

    def best(price: float) -> Ints:
        return np.asarray((costs + price * sizes).argmin(axis=1))

    def taken(levels: Ints) -> float:
        return float(sizes[units, levels].sum())

    if taken(best(0.0)) <= room:
        return best(0.0)
    low, high = 0.0, 1.0
    while taken(best(high)) > room and np.isfinite(2 * high):
        low, high = high, 2 * high
    chosen = best(high) if taken(best(high)) <= room else possible.argmin(axis=1)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        levels = best(middle)
        if taken(levels) > room:
            low = middle
        else:
            high, chosen = middle, levels
    return _filled(chosen, costs, sizes, room)


def _filled(levels: Ints, costs: Floats, sizes: Floats, room: float) -> Ints:
    """Levels with steps up that still fit, those first that save most for each byte; a unit takes one at most."""
    units = np.arange(len(levels))
    left = room - float(sizes[units, levels].sum())
    more = sizes - sizes[units, levels][:, None]
    saved = costs[units, levels][:, None] - costs
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where((more > 0) & (more <= left) & (saved > 0), saved / more, 0.0)
    found, best = levels.copy(), rate.argmax(axis=1)
    for unit in np.argsort(-rate[units, best], kind="stable")[: np.count_nonzero(rate[units, best])]:
        if more[unit, best[unit]] <= left:
            found[unit] = best[unit]
            left -= float(more[unit, best[unit]])
    return found
