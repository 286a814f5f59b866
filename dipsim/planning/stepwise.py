"""A plan that is made while it runs: a step looks at its caches, and changes them, when the clock says so.

Masks, caches and reads are those of the other planners; only the order in which steps meet a cache is somebody else's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dipsim.basics.arrays import Floats, Ints, Mask, Numbers
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.memory.budget import columns_held
from dipsim.memory.cache import ColumnCache, lowest
from dipsim.memory.eviction import eviction_rule
from dipsim.memory.unit_cache import UnitCache
from dipsim.planning.builder import Counts, LayerCaches, PlanBuilder
from dipsim.planning.expert_reads import expert_pieces, piece_read_bytes
from dipsim.planning.experts import Chosen, Replay
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.masks import LayerScores
from dipsim.planning.placer import Placer
from dipsim.sparsity.policy import Group
from dipsim.sparsity.selection import aware_mask
from dipsim.storage.placement import fetch
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
        self.setting, self.shape, self.tokens, self.shared = setting, trace.shape, tokens, shared
        self.begins = np.zeros(tokens, dtype=np.int64)
        for begin, end in sequences(starts, tokens):
            self.begins[begin:end] = begin
        self.counted = [int(token) for token in np.flatnonzero(builder.counted)]
        self.sites: dict[int, Site] = {}
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


class StepwiseColumns(Stepwise):
    """Masks of columns."""

    def _prepare(self) -> None:
        size = (self.tokens, len(self.order))
        each = (*size, self.builder.arrays["reads"].shape[2])
        self._wanted, self._found, self._held = np.zeros(size), np.zeros(size), np.zeros(len(self.order))
        self._reads, self._read_bytes = np.zeros(each), np.zeros(each)

    def _new_caches(self) -> None:
        held = [(columns_held(self.shape, self.builder.groups, size), rule, full) for size, rule, full in self.further]
        for site in self.sites.values():
            site.cache = site.caches.cache(self.builder.begin_with(site.caches, site.layer))
            place, columns = self.builder.caches.index(site.caches), site.caches.columns
            site.further = tuple(
                ColumnCache(columns, each[place], rule, resident=lowest(columns, each[place]) if full else None)
                for each, rule, full in held
            )

    def _pass(self, begin: int, end: int) -> None:
        for token in (np.flatnonzero(~self.builder.counted[begin:end]) + begin).tolist():
            for site in self.sites.values():
                site.present(site.choose([token], int(self.begins[token])), [token])

    def fetch(self, position: int, missing: Mask) -> Reads:
        site = self.sites[position]
        found = fetch(missing[None], self.builder.placement(site.caches, site.layer), self.setting.flash)
        return Reads.of(found.reads[0], found.read_bytes[0], found.masks[0] if site.caches.group.uses_all else missing)

    def piece_bytes(self, site: Site) -> float:
        return self.builder.placement(site.caches, site.layer).piece_bytes

    def enter(
        self,
        token: int,
        position: int,
        wanted: float,
        found: float,
        reads: Reads,
        uses: Ints,  # noqa: ARG002
    ) -> None:
        place, cache = self._place[position], self.sites[position].cache
        assert isinstance(cache, ColumnCache)
        self._wanted[token, place], self._found[token, place] = wanted, found
        self._reads[token, place, : len(reads.count)] = reads.count
        self._read_bytes[token, place, : len(reads.count)] = reads.bytes
        self._held[place] = max(self._held[place], np.count_nonzero(cache.resident))

    def finish(self) -> FetchPlan:
        for place, position in enumerate(self.order):
            site, at = self.sites[position], slice(place, place + 1)
            counts = Counts(
                self._wanted[:, at], self._found[:, at], self._reads[:, at], self._read_bytes[:, at], self._held[at]
            )
            self.builder.record(site.caches, range(site.layer, site.layer + 1), counts)
        return self.builder.finish()


class StepwiseExperts(Stepwise):
    """Masks of experts, whose caches count bytes and may serve all layers."""

    def _prepare(self) -> None:
        self._books = Replay([(self.builder, caches) for caches in self.builder.caches])
        self._pieces = expert_pieces(self.shape, self.setting)
        self._read = piece_read_bytes(self.shape, self.setting)
        self._caches: list[UnitCache] = []
        self._reads: dict[tuple[int, int], Reads] = {}
        stretches = [stretch for sequence in self._books.stretches() for stretch in sequence]
        self._uncounted = [(start, stop) for start, stop in stretches if not self.builder.counted[start]]
        for begin in () if self.shared else self.builder.sequence_starts:  # what encoding takes is a mean of them all
            self._new_caches()
            self._pass(begin, begin + 1)

    def _new_caches(self) -> None:
        self._books.end(self._caches)
        chosen = [self._chosen(site) for site in self._in_order] if self.builder.rule.fixed else None
        self._caches = self._books.caches_of(chosen)
        further = [
            [UnitCache(cache.sizes, size / len(self._caches), rule) for cache in self._caches]
            for size, rule, _ in self.further
        ]
        for caches, (_, _, full) in zip(further, self.further, strict=True):
            for cache in caches if full else ():
                cache.pin(np.cumsum(cache.sizes) <= cache.budget)
        one_each = len(self._caches) > 1
        for place, site in enumerate(self._in_order):
            site.cache = self._caches[place if one_each else 0]
            site.further = tuple(caches[place if one_each else 0] for caches in further)
            site.first = 0 if one_each else place * site.caches.columns

    @property
    def _in_order(self) -> list[Site]:
        return [self.sites[position] for position in self.order]

    def _chosen(self, site: Site) -> Chosen:
        """What all tokens choose of a site where that does not depend on the cache."""
        if site.masks is None:
            self._books.begin()  # raises InputError
        return site.chosen

    def _pass(self, begin: int, end: int) -> None:
        for start, stop in self._uncounted:
            if begin <= start < end:
                for place, site in enumerate(self._in_order):
                    self._books.wanted[start, place], self._books.found[0, start, place] = self._met(site, start, stop)

    def _met(self, site: Site, start: int, stop: int) -> tuple[int, int]:
        """How many experts these tokens want together, and how many they find."""
        tokens = range(start, stop)
        masks = site.choose(tokens, int(self.begins[start]))
        hits = site.present(masks, tokens)
        return int(np.count_nonzero(together(masks))), int(np.count_nonzero(hits))

    def fetch(self, position: int, missing: Mask) -> Reads:
        count, layer = int(np.count_nonzero(missing)), self.sites[position].layer
        if (count, layer) not in self._reads:  # all that differs is which units they bring
            reads = np.array([count * self._pieces])
            self._reads[count, layer] = Reads.of(reads, reads * self._read[layer], missing)
        known = self._reads[count, layer]
        return Reads(known.count, known.bytes, known.total, known.size, missing)

    def piece_bytes(self, site: Site) -> float:
        return site.unit_bytes / self._pieces

    def without_masks(self) -> FetchPlan:
        return replace(super().without_masks(), encoded=self._books.encoded(0))

    def enter(
        self,
        token: int,
        position: int,
        wanted: float,
        found: float,
        reads: Reads,  # noqa: ARG002
        uses: Ints,
    ) -> None:
        books, place, layer = self._books, self._place[position], self.sites[position].layer
        books.wanted[token, place], books.found[0, token, place] = wanted, found
        books.uses[layer] += uses

    def finish(self) -> FetchPlan:
        if not self.shared:
            self._pass(self._passed, self.tokens)
        self._books.end(self._caches)
        self._books.record()
        return self.builder.finish()


def check_order(setting: Setting, groups: Sequence[Group]) -> None:
    """Raise InputError if the eviction of a setting must know all masks before the first step."""
    if groups and eviction_rule(setting.eviction).needs_future:
        raise InputError(
            f"eviction: {setting.eviction} needs to know all masks beforehand, and here the clock decides in which "
            "order they come; use lru, lfu or none"
        )


def check_tier(name: str, eviction: str) -> None:
    """Raise InputError for a rule that the cache of a further tier cannot follow."""
    try:
        rule = eviction_rule(eviction)
    except InputError as error:
        raise InputError(f"device: tiers: {name}: {error}") from None
    if rule.needs_future or rule.fixed:
        raise InputError(f"device: tiers: {name}: eviction {eviction} is for DRAM alone; use lru or lfu")


def stepwise(
    trace: Trace,
    setting: Setting,
    tokens: int | None = None,
    *,
    shared: bool = False,
    further: Sequence[tuple[float, str, bool]] = (),
    progress: Progress = silent,
) -> Stepwise:
    """A plan of the first `tokens` tokens, by default all, that is made step by step (see `Stepwise`)."""
    kind = StepwiseColumns if trace.shape.mixture is None else StepwiseExperts
    count = trace.tokens if tokens is None else tokens
    return kind(trace, setting, count, shared=shared, further=further, progress=progress)
