"""Learns how to split the DRAM: tokens that are not counted are planned at several capacities, as tokens are planned.

So what a cache costs at a capacity is exact for the tokens that it is learned from, for every eviction, layout and
Flash, and for policies that see the cache. Between those capacities, costs lie on straight lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dipsim.basics.arrays import Floats, Ints
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.memory.split import Claim, best_split
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.experts import ExpertPlans
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.masks import LayerScores
from dipsim.planning.placer import Placer, calibrations
from dipsim.workload.level_requests import LevelRequests
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Trace, sequences

STEPS = 16  # capacities that are tried, from none to all; and the even one
MOST = 512  # tokens of a calibration trace: more take memory, and change little
STATIC, WHOLE = "lm_head and attention", "matrices read whole"


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
    wanted = [builder for builder in builders if builder.setting.split == "best" and builder.groups]
    for builder in wanted:
        _check(builder)
    others = calibrations(dict.fromkeys(wanted, "split: best"), shape, trace)
    if not learn:
        return
    for name in dict.fromkeys(builder.setting.calibration for builder in wanted):
        mine = [builder for builder in wanted if builder.setting.calibration == name]
        _learn(mine, trace, None if name is None else others[name], progress)


def _check(builder: PlanBuilder) -> None:
    policy, rule = builder.setting.policy.label, builder.rule
    if builder.precision is not None:
        raise InputError(f"split: best: {policy} already holds the levels that pay most in all layers; use even")
    if not rule.caches or rule.fixed:
        raise InputError(
            f"split: best: eviction {rule.name} has no cache that changes; use lru or lfu, or `learn-layout`, which "
            "chooses what to pin over all layers"
        )
    if builder.setting.scope == "model":
        raise InputError("split: best: one cache serves all layers, which has no split; use cache: { scope: layer }")
    if any(len(group.copies) > 1 for group in builder.groups):
        raise InputError(f"split: best: {policy} has copies of experts, whose units differ in size; use even")


def _learn(builders: Sequence[PlanBuilder], trace: Trace | None, other: Trace | None, progress: Progress) -> None:
    """Split the DRAM of builders that learn from the same tokens: of the calibration `other`, or else their own."""
    first, source = builders[0], other or trace
    assert source is not None
    if other is None:
        shown, starts = np.flatnonzero(~first.counted), _starts(first)
    else:
        shown = np.arange(min(MOST, other.tokens))
        starts = tuple(start for start in other.sequence_starts if start < len(shown))
    shared: list[tuple[Setting, list[PlanBuilder]]] = []  # the trials of builders that differ in their DRAM alone
    trials: dict[PlanBuilder, list[PlanBuilder]] = {}
    for builder in builders:
        alike = replace(builder.setting, dram_bytes=0.0)
        if alike not in [setting for setting, _ in shared]:
            shared.append((alike, [builder.trial(len(shown), starts, each) for each in _capacities(builder)]))
        even = builder.trial(len(shown), starts, [each.capacities for each in builder.caches])
        trials[builder] = [*next(mine for setting, mine in shared if setting == alike), even]
    tried = list(dict.fromkeys(trial for mine in trials.values() for trial in mine))
    placer = Placer(builders, first.shape, trace) if first.shape.mixture is None else None
    experts = ExpertPlans(tried)
    for index in source.layers:
        layer = LayerScores(source.layer(index, first.tokens if other is None else len(shown)))
        if placer is not None:
            placer.place(index, layer if other is None else None)
        assert not isinstance(layer.acts, LevelRequests)  # or there would have been levels
        seen = LayerScores(layer.acts.at(shown))
        if experts.mine:
            experts.collect(seen)
        else:
            for trial in tried:
                for caches in trial.caches:
                    seen.record(trial, caches, index)
        progress("learning how to split the DRAM", index + 1, first.shape.num_hidden_layers)
    experts.fill()
    for builder, mine in trials.items():
        _divide(builder, _claims(builder, mine))


def _starts(builder: PlanBuilder) -> tuple[int, ...]:
    """Where the sequences begin among the tokens that are not counted."""
    spans = sequences(builder.sequence_starts, builder.tokens)
    lengths = [int(np.count_nonzero(~builder.counted[begin:end])) for begin, end in spans]
    return tuple(np.cumsum([0, *lengths[:-1]]).tolist())


def _capacities(builder: PlanBuilder) -> Iterator[list[tuple[int, ...]]]:
    """Capacities to try, of each group in each layer: from none to all columns."""
    layers = builder.shape.num_hidden_layers
    for step in range(STEPS + 1):
        yield [(round(step / STEPS * each.columns),) * layers for each in builder.caches]


def _claims(builder: PlanBuilder, trials: Sequence[PlanBuilder]) -> list[Claim]:
    """What each cache costs by its size, as the trials found."""
    costs = [_costs(trial) for trial in trials]
    found = []
    for place, group in enumerate(builder.groups):
        for layer in np.flatnonzero(unit := builder.unit_bytes(group)):
            position = builder.position(builder.caches[place], int(layer))
            held = [trial.caches[place].capacities[layer] for trial in trials]
            columns, first = np.unique(held, return_index=True)
            cost = np.array([costs[index][position] for index in first])
            found.append(Claim(group.name, int(layer), float(unit[layer]), columns * unit[layer], cost))
    return found


def _costs(trial: PlanBuilder) -> Floats:
    """What a token reads from Flash because of its masks, [P]: seconds, or bytes where reads cost nothing else."""
    arrays, flash = trial.arrays, trial.setting.flash
    if flash is None:
        return np.asarray((arrays["flash_misses"] + arrays["flash_gaps"]).mean(axis=0))
    return np.asarray(flash.batch_time(arrays["reads"], arrays["read_bytes"]).mean(axis=0))


def _divide(builder: PlanBuilder, caches: Sequence[Claim]) -> None:
    """Give the DRAM of a builder to the claims of its caches and of what may be streamed."""
    budget, flash = builder.budget, builder.setting.flash
    static = budget.lm_head_bytes + budget.attention_bytes
    whole = budget.whole_resident_bytes + budget.whole_streamed_bytes
    streams: dict[str, tuple[float, float]] = {}  # all of it, and what is resident
    if builder.setting.stream_static:
        streams[STATIC] = static, static - budget.streamed_static_bytes
    if whole:
        streams[WHOLE] = whole, budget.whole_resident_bytes
    a_byte = 1.0 if flash is None else 1 / flash.peak_bandwidth  # what it costs to stream one
    claims = [
        Claim(name, None, 1.0, np.array([0.0, size]), np.array([size * a_byte, 0.0]))
        for name, (size, _) in streams.items()
    ]
    place = {group.name: place for place, group in enumerate(builder.groups)}
    counts: Ints = np.array([each.capacities for each in builder.caches])
    even = [resident for _, resident in streams.values()]
    even += [float(counts[place[claim.name], claim.layer] * claim.unit) for claim in caches]
    room = budget.total_bytes - budget.kv_cache_bytes - budget.policy_bytes - budget.buffer_bytes
    room -= 0.0 if STATIC in streams else static
    builder.split = split = best_split([*claims, *caches], np.array(even), room)
    held = dict(zip(streams, split.best.tolist(), strict=False))
    cached = split.best[len(streams) :]
    for claim, size in zip(caches, cached.tolist(), strict=True):
        counts[place[claim.name], claim.layer] = round(size / claim.unit)
    builder.divide(
        replace(
            budget,
            streamed_static_bytes=static - held.get(STATIC, static),
            whole_resident_bytes=held.get(WHOLE, 0.0),
            whole_streamed_bytes=whole - held.get(WHOLE, 0.0),
            cache_bytes=float(cached.sum()),
            capacities=tuple(map(tuple, counts.tolist())),
            unused_bytes=max(0.0, room - float(split.best.sum())),  # but for rounding
        )
    )
