"""Which columns are worth reading: the runs that gain the most score beyond what reading them costs.

A run costs the time that its pages take, given in bytes that Flash could read in this time at full speed. The best set
of runs is found exactly, by dynamic programming along the columns (docs/background/equations.md, section 2).
"""

from __future__ import annotations

import numpy as np

from dipsim.basics.arrays import Floats, Mask, Numbers
from dipsim.storage.flash import Flash
from dipsim.storage.pages import Pages
from dipsim.storage.placement import Placement

LONGEST = 120  # pages; the states of a run are kept in bytes
FLAT = 0.02  # of a page's bytes: what costs that much less is as good as read at full speed


def run_costs(placement: Placement, flash: Flash | None) -> Floats:
    """What the k-th page of a run costs in bytes, for k = 1, 2, ...; all from the last one on cost their mean.

    Without pages, that is what the k-th column costs.
    """
    size = placement.pieces * placement.page_bytes
    if flash is None:
        return np.array([size])
    seconds = flash.transfer_time(placement.page_bytes * np.arange(max(2, placement.pages.count + 1)))
    costs = np.diff(seconds) * (placement.pieces * flash.peak_bandwidth)
    first = min(len(costs), LONGEST, 1 + int(np.flatnonzero(np.abs(costs - size) > FLAT * size).max(initial=-1) + 1))
    return np.append(costs[: first - 1], costs[first - 1 :].mean())


def worth_reading(scores: Numbers, price: float, placement: Placement, flash: Flash | None) -> Mask:
    """The columns [T, N] that are worth reading for scores [T, N], at a `price` in score per byte.

    Pinned columns are never read.
    """
    cold = placement.order[placement.hot :]
    gains = np.ascontiguousarray(scores[:, cold].T, dtype=np.float64)
    pages = Pages(placement.pages.first[placement.hot :], placement.pages.end[placement.hot :])
    masks = np.zeros(scores.shape, dtype=bool)
    masks[:, cold] = best_runs(gains, price * run_costs(placement, flash), pages).T
    return masks


def cost_of_leaving(
    wanted: Mask, scores: Numbers | None, price: float, placement: Placement, flash: Flash | None
) -> Floats:
    """What it costs on average that a column is not pinned, [N], by what tokens want [T, N] if nothing is.

    The columns wanted of a run share what it costs at the `price`; any other costs its score [T, N], if that counts.
    """
    laid, pages = placement.laid(wanted), placement.pages
    touched = pages.touched(laid)
    begins = touched & ~np.roll(touched, 1, axis=1)
    begins[:, 0] = touched[:, 0]
    run = np.cumsum(begins).reshape(touched.shape)  # all tokens' runs have different numbers, from 1
    length = np.bincount(run[touched], minlength=run.max() + 1)
    mine = run[:, pages.first]  # the run that a column lies in, if it is wanted
    among = np.bincount(mine[laid], minlength=len(length))
    whole = price * _run_totals(run_costs(placement, flash), pages.count)
    share = (whole[length] / np.maximum(among, 1))[mine]
    unwanted = 0.0 if scores is None else placement.laid(scores)
    mean = np.where(laid, share, unwanted).mean(axis=0)
    found = np.empty(placement.columns)
    found[placement.order] = mean
    return found


def best_runs(gains: Floats, costs: Floats, pages: Pages) -> Mask:
    """The runs of rows whose sum of gains [N, T], less what they cost, is largest for each token, [N, T] (bool).

    Row n lies on `pages`. The k-th page of a run costs `costs[k - 1]`; all beyond cost as much as the last.
    """
    (rows, tokens), last = gains.shape, len(costs)
    total = _run_totals(costs, last + pages.count)
    alone = pages.end - pages.first
    added = np.diff(pages.end, prepend=pages.first[:1])  # by a row to a run that holds the row before it
    more_costs = {more: (total[more:] - total[: len(total) - more])[: last + 1, None] for more in set(added.tolist())}
    # A run under way is in the state of its number of pages; the last state stands for all that are longer.
    inside = np.full((last + 1, tokens), -np.inf)  # the best sum so far by state, of which 0 is never reached
    outside = np.zeros(tokens)  # the best sum so far with no run under way
    ended = np.zeros((rows, tokens), dtype=np.int8)  # the state before a row that no run holds; 0 for none
    began = np.zeros((rows, tokens), dtype=bool)  # whether a run in the state of this row alone begins here
    came = np.zeros((rows, tokens), dtype=np.int8)  # the state before this row of a run in the last state
    for row, (more, first) in enumerate(zip(added.tolist(), np.minimum(alone, last).tolist(), strict=True)):
        started = outside + (gains[row] - total[alone[row]])
        best = inside.max(axis=0)
        ends = best > outside
        ended[row] = np.where(ends, inside.argmax(axis=0), 0)
        outside = np.maximum(best, outside)
        before, inside = inside - more_costs[more], np.full_like(inside, -np.inf)
        inside[more:] = before[: max(0, last + 1 - more)]
        long = before[max(0, last - more) :]  # all that get to the last state
        came[row] = long.argmax(axis=0) + max(0, last - more)
        inside[last] = long.max(axis=0)
        inside += gains[row]
        began[row] = started > inside[first]
        np.maximum(inside[first], started, out=inside[first])
    state = np.where(inside.max(axis=0) > outside, inside.argmax(axis=0), 0)
    chosen = np.zeros((rows, tokens), dtype=bool)
    for row in range(rows - 1, -1, -1):
        chosen[row] = state > 0
        before = np.where(state == last, came[row], state - added[row])
        before[began[row] & (state == min(alone[row], last))] = 0
        state = np.where(state == 0, ended[row], before)
    return chosen


def _run_totals(costs: Floats, pages: int) -> Floats:
    """What runs of 0, 1, ..., `pages` pages cost."""
    each = np.concatenate((costs, np.full(max(0, pages - len(costs)), costs[-1])))
    return np.concatenate(([0.0], np.cumsum(each[: max(pages, 1)])))
