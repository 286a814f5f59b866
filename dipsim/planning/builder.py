"""Builds a fetch plan: the static parts first, then what the masks of each layer read.

Columns of a matrix lie in Flash in index order, so adjacent missing columns are one read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.arrays import Ints, Mask
from dipsim.basics.errors import InputError
from dipsim.memory.budget import Budget, allocate, column_bytes
from dipsim.memory.cache import ColumnCache
from dipsim.memory.eviction import eviction_rule
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.runs import ones, pack, packed_runs
from dipsim.sparsity.policy import Group, Policy, whole_matrices
from dipsim.sparsity.selection import ATTENTION, LM_HEAD, WHOLE, checked_groups, policy_bytes
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import sequences

PREDICTOR_BITS = 16  # per weight that a policy brings along
Whole = NDArray[np.signedinteger[Any]]
ScoresKey = tuple[type[Policy], str, Group]  # equal where scores and rankings are


@dataclass(frozen=True)
class LayerCaches:
    """The caches of one group of one setting, one in each layer."""

    policy: Policy
    group: Group
    eviction: str
    capacity: int
    columns: int

    @cached_property
    def key(self) -> ScoresKey:
        """What the scores and rankings depend on."""
        return type(self.policy), self.policy.label, self.group

    def cache(self) -> ColumnCache:
        """An empty cache, for an eviction that does not need the future."""
        return ColumnCache(self.columns, self.capacity, self.eviction)


@dataclass(frozen=True)
class Counts:
    """What T tokens did to the caches of one group in L layers, in columns.

    `wanted` and `found` are [T, L]. `runs` of adjacent missed columns and the `run_columns` in them are [T, L, R] by
    class, as in `planning.runs`. `held` [L] is the most that each cache ever held.
    """

    wanted: Whole
    found: Whole
    runs: Whole
    run_columns: Whole
    held: Whole


class PlanBuilder:
    """A plan in the making: its static parts are complete, its masked reads are entered layer by layer.

    `caches` are those of each group. Raises InputError if the setting does not fit the model or the DRAM.
    """

    def __init__(self, shape: ModelShape, setting: Setting, tokens: int, starts: tuple[int, ...]) -> None:
        policy = setting.policy
        self.shape, self.setting, self.tokens, self.sequence_starts = shape, setting, tokens, starts
        self.groups = checked_groups(policy, shape)
        rule = eviction_rule(setting.eviction)
        if policy.cache_aware and rule.needs_future:
            raise InputError(
                f"eviction: {setting.eviction} needs to know all masks beforehand, but those of {policy.label} depend "
                "on the cache; use lru, lfu or none"
            )
        position = np.concatenate([np.arange(end - begin) for begin, end in sequences(starts, tokens)])
        self.budget: Budget = allocate(
            shape,
            self.groups,
            setting.dram_bytes,
            setting.prompt + int(position.max()) + 1,
            policy_bytes=policy_bytes(policy, shape),
            caching=rule.caches,
            stream_static=setting.stream_static,
        )
        self.caches = tuple(
            LayerCaches(policy, group, setting.eviction, capacity, shape.axis_size(group.axis))
            for group, capacity in zip(self.groups, self.budget.capacities, strict=True)
        )
        whole = (WHOLE,) if whole_matrices(self.groups) else ()
        self._steps = (ATTENTION, *whole, *(group.name for group in self.groups))  # of a layer
        self._arrays = _empty_arrays(shape, self.groups, tokens, len(self._steps) * shape.num_hidden_layers + 1)
        self._enter_static(position)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The plan's arrays by name, still writable."""
        return self._arrays

    def record(self, caches: LayerCaches, layers: range, counts: Counts) -> None:
        """Enter the counts of one group in adjacent layers."""
        arrays, group = self._arrays, caches.group
        matrices, column = len(group.matrices), column_bytes(self.shape, group)
        here = self._positions(group.name, layers)
        arrays["dram_hits"][:, here] = counts.found * (matrices * column)
        arrays["flash_misses"][:, here] = (counts.wanted - counts.found) * (matrices * column)
        arrays["flops"][:, here] = counts.wanted * (2.0 * matrices * column * 8 / self.shape.bits.mlp)
        arrays["peak_cache_bytes"][here] = counts.held * matrices * column
        used = np.flatnonzero(counts.runs.any(axis=(0, 1)))
        arrays["reads"][:, here, used] = counts.runs[..., used] * matrices
        arrays["read_bytes"][:, here, used] = counts.run_columns[..., used] * (matrices * column)

    def record_masks(self, caches: LayerCaches, layer: int, masks: Mask, hits: Mask) -> None:
        """Enter the masks and hits [T, N] of one group in one layer."""
        wanted, found = pack(masks), pack(hits)
        starts = sequences(self.sequence_starts, self.tokens)
        seen = max(int(ones(np.bitwise_or.reduce(wanted[begin:end]))) for begin, end in starts)
        held = np.array([min(caches.capacity, seen)])  # a cache never shrinks by itself
        runs, columns = packed_runs(wanted & ~found, caches.columns.bit_length())
        counts = Counts(ones(wanted)[:, None], ones(found)[:, None], runs[:, None], columns[:, None], held)
        self.record(caches, range(layer, layer + 1), counts)

    def finish(self) -> FetchPlan:
        """The finished plan. Its arrays are the builder's, which can no longer be written to."""
        layers = np.arange(self.shape.num_hidden_layers)
        layer = np.append(np.repeat(layers, len(self._steps)), len(layers))
        for array in (layer, *self._arrays.values()):
            array.setflags(write=False)
        return FetchPlan(
            setting=self.setting,
            shape=self.shape,
            groups=self.groups,
            budget=self.budget,
            sequence_starts=self.sequence_starts,
            layer=layer,
            step=self._steps * len(layers) + (LM_HEAD,),
            **self._arrays,
        )

    def _positions(self, step: str, layers: range) -> slice:
        """The positions of one step in adjacent layers."""
        if step == LM_HEAD:
            return slice(-1, None)
        first, steps = self._steps.index(step), len(self._steps)
        return slice(layers.start * steps + first, layers.stop * steps, steps)

    def _enter_static(self, position: Ints) -> None:
        """Enter what is known before any mask, for tokens at these positions [T] of their sequences."""
        shape, budget, bits = self.shape, self.budget, self.shape.bits
        layers = range(shape.num_hidden_layers)
        static, whole = budget.static_resident_share, budget.whole_resident_share
        matrices = len(whole_matrices(self.groups))
        self._enter_whole(ATTENTION, layers, shape.attention_layer_bytes, static, bits.attention, reads=4)
        self._enter_whole(LM_HEAD, layers, shape.lm_head_bytes, static, bits.lm_head, reads=1)
        if matrices:
            self._enter_whole(WHOLE, layers, matrices * shape.mlp_matrix_bytes, whole, bits.mlp, reads=matrices)
        seen = self.setting.prompt + position[:, None] + 1  # a token attends to all before it and to itself
        own = budget.policy_bytes / len(layers)
        here = self._positions(ATTENTION, layers)
        self._arrays["dram_static"][:, here] += shape.kv_position_bytes * seen
        self._arrays["dram_static"][:, here] += own
        self._arrays["flops"][:, here] += 4 * shape.query_size * seen
        self._arrays["flops"][:, here] += 2 * own * 8 / PREDICTOR_BITS

    def _enter_whole(self, step: str, layers: range, size: float, resident: float, bits: int, reads: int) -> None:
        """Enter weights of `size` bytes that every token reads whole, `resident` of them from DRAM."""
        here, streamed = self._positions(step, layers), size * (1 - resident)
        self._arrays["dram_static"][:, here] = size * resident
        self._arrays["flash_static"][:, here] = streamed
        self._arrays["static_reads"][here] = reads if streamed else 0
        self._arrays["flops"][:, here] = 2 * size * 8 / bits


def _empty_arrays(shape: ModelShape, groups: Sequence[Group], tokens: int, positions: int) -> dict[str, NDArray[Any]]:
    """All arrays of a plan, zero."""
    size = (tokens, positions)
    classes = max((shape.axis_size(group.axis).bit_length() for group in groups), default=1)
    names = ("dram_static", "flash_static", "dram_hits", "flash_misses", "flops")
    arrays: dict[str, NDArray[Any]] = {name: np.zeros(size) for name in names}
    arrays |= {name: np.zeros(positions) for name in ("static_reads", "peak_cache_bytes")}
    for name, kind in (("reads", np.int32), ("read_bytes", np.float64)):
        # the classes come first in memory: one that is never used takes none
        arrays[name] = np.moveaxis(np.zeros((classes, *size), dtype=kind), 0, 2)
    return arrays
