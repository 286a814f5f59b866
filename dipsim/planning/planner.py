"""A trace and settings make fetch plans.

Planning is layer-major: one layer's activations are read once, and every setting is planned over them. So memory stays
at one layer's block, however long the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dipsim.basics.arrays import Mask, Numbers
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.memory.cache import ColumnCache, find_hits, run_tokens
from dipsim.planning.builder import LayerCaches, PlanBuilder, ScoresKey
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.sparsity.selection import aware_mask, blind_masks, checked_scores
from dipsim.workload.trace import Activations, Trace, sequences


class Planner(Protocol):
    """What fills plans in: the CPU (below), or a GPU (`dipsim.gpu`). All planners make the same plans."""

    task: str  # what progress says of its work
    all_together: bool  # whether one process plans all policies of a trace side by side
    max_plan_bytes: float  # of the plans that one pass over a trace should make

    def able(self, trace: Trace, setting: Setting, tokens: int) -> bool:
        """Whether this planner makes the plan of a setting itself."""

    def fill(self, trace: Trace, builders: Sequence[PlanBuilder], layers: int, progress: Progress) -> None:
        """Enter what the masks of the first `layers` layers read into builders of one trace and as many tokens."""


def plan(
    trace: Trace,
    settings: Sequence[Setting],
    tokens: int | None = None,
    *,
    layers: int | None = None,
    progress: Progress = silent,
    planner: Planner | None = None,
) -> list[FetchPlan]:
    """Plan every setting over the first `tokens` tokens and `layers` layers, by default all.

    The CPU plans unless another `planner` is given. Raises InputError if a setting does not fit the trace, its policy
    or its DRAM.
    """
    tokens = trace.tokens if tokens is None else tokens
    if not 0 < tokens <= trace.tokens:
        raise InputError(f"tokens: {tokens} asked for, the trace {trace.name} has {trace.tokens}; ask for 1 to that")
    starts = tuple(start for start in trace.sequence_starts if start < tokens)
    builders = [PlanBuilder(trace.shape, setting, tokens, starts) for setting in settings]
    if builders:
        layers = trace.shape.num_hidden_layers if layers is None else layers
        (planner or CpuPlanner()).fill(trace, builders, layers, progress)
    return [builder.finish() for builder in builders]


class CpuPlanner:
    """Plans on the CPU, one layer after the other."""

    task = "planning layers"
    all_together = False
    max_plan_bytes = 400e6  # with the activations of a 14B model a process then stays below 1.5 GB

    def able(self, trace: Trace, setting: Setting, tokens: int) -> bool:  # noqa: ARG002
        """True: the CPU plans everything."""
        return True

    def fill(self, trace: Trace, builders: Sequence[PlanBuilder], layers: int, progress: Progress) -> None:
        """Enter what the masks of the first `layers` layers read. Raises InputError if a policy fails."""
        for index in range(layers):
            layer = _Layer(trace.layer(index, builders[0].tokens), builders[0].sequence_starts)
            for builder in builders:
                for caches in builder.caches:
                    builder.record_masks(caches, index, *layer.masks_and_hits(caches))
            progress(self.task, index + 1, layers)


class _Layer:
    """One layer's activations. What several settings share of its scores and masks is made once."""

    def __init__(self, acts: Activations, starts: Sequence[int]) -> None:
        self.acts, self.starts = acts, starts
        self._scores: dict[ScoresKey, Numbers] = {}  # of cache-aware policies
        self._masks: dict[ScoresKey, Mask] = {}  # of the others, the same for every DRAM size and eviction

    def masks_and_hits(self, caches: LayerCaches) -> tuple[Mask, Mask]:
        """Masks and hits [T, N] of one group."""
        policy, group, key = caches.policy, caches.group, caches.key
        if policy.cache_aware:
            if key not in self._scores:
                self._scores[key] = checked_scores(policy, group, self.acts)
            return aware_masks(caches, self._scores[key], self.starts)
        if key not in self._masks:
            self._masks[key] = blind_masks(group, checked_scores(policy, group, self.acts))
        masks = self._masks[key]
        return masks, find_hits(masks, caches.capacity, caches.eviction, self.starts)


def aware_masks(caches: LayerCaches, scores: Numbers, starts: Sequence[int]) -> tuple[Mask, Mask]:
    """Masks and hits [T, N] of a cache-aware policy from its scores [T, N]; each sequence begins with no residents."""
    masks, hits = (np.zeros(scores.shape, dtype=bool) for _ in range(2))
    for begin, end in sequences(starts, len(scores)):
        here = slice(begin, end)
        choose_and_run(caches, caches.cache(), scores[here], masks=masks[here], hits=hits[here])
    return masks, hits


def choose_and_run(
    caches: LayerCaches, cache: ColumnCache, scores: Numbers, *, masks: Mask, hits: Mask, position: int = 0
) -> None:
    """Fill in masks and hits [T, N] of adjacent tokens of one sequence, each token seeing who is resident.

    `position` is that of the first token.
    """

    def choose(token: int) -> Mask:
        return aware_mask(caches.policy, caches.group, scores[token], cache.resident, position + token)

    run_tokens(cache, masks, hits=hits, choose=choose)
