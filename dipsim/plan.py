"""Trace x Policy x Cache -> FetchPlan: what every token reads, from where, in which pieces. No time in here.

Planning is layer-major: one layer's activations are read once and every setting is planned over them, so memory
stays at one layer's block. Columns of a matrix lie in Flash in index order: adjacent missing columns are one read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dipsim.bits import ones, pack, packed_runs
from dipsim.budget import Budget, allot, unit_bytes
from dipsim.cache import CLAIRVOYANT, Eviction, Mask
from dipsim.files import InputError
from dipsim.model import ModelShape
from dipsim.policy import (
    ATTENTION,
    LM_HEAD,
    PREDICTOR_BITS,
    WHOLE,
    Group,
    Policy,
    checked_groups,
    guarded,
    whole_matrices,
)
from dipsim.selection import choose, scores, select_aware, sequences, serve
from dipsim.trace import Trace

Floats = NDArray[np.float64]
Whole = NDArray[np.signedinteger[Any]]
Processor = Literal["cpu", "cuda"]  # that plans, not that is simulated
Key = tuple[type[Policy], str, Group]  # the same for the same scores and ranking
Progress = Callable[[int, int], object]  # layers done, layers


@dataclass(frozen=True)
class Setting:
    """One thing to plan. `dram_bytes`: the DRAM for weights and KV cache. `prompt`: positions before the trace's."""

    policy: Policy
    dram_bytes: float
    eviction: Eviction = "lfu"
    prompt: int = 0
    stream_static: bool = False


@dataclass(frozen=True)
class FetchPlan:
    """What every token reads at each of P positions: the steps of layer 0, of layer 1, ..., then lm_head.

    Arrays [T, P] in bytes: `dram_static` and `flash_static` are known before the token starts (attention, KV cache,
    lm_head, matrices read whole), `dram_hits` and `flash_misses` only once the mask is. `reads` and `read_bytes`
    [T, P, R] count the Flash reads of the misses and their bytes by size: class r holds runs of 2^r to 2^(r+1) - 1
    columns. `static_reads` [P]: reads behind `flash_static`. `flops` [T, P].
    """

    setting: Setting
    shape: ModelShape
    groups: tuple[Group, ...]
    budget: Budget
    sequence_starts: tuple[int, ...]
    layer: NDArray[np.int64]  # [P]; num_hidden_layers for lm_head
    step: tuple[str, ...]  # [P]
    dram_static: Floats
    flash_static: Floats
    static_reads: Floats
    dram_hits: Floats
    flash_misses: Floats
    reads: NDArray[np.int32]
    read_bytes: Floats
    flops: Floats
    peak_cache_bytes: Floats  # [P]: the most that a position's caches ever held

    @property
    def tokens(self) -> int:
        return len(self.dram_hits)

    @cached_property
    def fetches(self) -> tuple[NDArray[np.intp], Floats, Floats]:
        """The positions [Q] with reads of misses, how many and their bytes [T, Q, S]; S: the size classes in use."""
        sizes = np.flatnonzero(self.reads.any(axis=(0, 1)))
        where = np.flatnonzero(self.reads[..., sizes].any(axis=(0, 2)))
        picked = (sizes[:, None, None], np.arange(self.tokens)[:, None], where)
        count, total = np.moveaxis(self.reads, 2, 0)[picked], np.moveaxis(self.read_bytes, 2, 0)[picked]
        return where, np.moveaxis(count.astype(np.float64), 0, 2), np.moveaxis(total, 0, 2)

    @property
    def peak_dram_bytes(self) -> float:
        """The most DRAM in use at any time: static parts, matrices read whole, and what the caches came to hold."""
        static = self.budget.static_bytes - self.budget.streamed_static_bytes
        return float(static + self.budget.whole_resident_bytes + self.peak_cache_bytes.sum())

    @property
    def is_mlp(self) -> NDArray[np.bool_]:
        """[P]: positions that read MLP weights."""
        return np.array([name not in (ATTENTION, LM_HEAD) for name in self.step])

    @property
    def dram_bytes(self) -> Floats:
        """[T, P]"""
        return self.dram_static + self.dram_hits

    @property
    def flash_bytes(self) -> Floats:
        """[T, P]"""
        return self.flash_static + self.flash_misses


