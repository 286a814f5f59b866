"""Plans what the routing of a mixture of experts reads: requests, an expert cache, and the counts of a plan.

A batch is one layer of one token, or one layer of a whole prompt, whose tokens see the cache as the prompt found it.
Batches follow each other as an engine runs them: all layers of a token, then the next token. So the layers of one plan
meet in its cache, and are planned once all of them are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dipsim.basics.arrays import Floats, Ints, Mask, Numbers
from dipsim.basics.errors import InputError
from dipsim.memory.unit_cache import Requests, UnitCache, replay_requests
from dipsim.memory.unit_distance import lru_hits
from dipsim.planning.builder import Counts, LayerCaches, PlanBuilder, ScoresKey
from dipsim.planning.expert_reads import expert_pieces, piece_read_bytes
from dipsim.planning.fetch_plan import Encoded
from dipsim.planning.masks import LayerScores
from dipsim.sparsity.selection import aware_mask
from dipsim.workload.routing import Routing
from dipsim.workload.trace import sequences


@dataclass(frozen=True)
class Chosen:
    """The experts that T tokens chose in one layer: the first `count` [T] of `ranked` [T, K], the most wanted first."""

    ranked: Ints
    count: Ints

    @classmethod
    def of(cls, masks: Mask, scores: Numbers) -> Chosen:
        """From masks and scores [T, E]; of equal scores the lowest index comes first."""
        count = np.count_nonzero(masks, axis=1)
        token, expert = masks.nonzero()
        place = np.arange(len(token)) - np.repeat(np.cumsum(count) - count, count)
        ranked = np.zeros((len(masks), max(1, int(count.max(initial=0)))), dtype=np.int64)
        wanted = np.full(ranked.shape, -np.inf)
        ranked[token, place], wanted[token, place] = expert, scores[token, expert]
        return cls(np.take_along_axis(ranked, np.argsort(-wanted, axis=1, kind="stable"), axis=1), count)

    def of_tokens(self, tokens: Ints | slice) -> Ints:
        """The experts of these tokens [n], token by token, the most wanted first."""
        ranked = self.ranked[tokens]
        return ranked[np.arange(ranked.shape[1]) < self.count[tokens, None]]

    def uses(self, tokens: Ints, experts: int) -> Ints:
        """How many of these tokens [n] use each expert, [E]."""
        return np.bincount(self.of_tokens(tokens), minlength=experts)

    def of_stretch(self, begin: int, end: int) -> Ints:
        """The experts of adjacent tokens, each once, in the order of their last request."""
        if end == begin + 1:
            return self.ranked[begin, : self.count[begin]]
        last_first = self.of_tokens(slice(begin, end))[::-1]
        _, first = np.unique(last_first, return_index=True)
        return last_first[np.sort(first)][::-1]


class ExpertPlans:
    """The plans of `builders` that choose experts: `collect` every layer with a mixture, then `fill` them in."""

    def __init__(self, builders: Sequence[PlanBuilder]) -> None:
        self.mine = [
            (builder, caches) for builder in builders for caches in builder.caches if caches.group.axis == "expert"
        ]
        self._scores: dict[ScoresKey, list[Numbers]] = {}  # of policies that see the cache, a layer each
        self._routed: list[Mask] = []  # the tokens that each layer computed
        self._chosen: dict[ScoresKey, list[Chosen]] = {}  # of those that do not

    def collect(self, layer: LayerScores) -> None:
        """Take what the policies need of the next layer."""
        assert isinstance(layer.acts, Routing)
        self._routed.append(layer.acts.routed)
        for caches in {caches.key: caches for _, caches in self.mine}.values():
            scores = layer.scores_of(caches)
            if caches.policy.cache_aware:
                self._scores.setdefault(caches.key, []).append(scores)
            else:
                self._chosen.setdefault(caches.key, []).append(Chosen.of(layer.masks_of(caches), scores))

    def fill(self) -> None:
        """Enter what was collected into the builders. Raises InputError if a plan cannot be made."""
        together: dict[tuple[object, ...], list[tuple[PlanBuilder, LayerCaches]]] = {}
        for builder, caches in self.mine:
            setting = builder.setting
            alike = (caches.key, setting.eviction, setting.scope, setting.start)
            together.setdefault((*alike, builder) if caches.policy.cache_aware else alike, []).append((builder, caches))
        for same in together.values():
            if same[0][1].policy.cache_aware:
                Replay(same).choose(self._scores[same[0][1].key], self._routed)
            else:
                Replay(same).follow(self._chosen[same[0][1].key])


class Replay:
    """Plans that differ in the bytes of their caches at most."""

    def __init__(self, same: Sequence[tuple[PlanBuilder, LayerCaches]]) -> None:
        self.builders = [builder for builder, _ in same]
        self.caches = same[0][1]
        self.first = first = self.builders[0]
        self.layers = np.flatnonzero(first.shape.is_mixture)
        self.experts, self.units = first.shape.experts.num_experts, self.caches.columns
        self.size, self.copies = first.shape.expert_bytes[self.layers], np.array(self.caches.group.copies)
        self.scopes = [slice(0, len(self.layers))]
        if first.setting.scope == "layer":
            self.scopes = [slice(place, place + 1) for place in range(len(self.layers))]
        self.budgets = [self._budgets(builder) for builder in self.builders]  # of each, of each scope
        size = (first.tokens, len(self.layers), len(self.copies))
        self.wanted = np.zeros(size, dtype=np.int64)  # of a prompt, in the row of its first token
        self.found = np.zeros((len(same), *size), dtype=np.int64)
        self.held = np.zeros((len(same), len(self.layers)))
        self.uses = np.zeros((first.shape.num_hidden_layers, self.experts), dtype=np.int64)

    def _budgets(self, builder: PlanBuilder) -> list[float]:
        """Bytes of each cache of a plan: equal, unless its budget says what each layer has."""
        budget, scopes = builder.budget, len(self.scopes)
        if not isinstance(budget.capacities[0], tuple):
            return [budget.cache_bytes / scopes] * scopes
        held: list[float] = (np.array(budget.capacities[0])[self.layers] * self.size).tolist()
        return held

    def sizes(self, scope: slice) -> Floats:
        """Bytes of the units of some layers, those of one after those of the one before."""
        return np.outer(self.size[scope], np.repeat(self.copies, self.experts)).ravel()

    def stretches(self) -> Iterator[list[tuple[int, int]]]:
        """The (begin, end) of the tokens that are computed together, for each sequence."""
        cold = self.first.setting.start == "cold"
        for begin, end in sequences(self.first.sequence_starts, self.first.tokens):
            found, now = [], begin
            for start, stop in [prompt for prompt in self.first.prompts if begin <= prompt[0] < end]:
                found += [(token, token + 1) for token in range(now, start)]
                found += [] if cold else [(start, stop)]
                now = stop
            yield found + [(token, token + 1) for token in range(now, end)]

    def follow(self, chosen: Sequence[Chosen]) -> None:
        """Plan what tokens choose whatever is resident: for each layer, [T] in all. All of it is exact."""
        rule = self.first.rule
        pinned = self._pinned(chosen) if rule.fixed else None
        counted = np.flatnonzero(self.first.counted)
        self.uses[self.layers] = [each.uses(counted, self.experts) for each in chosen]
        for stretches in self.stretches():
            for place, scope in enumerate(self.scopes):
                budgets = [each[place] for each in self.budgets]
                requests = self._requests(chosen[scope], stretches)
                self._count(requests, stretches, scope, self.wanted[..., 0])
                sizes = self.sizes(scope)
                if rule.name == "lru":
                    cycle = scope.stop - scope.start
                    hits = lru_hits(requests, sizes, budgets, cycle)
                    largest = np.bincount(requests.batch, sizes[requests.units], 1).max()  # may exceed its budget
                    asked = float(sizes[np.unique(requests.units)].sum())
                for index, budget in enumerate(budgets):
                    if pinned is not None:
                        resident = pinned[index][scope].ravel()
                        found, most = resident[requests.units], float(sizes[resident].sum())
                    elif rule.name == "lru":
                        found, most = hits[index], min(max(budget, largest), asked)
                    else:
                        found, most = replay_requests(requests, sizes, budget, rule.name)
                    self._enter(index, scope, most)
                    self._count(requests, stretches, scope, self.found[index, ..., 0], found)
        self.record()

    def choose(self, scores: Sequence[Numbers], routed: Sequence[Mask]) -> None:
        """Plan what tokens choose as they see what is resident.

        Each layer gives scores [T, N], and which tokens it computed [T].
        """
        for stretches in self.stretches():
            begin = stretches[0][0] if stretches else 0
            caches = self.begin()
            for start, stop in stretches:
                for place, of_layer in enumerate(scores):
                    self.step(caches, place, of_layer[start:stop], routed[place][start:stop], start, start - begin)
            self.end(caches)
        self.record()

    def begin(self) -> list[UnitCache]:
        """The caches at the start of a sequence. Raises InputError if what they hold is fixed before."""
        if self.first.rule.fixed:
            policy = self.caches.policy.label
            raise InputError(f"eviction: {self.first.rule.name}: {policy} chooses by what is resident; use lru or lfu")
        return self.caches_of(None)

    def caches_of(self, chosen: Sequence[Chosen] | None) -> list[UnitCache]:
        """New caches of the only plan; with what each layer's tokens `chosen`, they hold what is pinned by that."""
        (budgets,) = self.budgets
        pairs = zip(self.scopes, budgets, strict=True)
        caches = [UnitCache(self.sizes(scope), budget, self.first.rule.name) for scope, budget in pairs]
        if chosen is not None:
            (pinned,) = self._pinned(chosen)
            for cache, scope in zip(caches, self.scopes, strict=True):
                cache.pin(pinned[scope].ravel())
        return caches

    def step(
        self, caches: Sequence[UnitCache], place: int, scores: Numbers, routed: Mask, row: int, position: int
    ) -> Mask:
        """What a batch chooses in the layer at `place`, [n, N], by scores [n, N] and what is resident; enter it.

        The layer computes the tokens `routed` [n]. The first is token `row` of the plan, at `position` of its sequence,
        whose `caches` these are.
        """
        cache, at = (caches[0], place) if len(caches) == 1 else (caches[place], 0)
        resident = cache.resident[at * self.units : (at + 1) * self.units]
        masks = np.zeros(scores.shape, dtype=bool)
        for token in np.flatnonzero(routed):
            policy, group = self.caches.policy, self.caches.group
            masks[token] = aware_mask(policy, group, scores[token], resident, position + int(token))
        if len(masks) > 1:
            masks = best_copies(masks, len(self.copies))
        units = Chosen.of(masks, scores).of_stretch(0, len(masks))
        hits = cache.step(units + at * self.units)
        copy, expert = np.divmod(units, self.experts)
        self.wanted[row, place] = np.bincount(copy, minlength=len(self.copies))
        self.found[0, row, place] = np.bincount(copy[hits], minlength=len(self.copies))
        self.uses[self.layers[place], expert] += self.first.counted[row]
        return masks

    def end(self, caches: Sequence[UnitCache]) -> None:
        """Enter what the caches of a sequence held, if there are any."""
        for scope, cache in zip(self.scopes if caches else (), caches, strict=True):
            self._enter(0, scope, cache.most)

    def _requests(self, chosen: Sequence[Chosen], stretches: Sequence[tuple[int, int]]) -> Requests:
        """The requests of some layers for these stretches; the units of one layer follow those of the one before."""
        parts: list[Ints] = []
        counts: list[Ints] = []
        for begin, end, together in _runs(stretches):
            if together:
                prompt = [each.of_stretch(begin, end) + place * self.units for place, each in enumerate(chosen)]
                parts += prompt
                counts.append(np.array([len(each) for each in prompt]))
                continue
            width = max(each.ranked.shape[1] for each in chosen)
            units = np.zeros((end - begin, len(chosen), width), dtype=np.int64)
            count = np.stack([each.count[begin:end] for each in chosen], axis=1)
            for place, each in enumerate(chosen):
                units[:, place, : each.ranked.shape[1]] = each.ranked[begin:end] + place * self.units
            parts.append(units[np.arange(width) < count[..., None]])
            counts.append(count.ravel())
        nothing = np.zeros(0, dtype=np.int64)
        return Requests(np.concatenate([nothing, *parts]), np.cumsum(np.concatenate([nothing, *counts])))

    def _count(
        self,
        requests: Requests,
        stretches: Sequence[tuple[int, int]],
        scope: slice,
        counts: Ints,
        hits: Mask | None = None,
    ) -> None:
        """Enter the number of requests, or of hits [R] among them, of each batch into counts [T, layers]."""
        ones = np.ones(len(requests.units), dtype=bool) if hits is None else hits
        total = np.concatenate([[0], np.cumsum(ones)])[np.concatenate([[0], requests.ends])]
        rows = np.array([begin for begin, _ in stretches], dtype=np.int64)
        counts[rows, scope] = np.diff(total).reshape(len(rows), scope.stop - scope.start)

    def _pinned(self, chosen: Sequence[Chosen]) -> list[Mask]:
        """The pinned experts of each plan, [layers, E]: those most used by the tokens that are not counted.

        Of equals the first come first. In each scope, they are pinned until one does not fit.
        """
        free = np.flatnonzero(~self.first.counted)
        if not len(free):
            raise InputError(
                "eviction: pinned: experts are pinned by their use in tokens that are not counted, and there are none; "
                "use start: warm, or a trace with a prompt"
            )
        uses = np.array([each.uses(free, self.experts) for each in chosen])
        found = []
        for budgets in self.budgets:
            pinned = np.zeros_like(uses, dtype=bool)
            for scope, budget in zip(self.scopes, budgets, strict=True):
                order = np.argsort(-uses[scope].ravel(), kind="stable")
                sizes = self.sizes(scope)[order]
                pinned[scope].ravel()[order[np.cumsum(sizes) <= budget]] = True
            found.append(pinned)
        return found

    def _enter(self, index: int, scope: slice, most: float) -> None:
        """Enter the most bytes that a cache held, shared by its layers."""
        held = most / (scope.stop - scope.start) / self.size[scope]
        self.held[index, scope] = np.maximum(self.held[index, scope], held)

    def record(self) -> None:
        """Enter the counts into the plans."""
        first, shape = self.first, self.first.shape
        pieces, read = expert_pieces(shape, first.setting), self._read_bytes()
        kind = np.floor(np.log2(np.maximum(read / first.setting.page, 1))).astype(int)
        if first.setting.page == 1:
            kind[:] = 0
        everywhere, classes = range(shape.num_hidden_layers), np.unique(kind[self.layers])
        for index, builder in enumerate(self.builders):
            wanted, hit = self._counts(index)
            missed, of_class = pieces * (wanted - hit), kind[..., None] == classes
            reads, read_bytes = (np.einsum("tlc,lcr->tlr", each, of_class) for each in (missed, missed * read))
            most = np.zeros(len(everywhere))
            most[self.layers] = self.held[index]
            builder.encoded = self.encoded(index)
            builder.uses = self.uses
            parts, computed = (wanted @ self.copies, hit @ self.copies), wanted.sum(axis=2)
            builder.record(self.caches, everywhere, Counts(*parts, reads, read_bytes, most, classes, computed))

    def encoded(self, index: int) -> Encoded | None:
        """What tokens that are not counted did so far in one plan; None if they wanted nothing."""
        builder = self.builders[index]
        wanted, hit = self._counts(index)
        free = ~builder.counted
        if not wanted[free].any():
            return None
        pieces = expert_pieces(self.first.shape, self.first.setting)
        prompts = [begin for begin, _ in builder.prompts if begin in builder.sequence_starts]
        reads = (pieces * (wanted - hit))[prompts].sum(axis=0) / max(1, len(prompts))
        parts = [float((each[free] @ self.copies).sum()) for each in (wanted, hit)]
        return Encoded(parts[0], parts[1], reads, reads * self._read_bytes())

    def _read_bytes(self) -> Floats:
        """Bytes of each read of each copy of an expert, [L, C]."""
        read = [piece_read_bytes(self.first.shape, self.first.setting, copy) for copy in self.copies.tolist()]
        return np.stack(read, axis=1)

    def _counts(self, index: int) -> tuple[Floats, Floats]:
        """Experts wanted and found in one plan, in all layers and copies, [T, L, C]."""
        size = (self.first.tokens, self.first.shape.num_hidden_layers, len(self.copies))
        wanted, found = np.zeros((2, *size))
        wanted[:, self.layers], found[:, self.layers] = self.wanted, self.found[index]
        return wanted, found


def best_copies(masks: Mask, copies: int) -> Mask:
    """What the tokens of a batch want, [n, N], each expert in the most exact of the copies that one of them wants."""
    wanted = masks.reshape(len(masks), copies, -1)
    best = wanted.any(axis=0).argmax(axis=0)
    found: Mask = wanted.any(axis=1, keepdims=True) & (best == np.arange(copies)[:, None])
    return found.reshape(masks.shape)


def _runs(stretches: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """The (begin, end, whether they are one batch) of prompts, and of adjacent tokens that follow one by one."""
    begin = end = 0
    for start, stop in stretches:
        if stop > start + 1 or start != end:
            if end > begin:
                yield begin, end, False
            begin = start
        if stop > start + 1:
            yield start, stop, True
            begin = stop
        end = stop
    if end > begin:
        yield begin, end, False
