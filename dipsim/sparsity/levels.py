"""Levels of precision: what each takes of a unit, what lies between them, and which is worth its bytes.

A unit (a row or a column of a matrix) has ordered levels, from nothing to all of its bits. Its residency is a level,
and so is a request. A mask is the case of two levels (docs/background/precision.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from dipsim.basics.arrays import Floats, Ints, Numbers


class Level(NamedTuple):
    """Bits of a weight at one level: of its `code`, and of its share of the scales.

    Without `own_scales` they are those of the level below.
    """

    code: float
    scales: float = 0.0
    own_scales: bool = True


@dataclass(frozen=True)
class Levels:
    """The levels of a unit, the first of which is nothing and the last all that there is.

    A unit also keeps `noted` bytes in DRAM for each level above the one that is resident: what choosing among them
    needs to know.
    """

    each: tuple[Level, ...]
    noted: float = 0.0

    @property
    def top(self) -> int:
        """The highest level."""
        return len(self.each) - 1

    @cached_property
    def shares(self) -> Floats:
        """What each level takes of the highest one's bits, [levels]."""
        bits = np.array([level.code + level.scales for level in self.each])
        return np.asarray(bits / bits[-1])

    @cached_property
    def steps(self) -> Floats:
        """What must be fetched to get from one level to a higher one, [from, to], in shares of the highest one's bits.

        These are the bits that the code has more, and the scales unless they are there already; inf downwards.
        """
        found = np.full((len(self.each), len(self.each)), np.inf)
        for low, below in enumerate(self.each):
            found[low, low] = 0.0
            for high in range(low + 1, len(self.each)):
                above = self.each[high]
                there = low > 0 and not any(level.own_scales for level in self.each[low + 1 : high + 1])
                found[low, high] = above.code - below.code + (0.0 if there else above.scales)
        return np.asarray(found / (self.each[-1].code + self.each[-1].scales))

    @property
    def rises(self) -> bool:
        """Whether the first level takes nothing, each takes more than the one below, and so does what is fetched."""
        if len(self.each) < 2 or self.each[-1].code + self.each[-1].scales <= 0 or self.shares[0]:
            return False
        steps = [self.steps[low, low:] for low in range(len(self.each))]
        return all((np.diff(found) > 0).all() for found in (self.shares, *steps))

    def resident_bytes(self, unit_bytes: float) -> Floats:
        """Bytes that a unit of `unit_bytes` takes in DRAM at each level, [levels], with what is noted of it."""
        return np.asarray(self.shares * unit_bytes + self.noted * np.arange(self.top, -1, -1))


@dataclass(frozen=True)
class Units:
    """What a calibration knows of the units of one group in one layer.

    `errors` [N, levels] is what a unit of score 1 is expected to cost at each level, 0 at the highest. `scores` [Q, N]
    are typical scores, the means of parts of all tokens of `weights` [Q], which sum to 1. No token has a unit below the
    level `lowest`.
    """

    errors: Floats
    scores: Floats
    weights: Floats
    lowest: int = 0


def costs_of_levels(units: Units, streaming: Floats, reading: Floats) -> tuple[Floats, Ints]:
    """What each resident level costs a token on average, [N, levels], and the level that every token then has.

    Getting from one level to another costs `streaming` [from, to] for every token, in one large read, or `reading`
    [from, to] for a token that asks for it. What is then missing costs its error.
    """
    levels = units.errors.shape[1]
    asked = np.full(units.errors.shape, np.inf)  # by the level that every token has
    for base in range(units.lowest, levels):
        best = units.scores * units.errors[:, base]
        for level in range(base + 1, levels):
            np.minimum(best, units.scores * units.errors[:, level] + reading[base, level], out=best)
        asked[:, base] = units.weights @ best
    each = asked[:, None, :] + streaming
    return each.min(axis=2), np.asarray(each.argmin(axis=2), dtype=np.int64)


def worth_levels(scores: Any, errors: Any, reading: Any) -> Any:
    """The level [..., N] (uint8) of least cost, of scores [..., N], a numpy array or a torch tensor.

    A level costs the score times its `errors` [N, levels], and what `reading` it costs [N, levels], inf where it cannot
    be. Of equals it is the lowest.
    """
    best: Any = scores * errors[:, 0] + reading[:, 0]
    is_array = isinstance(best, np.ndarray)
    chosen: Any = np.zeros(best.shape, np.uint8) if is_array else best.new_zeros(best.shape).byte()
    for level in range(1, errors.shape[1]):
        cost = scores * errors[:, level] + reading[:, level]
        if is_array:
            np.copyto(chosen, level, where=cost < best)
            np.minimum(best, cost, out=best)
        else:
            chosen.masked_fill_(cost < best, level)
            best = best.minimum(cost)
    return chosen


def at_levels(table: Numbers, levels: Numbers) -> Numbers:
    """The values [..., N] of a table [N, levels] at levels [..., N]."""
    return np.asarray(table[np.arange(len(table)), levels])
