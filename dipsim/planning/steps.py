"""A plan that is made while it runs: a step looks at its caches, and changes them, when the clock says so.

Masks, caches and reads are those of the other planners; only the order in which steps meet a cache is somebody else's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dipsim.basics.arrays import Floats, Ints, Mask, Numbers
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress
from dipsim.memory.cache import ColumnCache
from dipsim.memory.eviction import eviction_rule
from dipsim.memory.unit_cache import UnitCache
from dipsim.planning.builder import LayerCaches, PlanBuilder
from dipsim.planning.experts import Chosen
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.masks import LayerScores
from dipsim.planning.placer import Placer
from dipsim.planning.split import learn_splits
from dipsim.sparsity.policy import Group
from dipsim.sparsity.selection import aware_mask
from dipsim.workload.level_requests import LevelRequests
from dipsim.workload.routing import Routing
from dipsim.workload.trace import Activations, Trace, sequences


def together(masks: Mask) -> Mask:
    """What several masks [n, N] want together, [N]."""
    return masks[0] if len(masks) == 1 else np.asarray(masks.any(axis=0))


@dataclass(eq=False)
class Site:
    """Where the units of one group in one layer, columns or experts, meet their cache.

    `scores` [T, N] and, unless they depend on what is resident, `masks` [T, N] are those of all tokens. The units are
    those of each cache from `first` on. `acts` are the layer's activations or routing. `further` are the caches of
    other tiers, which see the same requests.
    """

    caches: LayerCaches
    layer: int
    position: int
    unit_bytes: float
    acts: Activations | Routing
    scores: Numbers
    masks: Mask | None
    first: int = 0
    cache: ColumnCache | UnitCache | None = None
    further: tuple[ColumnCache | UnitCache, ...] = ()

    @property
    def resident(self) -> Mask:
        """What the cache holds of this site, [N]."""
        assert self.cache is not None
        return self._mine(self.cache)

    def held(self, tier: int) -> Mask:
        """What one of the further caches holds of this site, [N]."""
        return self._mine(self.further[tier])

    def _mine(self, cache: ColumnCache | UnitCache) -> Mask:
        return cache.resident[self.first : self.first + self.caches.columns]

    @cached_property
    def chosen(self) -> Chosen:
        """The experts that all tokens choose, where that does not depend on the cache."""
        assert self.masks is not None
        return Chosen.of(self.masks, self.scores)

    def choose(self, tokens: Sequence[int], begin: int) -> Mask:
        """What adjacent tokens of the sequence that starts at `begin` choose as they see the cache now, [n, N]."""
        if self.masks is not None:
            return self.masks[tokens[0] : tokens[-1] + 1]
        policy, group = self.caches.policy, self.caches.group
        found = np.zeros((len(tokens), self.caches.columns), dtype=bool)
        for row, token in enumerate(tokens):
            if not isinstance(self.acts, Routing) or self.acts.routed[token]:
                found[row] = aware_mask(policy, group, self.scores[token], self.resident, token - begin)
        return found

    def present(self, masks: Mask, tokens: Sequence[int]) -> Mask:
        """Present the masks [n, N] of adjacent tokens to the cache as one: they are resident from now on.

        Returns the hits [N].
        """
        assert self.cache is not None
        wanted: Any
        if isinstance(self.cache, ColumnCache):
            wanted = together(masks)
        elif self.masks is None:
            wanted = Chosen.of(masks, self.scores[list(tokens)]).of_stretch(0, len(masks))
        else:
            wanted = self.chosen.of_stretch(tokens[0], tokens[-1] + 1)
        for cache in self.further:
            self._step(cache, wanted)
        return self._step(self.cache, wanted)

    def _step(self, cache: ColumnCache | UnitCache, wanted: Any) -> Mask:
        """Present a mask [N] of columns, or experts [n], to one cache; return its hits [N]."""
        if isinstance(cache, ColumnCache):
            return cache.step(wanted)
        hits = np.zeros(self.caches.columns, dtype=bool)
        hits[wanted] = cache.step(wanted + self.first)
        return hits


@dataclass(slots=True)
class Reads:
    """The reads [R] of a step and their bytes [R] by class of size, the sums of both, and the units [N] they bring."""

    count: Ints
    bytes: Floats
    total: float
    size: float
    brings: Mask

    @classmethod
    def of(cls, count: Ints, size: Floats, brings: Mask) -> Reads:
        """From reads and their bytes by class."""
        return cls(count, size, float(count.sum()), float(size.sum()), brings)

    @classmethod
    def together(cls, parts: Sequence[Reads]) -> Reads:
        """Those of several fetches."""
        if len(parts) == 1:
            return parts[0]
        brings = np.bitwise_or.reduce([each.brings for each in parts])
        count, size = (np.sum(each, axis=0) for each in ([p.count for p in parts], [p.bytes for p in parts]))
        return cls.of(count, size, brings)


class Stepwise(ABC):
    """The plan of one setting over the first `tokens` tokens, made step by step. All that it needs is read once.

    `sites` are by their position in the plan, `order` are those positions. With `shared`, one set of caches serves all
    sequences; otherwise each begins with its own. `further` are the (bytes, eviction, whether it begins full) of caches
    in other tiers. Raises InputError if the setting cannot be planned so.
    """

    def __init__(
        self,
        trace: Trace,
        setting: Setting,
        tokens: int,
        *,
        shared: bool,
        further: Sequence[tuple[float, str, bool]],
        progress: Progress,
    ) -> None:
        self.further = further
        starts = tuple(start for start in trace.sequence_starts if start < tokens)
        self.builder = builder = PlanBuilder(trace.shape, setting, tokens, starts, trace.prompts)
        check_order(setting, builder.groups)
        if any(len(group.copies) > 1 for group in builder.groups):
            raise InputError(
                f"policy {setting.policy.label}: has copies of experts, which the clock does not know; leave out what "
                "depends on the clock, such as prefetch, streams, speculate, contention and tiers"
            )
        self.setting, self.shape, self.tokens, self.shared = setting, builder.shape, tokens, shared
        self.begins = np.zeros(tokens, dtype=np.int64)
        for begin, end in sequences(starts, tokens):
            self.begins[begin:end] = begin
        self.counted = [int(token) for token in np.flatnonzero(builder.counted)]
        self.sites: dict[int, Site] = {}
        learn_splits([builder], trace.shape, trace, progress=progress)
        placer = Placer([builder], trace.shape, trace) if trace.shape.mixture is None else None
        for index in trace.layers if builder.groups else ():
            layer = LayerScores(trace.layer(index, tokens))
            if placer is not None:
                placer.place(index, layer)
            for caches in builder.caches:
                site = self._site(caches, index, layer)
                self.sites[site.position] = site
            progress("reading layers", index + 1, trace.shape.num_hidden_layers)
        self.order = sorted(self.sites)
        self._place = {position: place for place, position in enumerate(self.order)}
        self._passed = 0  # tokens that have met the caches
        self._prepare()
        if shared:
            self._new_caches()
            for begin, end in sequences(starts, tokens):
                self._pass(begin, end)

    def _site(self, caches: LayerCaches, index: int, layer: LayerScores) -> Site:
        builder = self.builder
        masks: Mask | None = None
        if caches.group.price is not None:
            masks = builder.priced_masks(caches, index, layer.scores_of(caches))
        elif not caches.policy.cache_aware:
            masks = layer.masks_of(caches)
        assert not isinstance(layer.acts, LevelRequests)  # or there would have been no scores
        position, size = builder.position(caches, index), float(builder.unit_bytes(caches.group)[index])
        return Site(caches, index, position, size, layer.acts, layer.scores_of(caches), masks)

    def reach(self, token: int) -> None:
        """Before a counted token: tokens of its sequence that are not counted pass, at its start through new caches."""
        if not self.shared:
            begin = int(self.begins[token])
            if begin >= self._passed:
                self._new_caches()
                self._passed = begin
            self._pass(self._passed, token)
        self._passed = token + 1

    def begins_sequence(self, token: int) -> bool:
        """Whether a counted token is the first that is counted of its sequence."""
        begin = int(self.begins[token])
        return not self.builder.counted[begin:token].any()

    def without_masks(self) -> FetchPlan:
        """The plan as it would be if masks chose nothing."""
        builder = self.builder
        return PlanBuilder(self.shape, self.setting, self.tokens, builder.sequence_starts, builder.prompts).finish()

    def choose(self, tokens: Sequence[int], position: int) -> Mask:
        """What tokens choose at a position, [n, N], as they see its cache now."""
        return self.sites[position].choose(tokens, int(self.begins[tokens[0]]))

    @abstractmethod
    def _prepare(self) -> None:
        """Get ready, once the sites are known."""

    @abstractmethod
    def _new_caches(self) -> None:
        """Give each site a cache as it is when a sequence begins."""

    @abstractmethod
    def _pass(self, begin: int, end: int) -> None:
        """Let what is not counted among these tokens of a sequence pass through the caches."""

    @abstractmethod
    def fetch(self, position: int, missing: Mask) -> Reads:
        """The reads of missing units [N]."""

    @abstractmethod
    def piece_bytes(self, site: Site) -> float:
        """Bytes of a unit in each of the pieces that it lies in."""

    @abstractmethod
    def enter(self, token: int, position: int, wanted: float, found: float, reads: Reads, uses: Ints) -> None:
        """Enter how much a token, or those computed with it, used at a position and found in DRAM, and what was read.

        `uses` [N] says how many of them use each unit.
        """

    @abstractmethod
    def finish(self) -> FetchPlan:
        """The plan of what was entered."""


def check_order(setting: Setting, groups: Sequence[Group]) -> None:
    """Raise InputError if the eviction of a setting must know all masks before the first step."""
    if groups and eviction_rule(setting.eviction).needs_future:
        raise InputError(
            f"eviction: {setting.eviction} needs to know all masks beforehand, and here the clock decides in which "
            "order they come; use lru, lfu or none"
        )
