"""Which columns are worth reading: the runs that gain the most score beyond what reading them costs.

A run costs the time that it takes, given in bytes that Flash could read in this time at full speed. The best set of
runs is found exactly, by dynamic programming along the columns (docs/background.md, section 5).
"""

from __future__ import annotations

import numpy as np

from dipsim.basics.arrays import Floats, Mask, Numbers
from dipsim.storage.flash import Flash
from dipsim.storage.placement import Placement

LONGEST = 64  # columns; in a longer run, another column costs as much as the last of these
FLAT = 0.01  # of a column's bytes; where costs change by less from one column to the next, they are taken as equal


def run_costs(placement: Placement, flash: Flash | None) -> Floats:
    """What the k-th column of a run costs in bytes, for k = 1, 2, ...; the last one stands for all that follow."""
    if flash is None:
        return np.array([placement.unit_bytes])
    sizes = placement.piece_bytes * np.arange(LONGEST + 1)
    read = sizes + np.where(sizes > 0, flash.page_bytes(placement.piece_bytes), 0.0)
    costs = np.diff(flash.transfer_time(read)) * (placement.pieces * flash.peak_bandwidth)
    changing = np.flatnonzero(np.abs(np.diff(costs)) > FLAT * placement.unit_bytes)
    return np.asarray(costs[: changing[-1] + 2 if len(changing) else 1])


def worth_reading(scores: Numbers, price: float, placement: Placement, flash: Flash | None) -> Mask:
    """The columns [T, N] that are worth reading for scores [T, N], at a `price` in score per byte.

    Pinned columns are never read.
    """
    cold = placement.order[placement.hot :]
    gains = np.ascontiguousarray(scores[:, cold].T, dtype=np.float64)
    masks = np.zeros(scores.shape, dtype=bool)
    masks[:, cold] = best_runs(gains, price * run_costs(placement, flash)).T
    return masks


def cost_of_leaving(
    wanted: Mask, scores: Numbers | None, price: float, placement: Placement, flash: Flash | None
) -> Floats:
    """What it costs on average that a column is not pinned, [N], by what tokens want [T, N] if nothing is.

    A column that is wanted costs its share of its run at the `price`; any other costs its score [T, N], if that counts.
    """
    laid = placement.laid(wanted)
    index = np.arange(placement.columns)
    before = np.maximum.accumulate(np.where(laid, -1, index), axis=1)  # the last column that is not wanted, or itself
    after = np.minimum.accumulate(np.where(laid, placement.columns, index)[:, ::-1], axis=1)[:, ::-1]
    length = np.where(laid, after - before - 1, 1)
    costs = run_costs(placement, flash)
    whole = np.cumsum(np.concatenate((costs, np.full(max(0, placement.columns - len(costs)), costs[-1]))))
    share = price * np.asarray(whole[length - 1], dtype=np.float64) / length
    unwanted = 0.0 if scores is None else placement.laid(scores)
    mean = np.where(laid, share, unwanted).mean(axis=0)
    found = np.empty(placement.columns)
    found[placement.order] = mean
    return found


def best_runs(gains: Floats, costs: Floats) -> Mask:
    """The runs of rows whose sum of gains [N, T], less what they cost, is largest for each token, [N, T] (bool).

    The k-th row of a run costs `costs[k - 1]`; all rows beyond cost as much as the last.
    """
    rows, tokens = gains.shape
    last = len(costs) - 1
    longer = np.zeros((rows, tokens), dtype=bool)  # whether a run in its last state was in it one row before
    ended = np.zeros((rows, tokens), dtype=np.int8)  # the state before this row where no run is under way, 0 for none
    inside = np.full((last + 1, tokens), -np.inf)  # the best sum so far, by how many rows the run under way has
    outside = np.zeros(tokens)
    for row in range(rows):
        here, best = inside.argmax(axis=0), inside.max(axis=0)
        ends = best > outside
        ended[row] = np.where(ends, here + 1, 0)
        before = np.concatenate((outside[None], inside[:-1]))
        longer[row] = inside[-1] >= before[-1]
        before[-1] = np.maximum(inside[-1], before[-1])
        outside = np.where(ends, best, outside)
        inside = before + gains[row] - costs[:, None]
    state = np.where(inside.max(axis=0) > outside, inside.argmax(axis=0) + 1, 0)
    chosen = np.zeros((rows, tokens), dtype=bool)
    for row in range(rows - 1, -1, -1):
        chosen[row] = state > 0
        stays = (state == last + 1) & longer[row]
        state = np.where(state == 0, ended[row], np.where(stays, state, state - 1))
    return chosen