def plan(
    trace: Trace,
    settings: Sequence[Setting],
    tokens: int | None = None,
    progress: Progress = lambda _done, _total: None,
    layers: int | None = None,
    processor: Processor = "cpu",
) -> list[FetchPlan]:
    """Plan every setting over the first `tokens` tokens and `layers` layers, by default all.

    `progress(layers done, layers)` is called after each layer. With the `processor` "cuda" a GPU plans all
    settings side by side (extra `cuda`); the plans are the same.

    Raises InputError if a setting does not fit the trace, its policy or its DRAM, and if there is no such processor.
    """
    tokens = trace.tokens if tokens is None else tokens
    if not 0 < tokens <= trace.tokens:
        raise InputError(f"tokens: {tokens} asked for, the trace {trace.name} has {trace.tokens}; ask for 1 to that")
    starts = tuple(start for start in trace.sequence_starts if start < tokens)
    plans = [empty(trace.shape, setting, tokens, starts) for setting in settings]
    if not plans:
        return plans
    layers = trace.shape.num_hidden_layers if layers is None else layers
    if processor == "cpu":
        fill(trace, plans, layers, progress)
    else:
        from dipsim.live import planning

        planning.fill(trace, plans, layers, progress, processor)
    for fetch_plan in plans:
        for array in vars(fetch_plan).values():
            if isinstance(array, np.ndarray):
                array.setflags(write=False)
    return plans


def fill(trace: Trace, plans: Sequence[FetchPlan], layers: int, progress: Progress) -> None:
    """Enter what the masks of each layer read into empty plans, which are of one trace and as many tokens."""
    tokens, starts = plans[0].tokens, plans[0].sequence_starts
    for index in range(layers):
        acts = trace.layer(index, tokens)
        valued: dict[Key, NDArray[Any]] = {}  # scores, of cache-aware policies only
        blind: dict[Key, Mask] = {}  # masks that serve every DRAM size and eviction
        for fetch_plan in plans:
            for group, capacity in zip(fetch_plan.groups, fetch_plan.budget.capacities, strict=True):
                policy, eviction = fetch_plan.setting.policy, fetch_plan.setting.eviction
                key = (type(policy), policy.label, group)
                if policy.cache_aware:
                    if key not in valued:
                        valued[key] = scores(policy, group, acts)
                    masks, hits = select_aware(policy, group, valued[key], capacity, eviction, starts)
                else:
                    if key not in blind:
                        blind[key] = choose(group, scores(policy, group, acts))
                    masks = blind[key]
                    hits = serve(masks, capacity, eviction, starts)
                account(fetch_plan, index, group, masks, hits)
        progress(index + 1, layers)


