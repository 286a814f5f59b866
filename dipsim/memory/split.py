"""Splits DRAM over all that wants it: each next byte goes where it saves most.

What a claim costs falls as it gets bytes. Where no byte saves more than the one before it, taking those first that save
most is the best split (Everett 1963). A cost that falls late, such as that of LRU on a loop, is taken along its lower
convex hull: all bytes up to where it has fallen. What is left for the last of them may be too little
(docs/background/equations.md, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dipsim.basics.arrays import Floats


@dataclass(frozen=True)
class Claim:
    """What wants DRAM: with `sizes` [P] bytes of it, rising from 0 to all it can use, a token costs `costs` [P].

    It takes whole units of `unit` bytes. `layer` is None for what is of the whole model. Between the known sizes, costs
    lie on straight lines.
    """

    name: str
    layer: int | None
    unit: float
    sizes: Floats
    costs: Floats

    def cost(self, size: float) -> float:
        """What a token costs with so many bytes."""
        return float(np.interp(size, self.sizes, self.costs))

    def steps(self) -> list[tuple[float, float]]:
        """What a byte saves, and of how many bytes, along the hull: the most first, nothing left out that saves."""
        hull = [0]
        for point in range(1, len(self.sizes)):
            while len(hull) > 1 and self._rate(hull[-1], point) >= self._rate(hull[-2], hull[-1]):
                hull.pop()
            hull.append(point)
        found = [(self._rate(a, b), float(self.sizes[b] - self.sizes[a])) for a, b in pairwise(hull)]
        return [(rate, size) for rate, size in found if rate > 0]

    def saves(self, size: float) -> float:
        """What the next byte saves where it has so many, along the hull; 0 where none does."""
        for rate, step in self.steps():
            if size < step:
                return rate
            size -= step
        return 0.0

    def _rate(self, a: int, b: int) -> float:
        return float((self.costs[a] - self.costs[b]) / (self.sizes[b] - self.sizes[a]))


@dataclass(frozen=True)
class Split:
    """Claims, and the bytes of each: of the even split and of the best one, [claims] each."""

    claims: tuple[Claim, ...]
    even: Floats
    best: Floats

    @property
    def even_cost(self) -> float:
        """What a token costs with the even split, by the claims."""
        return total_cost(self.claims, self.even)

    @property
    def best_cost(self) -> float:
        """What a token costs with the best split, by the claims."""
        return total_cost(self.claims, self.best)


def total_cost(claims: Sequence[Claim], sizes: Floats) -> float:
    """What a token costs with so many bytes of each claim."""
    return sum(claim.cost(size) for claim, size in zip(claims, sizes.tolist(), strict=True))


def best_split(claims: Sequence[Claim], even: Floats, room: float) -> Split:
    """A split of `room` bytes that costs a token little: the best along the hulls, which of the last step takes a part
    or leaves it out, whichever costs less; the `even` one, which must fit, where neither costs less.

    Bytes that save nothing go to all claims in proportion to what they lack: the tokens to come may want them.
    """
    steps = sorted(
        ((rate, size, index) for index, claim in enumerate(claims) for rate, size in claim.steps()),
        key=lambda step: -step[0],
    )
    found = [*(_filled(claims, steps, room, in_part) for in_part in (True, False)), even]
    best = min(found, key=lambda sizes: total_cost(claims, sizes))
    return Split(tuple(claims), even, best)


def _filled(claims: Sequence[Claim], steps: Sequence[tuple[float, float, int]], room: float, in_part: bool) -> Floats:
    """The bytes of each claim if these steps are taken in turn; what does not fit is taken in part, or left out."""
    sizes = np.zeros(len(claims))
    for _, size, index in steps:
        taken = size if size <= room else room // claims[index].unit * claims[index].unit if in_part else 0.0
        sizes[index] += taken
        room -= taken
    units = np.array([claim.unit for claim in claims])
    lacking = np.array([claim.sizes[-1] for claim in claims]) - sizes
    share = 1.0 if room >= lacking.sum() else room / lacking.sum()
    return sizes + (lacking if share == 1.0 else lacking * share // units * units)
