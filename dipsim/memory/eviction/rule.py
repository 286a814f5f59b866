"""The base of every eviction rule: what the cache tells a rule, and what it asks of it.

A token presents its whole mask at once. The cache then calls, in this order: `use`, before anything changes;
`newcomers` if the mask alone exceeds the capacity, or `victims` if residents must make room; `admit`, once the
contents have changed. By default a rule is one number per column, its *value*: the least valuable resident leaves
first, and the most valuable newcomer enters first. Among equals the lowest index comes first.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

import numpy as np

from dipsim.basics.arrays import Floats, Ints, Mask, SmallInts
from dipsim.sparsity.ranking import least

RULES: dict[str, type[EvictionRule]] = {}  # by name, in the order in which they were defined


class ValueUpdate(Enum):
    """How a value changes with a token, for kernels that keep the values of many caches themselves."""

    LAST_USE = "the position of the last use"
    USE_COUNT = "the number of uses"
    NEXT_USE = "how near the next use is"


class EvictionRule:
    """One cache's rule. `value` [columns] holds whole numbers that are never negative, 0 before anything happened.

    A rule is known by the name of its file, unless its class sets `name`. `masks` [T, columns] are those of the whole
    sequence; only a rule that `needs_future` is given them.
    """

    name: ClassVar[str]
    caches: ClassVar[bool] = True  # False: nothing is ever resident
    fixed: ClassVar[bool] = False  # True: what is resident at the start stays so
    needs_future: ClassVar[bool] = False  # True: all masks must be known beforehand
    bypass: ClassVar[bool] = False  # True: newcomers may be left out, and compete with the residents
    inclusive: ClassVar[bool] = False  # True: a larger cache holds whatever a smaller one holds
    on_gpu: ClassVar[ValueUpdate | None] = None  # how kernels update the value; None: only the CPU can
    drift: ClassVar[int] = 0  # how much a token adds to the values of the columns about to leave

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__module__.rpartition(".")[2].replace("_", "-")
        RULES[cls.name] = cls

    def __init__(self, columns: int, masks: Mask | None = None) -> None:
        self.value: SmallInts = np.zeros(columns, dtype=np.int16)
        self.token = 0  # tokens of the sequence so far
        self.capacity = float(columns)  # in the unit of `sizes`
        self.sizes: Floats = np.ones(columns)
        self._last_victim = self._last_newcomer = 0  # limits of the last searches, near which the next begin

    def use(self, mask: Mask, hits: Mask) -> None:
        """A token wants `mask` [columns] and finds `hits` of it. The contents have not changed yet."""
        self.touch(np.flatnonzero(mask), None)

    def touch(self, units: Ints, near: Ints | None) -> None:
        """A batch wants these units [n] in this order. The contents have not changed yet.

        `near` [n] says how near the next use of each is, as in `nearness`; only a rule that `needs_future` is given it.
        """

    def admit(self, mask: Mask, hits: Mask, resident: Mask) -> None:
        """The contents are now `resident` [columns]. Of them, `mask ^ hits` have just entered.

        It is also called before the first token, with what is resident then.
        """

    def victims(self, among: Mask, count: int) -> Mask:
        """Which `count` of the residents `among` [columns] leave; there are more of them than that."""
        chosen, self._last_victim = least(self.value, among, count, self._last_victim + self.drift)
        return chosen

    def leaving(self, among: Mask, excess: float, last_use: Ints) -> Ints:
        """Which of the resident units `among` [U] leave, so that `excess` or more is freed (all, if they are less).

        `last_use` [U] is the position of the last request of each unit.
        """
        units = np.flatnonzero(among)
        value = self.value[units]
        enough = int(excess / self.sizes.min()) + 1  # as many as could leave
        if enough < len(units):  # only the least valuable need an order
            near = value <= np.partition(value, enough - 1)[enough - 1]
            units, value = units[near], value[near]
        order = units[np.lexsort((last_use[units], value))]
        return order[: int(np.searchsorted(np.cumsum(self.sizes[order]), excess)) + 1]

    def newcomers(self, among: Mask, count: int) -> Mask:
        """Which `count` of the new columns `among` [columns] enter; there are more of them than that."""
        chosen, self._last_newcomer = least(-self.value, among, count, self._last_newcomer - self.drift)
        return chosen

    def widen(self) -> None:
        """Make room for large values."""
        self.value = self.value.astype(np.int64)

    def count_token(self) -> None:
        """Count a token, and widen the values before they could overflow."""
        self.token += 1
        if self.token > np.iinfo(self.value.dtype).max:
            self.widen()


def nearness(masks: Mask) -> SmallInts:
    """How near the next use of each column is after token t, [T, N]: T + 1 - (its token), 0 if it has none."""
    tokens, columns = masks.shape
    kind = np.int16 if tokens < np.iinfo(np.int16).max else np.int64
    result = np.empty((tokens, columns), dtype=kind)
    now = np.zeros(columns, dtype=kind)
    for token in range(tokens - 1, -1, -1):
        result[token] = now
        np.maximum(now, masks[token] * kind(tokens + 1 - token), out=now)
    return result


def next_use(masks: Mask) -> Ints:
    """The token after t that uses each column next, [T, N]; T + 1 if there is none."""
    return len(masks) + 1 - nearness(masks).astype(np.int64)
