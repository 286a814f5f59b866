"""Which tokens are computed together, and which follow each other: drafts that are verified, and streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dipsim.basics.arrays import Ints
from dipsim.basics.errors import InputError
from dipsim.clock.clocked import Clocked, Speculation
from dipsim.planning.fetch_plan import FetchPlan
from dipsim.planning.precision import has_levels
from dipsim.planning.steps import check_order
from dipsim.planning.stepwise import check_tier
from dipsim.timing.device import Device


@dataclass(frozen=True)
class Cycle:
    """The tokens of the trace that are computed together, and how many of them are accepted."""

    tokens: range
    accepted: int = 1

    @property
    def drafts(self) -> int:
        """How many of them are drafts."""
        return len(self.tokens) - 1


def cycles(counted: Sequence[int], begins: Ints, speculation: Speculation | None) -> list[Cycle]:
    """Every counted token by itself; or each with the drafts after it, as many as are verified together.

    `begins` [T] is where the sequence of each token starts. The drafts that turn out wrong are taken to use what the
    right tokens use.
    """
    if speculation is None:
        return [Cycle(range(token, token + 1)) for token in counted]
    random, left = np.random.default_rng(speculation.seed), set(counted)
    found: list[Cycle] = []
    place = 0
    while place < len(counted):
        first = last = counted[place]
        while last - first < speculation.draft and last + 1 in left and begins[last + 1] == begins[first]:
            last += 1
        right = random.random(last - first) < speculation.acceptance
        found.append(Cycle(range(first, last + 1), 1 + int(np.cumprod(right).sum())))
        place += found[-1].accepted
    return found


def streams(rows: int, count: int) -> list[range]:
    """The rows of each of `count` streams, as equal stretches. Raises InputError if there are fewer rows than that."""
    if rows < count:
        raise InputError(f"streams: {count} streams of {rows} tokens; use a longer trace, or fewer streams")
    return [range(begin, end) for begin, end in pairwise(round(rows * each / count) for each in range(count + 1))]


def check_clock(plan: FetchPlan, options: Clocked, device: Device) -> None:
    """Raise InputError if a plan, which need not be filled in, cannot be made on the clock of a device."""
    if has_levels(plan.groups):
        raise InputError(
            f"policy {plan.setting.policy.label}: levels of precision are planned beforehand; leave out prefetch, "
            "speculate, streams, contention, tiers and units"
        )
    check_order(plan.setting, plan.groups)
    for tier in device.tiers:
        check_tier(tier.name, tier.eviction)
    layers = int(np.count_nonzero(plan.shape.is_mixture)) or plan.shape.num_hidden_layers
    if options.prefetch is not None and options.prefetch.ahead > layers:
        raise InputError(f"prefetch: ahead: {options.prefetch.ahead} is more than the {layers} layers; give less")
    if options.speculation is not None:
        lengths = [end - begin for begin, end in pairwise((*plan.sequence_starts, plan.rows))]
        if max(lengths) < 2:
            raise InputError("speculate: the trace has one token to decode, and drafts need more; use a longer trace")
    streams(plan.rows, options.streams)
