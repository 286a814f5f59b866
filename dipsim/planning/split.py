"""Learns how to split the DRAM, from tokens that are not counted: what a token reads from Flash at several capacities.

Each cache is simulated by itself at `STEPS` capacities and at the even one. That is exact for what it learns from, for
every eviction and for policies that see the cache; between those capacities costs lie on straight lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dipsim.basics.arrays import Mask
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.memory.cache import find_residents
from dipsim.memory.split import Claim, best_split
from dipsim.planning.builder import LayerCaches, PlanBuilder
from dipsim.planning.masks import LayerScores, aware_masks
from dipsim.planning.placer import Placer, calibrations
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Trace, sequences

STEPS = 16  # capacities from none to all columns
STATIC, WHOLE = "lm_head and attention", "matrices read whole"


@dataclass(frozen=True)
class _Shown:
    """What one layer is learned from: the tokens `shown` [T] (bool), whose sequences begin at `starts` among them."""

    layer: LayerScores
    shown: Mask
    starts: Sequence[int]


def learn_splits(
    builders: Sequence[PlanBuilder],
    shape: ModelShape,
    trace: Trace | None = None,
    *,
    learn: bool = True,
    progress: Progress = silent,
) -> None:
    """Split the DRAM of all builders whose setting asks for the best split; without `learn`, only check that it can be.

    They plan a model of this shape on `trace` (None: on a live model). Raises InputError if there is nothing to split,
    or nothing to learn it from.
    """
    claims: dict[PlanBuilder, list[Claim]] = {
        builder: [] for builder in builders if builder.setting.split == "best" and builder.groups
    }
    for builder in claims:
        _check(builder)
    traces = calibrations(dict.fromkeys(claims, "split: best"), shape, trace)
    if not claims or not learn:
        return
    placer = Placer(list(claims), shape, trace)
    for index in range(shape.num_hidden_layers):
        own = None if trace is None else LayerScores(trace.layer(index, builders[0].tokens))
        others = {name: LayerScores(other.layer(index)) for name, other in traces.items()}
        placer.place(index, own)
        for builder, mine in claims.items():
            name = builder.setting.calibration
            if name is not None:
                shown = _Shown(others[name], np.ones(traces[name].tokens, dtype=bool), traces[name].sequence_starts)
            else:
                assert own is not None
                shown = _Shown(own, ~builder.counted, _starts(builder))
            mine += [_claim(builder, caches, index, shown) for caches in builder.caches if builder.rule.caches]
        progress("learning how to split the DRAM", index + 1, shape.num_hidden_layers)
    for builder, mine in claims.items():
        _divide(builder, mine)


def _check(builder: PlanBuilder) -> None:
    policy, rule = builder.setting.policy.label, builder.rule
    if builder.precision is not None:
        raise InputError(f"split: best: {policy} already holds the levels that pay most in all layers; use even")
    if rule.fixed:
        raise InputError(
            f"split: best: eviction {rule.name} holds what its layout pins; use `dipsim learn-layout`, which chooses "
            "what to pin over all layers, or an eviction that lets columns change"
        )
    if builder.shape.mixture is not None:
        raise InputError(f"split: best: {policy} chooses experts, whose caches are of equal bytes or one; use even")


def _starts(builder: PlanBuilder) -> list[int]:
    """Where the sequences begin among the tokens that are not counted."""
    spans = sequences(builder.sequence_starts, builder.tokens)
    lengths = [int(np.count_nonzero(~builder.counted[begin:end])) for begin, end in spans]
    return np.cumsum([0, *lengths[:-1]]).tolist()


def _claim(builder: PlanBuilder, caches: LayerCaches, index: int, shown: _Shown) -> Claim:
    """What the cache of one group in one layer costs by its size."""
    unit, even = float(builder.unit_bytes(caches.group)[index]), caches.capacities[index]
    known = np.unique(np.append(np.linspace(0, caches.columns, STEPS + 1).round().astype(int), even))
    costs = [_cost(builder, caches, index, int(capacity), shown) for capacity in known]
    return Claim(caches.group.name, index, unit, known * unit, np.array(costs))


def _cost(builder: PlanBuilder, caches: LayerCaches, index: int, capacity: int, shown: _Shown) -> float:
    """What a token reads from Flash with so many columns cached: seconds, or bytes where reads cost nothing else."""
    if caches.policy.cache_aware:
        there = replace(caches, capacities=(capacity,) * len(caches.capacities))
        masks, residents = aware_masks(there, index, shown.layer.scores_of(caches)[shown.shown], shown.starts)
    else:
        masks = shown.layer.masks_of(caches)[shown.shown]
        residents = find_residents(masks, capacity, caches.eviction, shown.starts)
    found, _ = builder.fetch(caches, index, masks, residents)
    flash = builder.setting.flash
    return float((found.read_bytes.sum(axis=1) if flash is None else found.seconds(flash)).mean())


def _divide(builder: PlanBuilder, caches: Sequence[Claim]) -> None:
    """Give the DRAM of a builder to the claims of its caches and of what may be streamed."""
    budget, flash, layers = builder.budget, builder.setting.flash, builder.shape.num_hidden_layers
    static = budget.lm_head_bytes + budget.attention_bytes
    whole = budget.whole_resident_bytes + budget.whole_streamed_bytes
    streams = {WHOLE: (whole, budget.whole_resident_bytes)} if whole else {}  # all of it, and what is resident
    if builder.setting.stream_static:
        streams[STATIC] = static, static - budget.streamed_static_bytes
    a_byte = 1.0 if flash is None else 1 / flash.peak_bandwidth  # what it costs to stream one
    claims = [
        Claim(name, None, 1.0, np.array([0.0, size]), np.array([size * a_byte, 0.0]))
        for name, (size, _) in streams.items()
    ]
    columns = np.transpose(budget.in_layers(layers)).ravel()  # of each layer those of all groups
    even = [resident for _, resident in streams.values()]
    even += [count * claim.unit for count, claim in zip(columns.tolist(), caches, strict=False)]
    room = sum(even) + budget.unused_bytes
    builder.split = split = best_split([*claims, *caches], np.array(even), room)
    held = dict(zip(streams, split.best.tolist(), strict=False))
    cached = split.best[len(streams) :]
    counts = np.round(cached / [claim.unit for claim in caches]).astype(int).reshape(layers, -1)
    builder.divide(
        replace(
            budget,
            streamed_static_bytes=static - held.get(STATIC, static),
            whole_resident_bytes=held.get(WHOLE, 0.0),
            whole_streamed_bytes=whole - held.get(WHOLE, 0.0),
            cache_bytes=float(cached.sum()),
            capacities=tuple(map(tuple, counts.T.tolist())) if caches else budget.capacities,
            unused_bytes=room - float(split.best.sum()),
        )
    )
