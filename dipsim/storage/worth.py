"""Which columns are worth reading: the runs that gain the most score beyond what reading them costs.

A run costs its bytes, and for each of its reads as many bytes as Flash could have read through instead
(docs/background.md, section 5). The best set of runs is found exactly, by dynamic programming along the columns.
"""

from __future__ import annotations

import numpy as np

from dipsim.basics.arrays import Floats, Mask, Numbers
from dipsim.storage.flash import Flash
from dipsim.storage.placement import Placement


def run_bytes(placement: Placement, flash: Flash | None) -> float:
    """What a run costs besides its own bytes, in bytes."""
    if flash is None:
        return 0.0
    pages = float(flash.page_bytes(placement.piece_bytes))
    return placement.pieces * (flash.break_even(placement.piece_bytes + pages) + pages)


def alone(scores: Numbers, price: float, placement: Placement, flash: Flash | None) -> Mask:
    """Which columns of scores [T, N] are worth a read of their own, [T, N]; `price` is score per byte."""
    return np.asarray(scores > price * (placement.unit_bytes + run_bytes(placement, flash)))


def worth_reading(scores: Numbers, price: float, placement: Placement, flash: Flash | None) -> Mask:
    """The columns [T, N] that are worth reading for scores [T, N], at a `price` in score per byte.

    Pinned columns are never read. Among equal choices the one that reads less is made.
    """
    cold = placement.order[placement.hot :]
    gains = np.ascontiguousarray(scores[:, cold].T, dtype=np.float64) - price * placement.unit_bytes
    masks = np.zeros(scores.shape, dtype=bool)
    masks[:, cold] = best_runs(gains, price * run_bytes(placement, flash)).T
    return masks


def best_runs(gains: Floats, cost: float) -> Mask:
    """The runs of rows of gains [N, T] whose sum of gains, less `cost` for each run, is largest, [N, T] (bool)."""
    begins, ends = np.zeros(gains.shape, dtype=bool), np.zeros(gains.shape, dtype=bool)
    inside, outside = np.full(gains.shape[1], -np.inf), np.zeros(gains.shape[1])  # the best sum so far by state
    for row, gain in enumerate(gains):
        fresh = outside - cost
        np.greater(fresh, inside, out=begins[row])
        np.greater(inside, outside, out=ends[row])
        inside, outside = np.maximum(inside, fresh) + gain, np.maximum(inside, outside)
    chosen = np.zeros(gains.shape, dtype=bool)
    state = inside > outside
    for row in range(len(gains) - 1, -1, -1):
        chosen[row] = state
        state = np.where(state, ~begins[row], ends[row])
    return chosen