def empty(shape: ModelShape, setting: Setting, tokens: int, starts: tuple[int, ...]) -> FetchPlan:
    """A plan with its static parts filled in and no masked reads yet. Raises InputError if it cannot work."""
    policy = setting.policy
    groups = checked_groups(policy, shape)
    if policy.cache_aware and setting.eviction in CLAIRVOYANT:
        raise InputError(
            f"eviction: {setting.eviction} needs to know all masks beforehand, but those of {policy.label} depend on "
            "the cache; use lru, lfu or none"
        )
    position = np.concatenate([np.arange(end - begin) for begin, end in sequences(starts, tokens)])
    length = setting.prompt + int(position.max()) + 1
    own = guarded(policy, "static_bytes", lambda: float(policy.static_bytes(shape)))
    budget = allot(
        shape,
        groups,
        setting.dram_bytes,
        length,
        policy_bytes=own,
        caching=setting.eviction != "none",
        stream_static=setting.stream_static,
    )

    whole = whole_matrices(groups)
    steps = (ATTENTION, *((WHOLE,) if whole else ()), *(group.name for group in groups))
    names = steps * shape.num_hidden_layers + (LM_HEAD,)
    layer = np.append(np.repeat(np.arange(shape.num_hidden_layers), len(steps)), shape.num_hidden_layers)

    weights = {ATTENTION: shape.attention_layer_bytes, WHOLE: len(whole) * shape.mlp_matrix_bytes}
    weights[LM_HEAD] = shape.lm_head_bytes
    resident = dict.fromkeys(weights, budget.static_resident_share) | {WHOLE: budget.whole_resident_share}
    values_of = {ATTENTION: shape.bits.attention, WHOLE: shape.bits.mlp, LM_HEAD: shape.bits.lm_head}
    matrices = {ATTENTION: 4, WHOLE: len(whole), LM_HEAD: 1}

    size = (tokens, len(names))
    dram, flash, flops = np.zeros(size), np.zeros(size), np.zeros(size)
    static_reads = np.zeros(len(names))
    for index, name in enumerate(names):
        if name in weights:
            dram[:, index] = weights[name] * resident[name]
            flash[:, index] = weights[name] * (1 - resident[name])
            flops[:, index] = 2 * weights[name] * 8 / values_of[name]
            static_reads[index] = matrices[name] if flash[0, index] else 0
        if name == ATTENTION:
            seen = setting.prompt + position + 1  # a token attends to all before it and to itself
            dram[:, index] += shape.kv_position_bytes * seen
            flops[:, index] += 4 * shape.query_size * seen
            dram[:, index] += own / shape.num_hidden_layers
            flops[:, index] += 2 * own / shape.num_hidden_layers * 8 / PREDICTOR_BITS
    classes = max((shape.axis_size(group.axis).bit_length() for group in groups), default=1)
    return FetchPlan(
        setting=setting,
        shape=shape,
        groups=groups,
        budget=budget,
        sequence_starts=starts,
        layer=layer,
        step=names,
        dram_static=dram,
        flash_static=flash,
        static_reads=static_reads,
        dram_hits=np.zeros(size),
        flash_misses=np.zeros(size),
        reads=np.moveaxis(np.zeros((classes, *size), dtype=np.int32), 0, 2),  # a class that is never used costs nothing
        read_bytes=np.moveaxis(np.zeros((classes, *size)), 0, 2),
        flops=flops,
        peak_cache_bytes=np.zeros(len(names)),
    )


@dataclass(frozen=True)
class Counts:
    """What T tokens did to the caches of one group in L layers, in columns.

    `wanted`, `found` [T, L]; `runs` of adjacent missed columns and the `run_columns` in them [T, L, R] by class (see
    `bits.runs`); `held` [L]: the most that each cache ever held.
    """

    wanted: Whole
    found: Whole
    runs: Whole
    run_columns: Whole
    held: Whole


def count(masks: Mask, hits: Mask, capacity: int, starts: Sequence[int]) -> Counts:
    """The counts of one cache from masks and hits [T, N]."""
    wanted, found = pack(masks), pack(hits)
    seen = max(int(ones(np.bitwise_or.reduce(wanted[a:b]))) for a, b in sequences(starts, len(masks)))
    held = np.array([min(capacity, seen)])  # a cache never shrinks by itself
    runs, columns = packed_runs(wanted & ~found, masks.shape[1].bit_length())
    return Counts(ones(wanted)[:, None], ones(found)[:, None], runs[:, None], columns[:, None], held)


def book(fetch_plan: FetchPlan, layers: range, group: Group, counts: Counts) -> None:
    """Enter one group's counts of adjacent layers into the plan."""
    shape, matrices = fetch_plan.shape, len(group.matrices)
    column = unit_bytes(shape, group)
    steps = (len(fetch_plan.step) - 1) // shape.num_hidden_layers
    step = fetch_plan.step.index(group.name)
    here = slice(layers.start * steps + step, layers.stop * steps, steps)
    fetch_plan.dram_hits[:, here] = counts.found * (matrices * column)
    fetch_plan.flash_misses[:, here] = (counts.wanted - counts.found) * (matrices * column)
    fetch_plan.flops[:, here] = counts.wanted * (2.0 * matrices * column * 8 / shape.bits.mlp)
    fetch_plan.peak_cache_bytes[here] = counts.held * matrices * column
    used = np.flatnonzero(counts.runs.any(axis=(0, 1)))
    fetch_plan.reads[:, here, used] = counts.runs[..., used] * matrices
    fetch_plan.read_bytes[:, here, used] = counts.run_columns[..., used] * (matrices * column)


def account(fetch_plan: FetchPlan, layer: int, group: Group, masks: Mask, hits: Mask) -> None:
    """Enter one group's masks and hits [T, N] of one layer into the plan."""
    capacity = fetch_plan.budget.capacities[fetch_plan.groups.index(group)]
    book(fetch_plan, range(layer, layer + 1), group, count(masks, hits, capacity, fetch_plan.sequence_starts))
