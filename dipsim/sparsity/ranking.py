"""Ranking columns: the largest scores, the least valuable columns, and one rule for ties.

Among equals the lowest index comes first, everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dipsim.basics.arrays import Mask, Numbers, SmallInts

_NARROW = 512  # columns that one call of `nonzero` searches as fast as a bisection


def top_k(scores: Any, k: int) -> Any:
    """Mask [..., N] of the k largest scores of each row [..., N], a numpy array or a torch tensor.

    Among equals the lowest index comes first. No column is chosen for k <= 0, and all are for k >= N.
    """
    return _top_k_of_tensor(scores, k) if hasattr(scores, "topk") else _top_k_of_array(scores, k)


def _top_k_of_array(scores: Numbers, k: int) -> Mask:
    size = scores.shape[-1]
    if k >= size or k <= 0:
        return np.full(scores.shape, k > 0)
    if size <= _NARROW and scores.ndim > 1:  # many short rows: all of them at once
        limits = np.partition(scores, size - k, axis=-1)[..., size - k, None]
        mask = np.asarray(scores >= limits)
        left = np.count_nonzero(mask, axis=-1) > k
        if left.any():
            mask[left] = _top_k_of_rows(scores[left], k)
        return mask
    return _top_k_of_rows(scores, k)


def _top_k_of_rows(scores: Numbers, k: int) -> Mask:
    """`top_k` a row at a time, which keeps a long row in the processor's cache."""
    size = scores.shape[-1]
    mask = np.empty(scores.shape, dtype=bool)
    for row, best in zip(scores.reshape(-1, size), mask.reshape(-1, size), strict=True):
        limit = np.partition(row, size - k)[size - k]
        if np.count_nonzero(np.greater_equal(row, limit, out=best)) > k:  # only some of the equals at the limit fit
            np.greater(row, limit, out=best)
            best |= first(row == limit, k - int(np.count_nonzero(best)))
    return mask


def _top_k_of_tensor(scores: Any, k: int) -> Any:
    """`top_k` in the methods of a torch tensor, so that this module needs no torch."""
    if k <= 0 or k >= scores.shape[-1]:
        return scores.new_full(scores.shape, k > 0).bool()
    limit = scores.topk(k, dim=-1, sorted=True).values[..., -1:]
    above, equal = scores > limit, scores == limit
    room = k - above.sum(dim=-1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=-1) <= room))


def score_threshold(scores: Numbers, k: int) -> float:
    """The score that k columns reach on average over the tokens of scores [T, N]."""
    return float(np.quantile(scores, 1 - k / scores.shape[-1])) if k else float("inf")


def least(values: SmallInts, among: Mask, count: int, guess: int) -> tuple[Mask, int]:
    """The `count` least valuable of the columns `among` [N], and the limit that they do not exceed.

    Of equals, those of lowest index are chosen. The limit is found by counting how many values lie below a trial,
    which begins at `guess`: the limit of the last call is near, so a few counts replace a partition. Raises ValueError
    unless more than `count` columns are among them.
    """

    def below(limit: int) -> tuple[Mask, int]:
        chosen = values < limit
        chosen &= among
        return chosen, int(np.count_nonzero(chosen))

    low = high = guess  # at most `count` columns are below the one, more below the other
    chosen, found = above, more = below(guess)
    step = 1
    while found > count:
        high, above = low, chosen
        low, step = low - step, 2 * step
        chosen, found = below(low)
    while more <= count:
        if step > np.iinfo(np.int64).max:  # no value is larger
            raise ValueError(f"least: {count} of {more} columns are wanted; fewer than there are can be chosen")
        low, chosen, found = high, above, more
        high, step = high + step, 2 * step
        above, more = below(high)
    while high - low > 1:
        middle = (low + high) // 2
        trial, more = below(middle)
        if more > count:
            high, above = middle, trial
        else:
            low, chosen, found = middle, trial, more
    if found < count:
        above ^= chosen  # the columns at the limit, of which there are too many
        chosen |= first(above, count - found)
    return chosen, low


def first(columns: Mask, count: int) -> Mask:
    """Keep the `count` columns of lowest index, in place; 0 < count <= how many there are. A bisection by counts."""
    begin, end = 0, len(columns)
    while end - begin > _NARROW:
        middle = (begin + end) // 2
        before = int(np.count_nonzero(columns[begin:middle]))
        if before < count:
            begin, count = middle, count - before
        else:
            end = middle
    columns[begin + columns[begin:end].nonzero()[0][count - 1] + 1 :] = False
    return columns
