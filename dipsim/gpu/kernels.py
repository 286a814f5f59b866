"""Selection and caching on a GPU: a program for each row, which holds the row's columns in registers.

They do what `sparsity.ranking.top_k`, `memory.cache.ColumnCache` and `storage.runs` do, with the same ties. As on the
CPU, a limit is found by counting which columns reach it, here bit by bit from the highest. A cache's step is one
ranking: hits before newcomers before residents outside the mask, each by value. The first `capacity` are resident
afterwards.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipsim.memory.eviction.rule import EvictionRule, ValueUpdate

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
WARPS = 32  # the most that a program can have
RUNS = 3  # where the runs begin in a row of counts, behind the columns wanted, found and held
_RUNS = tl.constexpr(RUNS)


@triton.jit
def _limit(key, count, lowest, BITS: tl.constexpr):
    """A limit that `count` keys reach, or with equals the largest that more do; keys in lowest + [0, 2^BITS)."""
    limit = lowest
    reached = count + 1
    bit = BITS - 1
    while (bit >= 0) & (reached != count):
        trial = limit ^ (tl.full((), 1, key.dtype) << bit)
        reaching = tl.sum((key >= trial).to(tl.int32))
        reached = tl.where(reaching >= count, reaching, reached)
        limit = tl.where(reaching >= count, trial, limit)
        bit -= 1
    return limit


@triton.jit
def _reaching(key, limit, count, last):
    """Which are the `count` largest keys, given their limit: of equals those of lowest index, or highest if `last`."""
    above = key > limit
    equal = key == limit
    order = tl.cumsum(equal.to(tl.int32))
    order = tl.where(last, tl.sum(equal.to(tl.int32)) + 1 - order, order)
    return above | (equal & (order <= count - tl.sum(above.to(tl.int32))))


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _choose(
    scores, k, masks, nan, columns, largest, infinity, BITS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    inside = i < columns
    pattern = tl.load(scores + row * columns + i, mask=inside, other=0)
    magnitude = pattern & largest
    key = tl.where(pattern < 0, -magnitude, magnitude)  # integers in the order of the floats; -0 is 0
    lowest = -tl.full((), largest, key.dtype) - 1
    key = tl.where(inside, key, lowest)
    count = tl.load(k + row)
    chosen = _reaching(key, _limit(key, count, lowest, BITS), count, False)
    tl.store(masks + row * columns + i, chosen, mask=inside)
    if tl.max(magnitude) > infinity:
        tl.store(nan + row, 1)


@triton.jit
def _tally(masks, source, stride, resident, counts, clock, tokens, places, columns, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(clock)
    i = tl.arange(0, SIZE)
    inside = i < columns
    masks += (tl.load(source + row) + stride * token) * columns
    resident += row * columns
    counts += (row * tokens + token) * places
    wanted = tl.load(masks + i, mask=inside, other=0).to(tl.int32)
    missed = wanted & (tl.load(resident + i, mask=inside, other=0).to(tl.int32) ^ 1)
    following = i + 1 < columns
    next_missed = tl.load(masks + i + 1, mask=following, other=0).to(tl.int32)
    next_missed &= tl.load(resident + i + 1, mask=following, other=0).to(tl.int32) ^ 1
    gap = tl.associative_scan(tl.where(missed > 0, -1, i), 0, _larger)  # the last column that is not missed
    length = tl.where((missed > 0) & (next_missed == 0), i - gap, 0)  # of the run that ends here
    tl.store(counts, tl.sum(wanted))
    tl.store(counts + 1, tl.sum(wanted) - tl.sum(missed))
    classes = (places - _RUNS) // 2
    longest = tl.max(length)
    r = 0
    while (longest >> r) > 0:
        here = (length >> r) == 1
        tl.store(counts + _RUNS + r, tl.sum(here.to(tl.int32)))
        tl.store(counts + _RUNS + classes + r, tl.sum(tl.where(here, length, 0)))
        r += 1


@triton.jit
def _step(
    masks, source, stride, values, resident, capacities, counts, clock, tokens, places, columns,
    BITS: tl.constexpr, GIVEN: tl.constexpr, COUNTS: tl.constexpr, BYPASS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(clock)
    i = tl.arange(0, SIZE)
    inside = i < columns
    begin = (tl.load(source + row) + stride * token) * columns
    wanted = tl.load(masks + begin + i, mask=inside, other=0).to(tl.int32)
    held = tl.load(resident + row * columns + i, mask=inside, other=0).to(tl.int32)
    values += begin if GIVEN else row * columns
    value = tl.load(values + i, mask=inside, other=0).to(tl.int32)
    if not GIVEN:
        now = (tl.load(clock + 1) + 1).to(tl.int32)
        value = value + wanted if COUNTS else tl.where(wanted > 0, now, value)
        tl.store(values + i, value, mask=inside)
    place = wanted | held if BYPASS else 2 * wanted + held
    key = (place << BITS) | value
    capacity = tl.load(capacities + row)
    limit = _limit(key, capacity, tl.full((), 0, tl.int32), BITS + 2)
    keep = _reaching(key, limit, capacity, (limit >> BITS) == 1) & (place > 0)
    tl.store(resident + row * columns + i, keep, mask=inside)
    tl.store(counts + (row * tokens + token) * places + 2, tl.sum(keep.to(tl.int32)))


def _program(columns: int) -> dict[str, Any]:
    size = triton.next_power_of_2(columns)
    return {"SIZE": size, "num_warps": max(1, min(WARPS, size // 1024))}


def top_k_rows(scores: Tensor, k: Tensor, masks: Tensor, nan: Tensor) -> None:
    """Mask the k [R] (int32) largest of each row of scores [R, N] (float32 or float64) into masks [R, N] (bool).

    All are contiguous. `nan` [R] (uint8) becomes 1 where a score is not a number.
    """
    integers = INTEGERS[scores.dtype]
    largest = torch.iinfo(integers).max
    infinity = int(torch.tensor(float("inf"), dtype=scores.dtype).view(integers))
    rows, columns = scores.shape
    _choose[(rows,)](
        scores.view(integers), k, masks.view(torch.uint8), nan, columns, largest, infinity,
        BITS=torch.iinfo(integers).bits, **_program(columns),
    )  # fmt: skip


class Caches:
    """R caches of `columns` columns side by side, `capacities` [R] int32. They begin empty.

    `clock` [2] int64 is the next token and its position in its sequence. It is on the device, as all that differs from
    token to token, so that a step can be recorded once and replayed. `counts` [R, tokens, places] int32 is what each
    token did to each cache: how many columns it wanted, found and left resident, then the runs of missed columns by
    class and the columns they hold. Raises ValueError for an eviction rule that has no kernel.
    """

    def __init__(self, capacities: Tensor, columns: int, rule: type[EvictionRule], tokens: int) -> None:
        if rule.on_gpu is None:
            raise ValueError(f"eviction {rule.name}: has no kernel")
        rows, device = len(capacities), capacities.device
        self.capacities = capacities if rule.caches else torch.zeros_like(capacities)
        self.resident = torch.zeros((rows, columns), dtype=torch.bool, device=device)
        self.counts = torch.zeros((rows, tokens, places(columns)), dtype=torch.int32, device=device)
        self.clock = torch.zeros(2, dtype=torch.int64, device=device)
        self._values = torch.zeros((rows, columns), dtype=value_type(tokens), device=device)
        self._rule, self._bits = rule, (tokens + 1).bit_length()

    def clear(self) -> None:
        """Begin a new sequence."""
        self.resident.zero_()
        self._values.zero_()
        self.clock[1] = 0

    def step(self, masks: Tensor, source: Tensor, stride: int, future: Tensor | None = None) -> None:
        """Present the next token's masks: to cache r the row `source[r]` + `stride` * token of masks [..., N], bool.

        `source` [R] is int64. `future` [..., N] is the `nearness` of each mask's columns, if the rule needs it.
        """
        (rows, tokens, classes), columns = self.counts.shape, self.resident.shape[1]
        shown = masks.view(torch.uint8), source, stride
        resident, program = self.resident.view(torch.uint8), _program(columns)
        _tally[(rows,)](*shown, resident, self.counts, self.clock, tokens, classes, columns, **program)
        _step[(rows,)](
            *shown, self._values if future is None else future, resident, self.capacities, self.counts, self.clock,
            tokens, classes, columns, BITS=self._bits, GIVEN=future is not None,
            COUNTS=self._rule.on_gpu is ValueUpdate.USE_COUNT, BYPASS=self._rule.bypass, **program,
        )  # fmt: skip
        self.clock += 1


def places(columns: int) -> int:
    """The length of a row of counts."""
    return RUNS + 2 * columns.bit_length()


def value_type(tokens: int) -> torch.dtype:
    """The dtype of a column's value over a sequence of so many tokens."""
    return torch.int16 if tokens < torch.iinfo(torch.int16).max else torch.int32


def nearness(masks: Tensor) -> Tensor:
    """How near the next use of each column is, [..., T, N] of masks [..., T, N], as `memory.eviction.rule.nearness`."""
    tokens = masks.shape[-2]
    result = torch.zeros(masks.shape, dtype=value_type(tokens), device=masks.device)
    now = result[..., 0, :].clone()
    for token in range(tokens - 1, -1, -1):
        result[..., token, :] = now
        now = torch.where(masks[..., token, :], tokens + 1 - token, now)
    return result
