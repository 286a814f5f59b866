"""Plans that are made step by step: of columns, and of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.memory.budget import columns_held
from dipsim.memory.cache import ColumnCache, lowest
from dipsim.memory.eviction import eviction_rule
from dipsim.memory.unit_cache import UnitCache
from dipsim.planning.builder import Counts
from dipsim.planning.expert_reads import expert_pieces, piece_read_bytes
from dipsim.planning.experts import Chosen, Replay
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.steps import Reads, Site, Stepwise, together
from dipsim.storage.placement import fetch
from dipsim.workload.trace import Trace


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
            site.cache = site.caches.cache(site.layer, self.builder.begin_with(site.caches, site.layer))
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
