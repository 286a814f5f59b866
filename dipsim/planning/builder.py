"""Builds a fetch plan: the static parts first, then what the masks of each layer read.

A layout says where columns lie in Flash. What is missing and lies side by side is one read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.arrays import Floats, Ints, Mask, Numbers
from dipsim.basics.errors import InputError
from dipsim.basics.limits import check_memory
from dipsim.memory.budget import Budget, allocate, column_bytes
from dipsim.memory.cache import ColumnCache, lowest
from dipsim.memory.eviction import eviction_rule
from dipsim.memory.split import Split
from dipsim.planning.expert_reads import check_experts, expert_pieces
from dipsim.planning.fetch_plan import Encoded, FetchPlan, Setting, warm_up_tokens
from dipsim.planning.precision import Precision, has_levels
from dipsim.sparsity.policy import Group, Policy, whole_matrices
from dipsim.sparsity.selection import (
    ATTENTION,
    LM_HEAD,
    WHOLE,
    aware_mask,
    blind_masks,
    checked_groups,
    policy_bytes,
    sees_memory,
)
from dipsim.storage.layouts import load_layout
from dipsim.storage.placement import Fetch, Placement, Site, fetch
from dipsim.storage.records import Brought, LevelsOf
from dipsim.storage.runs import ones, pack
from dipsim.storage.worth import worth_reading
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import sequences

LESS = "ask for fewer tokens, or a smaller model"
LEAST_BYTES = 1e-6  # what is less comes from rounding
ANY_BYTES = 2.0**60  # of a DRAM whose budget somebody else decides
PREDICTOR_BITS = 16  # per weight that a policy brings along
ScoresKey = tuple[type[Policy], str, Group]  # equal where scores and rankings are


@dataclass(frozen=True)
class LayerCaches:
    """The caches of one group of one setting, one in each layer."""

    policy: Policy
    group: Group
    eviction: str
    capacities: tuple[int, ...]  # in each layer
    columns: int

    @cached_property
    def key(self) -> ScoresKey:
        """What the scores and rankings depend on."""
        return type(self.policy), self.policy.label, self.group

    def cache(self, layer: int, begin_with: Mask | None = None) -> ColumnCache:
        """The cache of a layer at the start of a sequence, for an eviction that does not need the future."""
        return ColumnCache(self.columns, self.capacities[layer], self.eviction, resident=begin_with)


@dataclass(frozen=True)
class Counts:
    """What T tokens did to the caches of one group in L layers.

    `wanted` and `found` are columns, [T, L]. `reads` and `read_bytes` are [T, L, R] by class of run, as in a FetchPlan,
    or of the `classes` [R] alone. `held` [L] are the most columns that each cache ever held (a share of them, where one
    cache serves all layers). Of experts with copies all these are in parts of an exact one, and `computed` [T, L] are
    those that compute: whole ones, whatever their copy.
    """

    wanted: Numbers
    found: Numbers
    reads: Numbers
    read_bytes: Floats
    held: Numbers
    classes: Ints | None = None
    computed: Numbers | None = None


class PlanBuilder:
    """A plan in the making: its static parts are complete, its masked reads are entered layer by layer.

    `caches` are those of each group. Raises InputError if the setting does not fit the model or the DRAM.
    """

    def __init__(
        self,
        shape: ModelShape,
        setting: Setting,
        tokens: int,
        starts: tuple[int, ...],
        prompts: Sequence[tuple[int, int]] = (),
    ) -> None:
        policy = setting.policy
        if setting.flash is not None and setting.flash.page != setting.page:
            raise InputError(
                f"page: {setting.page:g} B, and that of the flash is {setting.flash.page:g} B; make them equal"
            )
        self.shape = shape = setting.of(shape)
        self.setting, self.tokens, self.sequence_starts = setting, tokens, starts
        self.prompts = [(begin, min(end, tokens)) for begin, end in prompts if begin < tokens]
        self.groups = checked_groups(policy, shape)
        self.least_bytes = 6 * 8.0 * tokens * (len(self.groups) + 1) * shape.num_hidden_layers  # six numbers a step
        activations = shape.layer_memory(tokens) if self.groups else 0.0
        check_memory(self.least_bytes + activations, f"{tokens} tokens of {shape.name or 'the model'}", LESS)
        self.layout = load_layout(setting.layout)
        self.rule = rule = eviction_rule(setting.eviction)
        self.sees_memory = sees_memory(policy, self.groups)
        levelled = has_levels(self.groups)
        if self.sees_memory and rule.needs_future and not levelled:
            raise InputError(
                f"eviction: {setting.eviction} needs to know all masks beforehand, but those of {policy.label} depend "
                "on the cache; use lru, lfu or none"
            )
        if self.layout.needs_pinned and rule.caches and not rule.fixed:
            raise InputError(
                f"layout: {setting.layout} chooses what to pin, and eviction {setting.eviction} lets it change; use "
                "pinned, or leave the eviction out"
            )
        priced = [group.name for group in self.groups if group.price is not None and not levelled]
        if priced and rule.caches and not rule.fixed:
            raise InputError(
                f"eviction: {setting.eviction}: group {priced[0]} of {policy.label} chooses by what reading costs, "
                "which needs a fixed set in DRAM; use pinned or none, or a layout that pins, such as popularity"
            )
        if rule.fixed and setting.start == "filled":
            raise InputError(f"start: filled: the eviction {setting.eviction} has its own columns; use warm or cold")
        if shape.mixture is not None:
            check_experts(setting, rule)
        elif setting.scope == "model":
            raise InputError("cache: scope: model is one cache of experts for all layers; columns need scope: layer")
        position = np.concatenate([np.arange(end - begin) for begin, end in sequences(starts, tokens)])
        warm_up = [warm_up_tokens(setting.start, end - begin) for begin, end in sequences(starts, tokens)]
        self.counted: Mask = position >= np.repeat(warm_up, np.diff((*starts, tokens)))
        self.warm_up = max(warm_up)
        if self.prompts:  # they are what comes before the tokens that are counted
            self.counted = ~np.isin(np.arange(tokens), np.concatenate([np.arange(*prompt) for prompt in self.prompts]))
            self.warm_up = max(end - begin for begin, end in self.prompts)
            if not self.counted.any():
                raise InputError(f"tokens: the first {tokens} are all of the prompt; ask for more")
        budget = allocate(
            shape,
            self.groups,
            setting.dram_bytes,
            setting.prompt + int(position.max()) + 1,
            policy_bytes=policy_bytes(policy, shape),
            caching=rule.caches,
            stream_static=setting.stream_static,
            streams=setting.streams,
            buffer_bytes=setting.buffer,
        )
        self.precision: Precision | None = None
        if levelled:
            self.precision = Precision(shape, setting, self.groups, budget.cache_bytes + budget.unused_bytes)
            budget = self.precision.budget(budget)
        whole = (WHOLE,) if whole_matrices(self.groups) or shape.whole_mlp_bytes.any() or levelled else ()
        self._steps = (ATTENTION, *whole, *(group.name for group in self.groups))  # of a layer
        counted = int(np.count_nonzero(self.counted))
        self._arrays = _empty_arrays(
            shape, self.groups, setting.page, counted, len(self._steps) * shape.num_hidden_layers + 1
        )
        self.split: Split | None = None
        self.encoded: Encoded | None = None
        self.uses: Ints | None = None
        self._placed: dict[int, list[Placement]] = {}
        self.watch: Callable[[LayerCaches, int, Fetch], object] = _unwatched  # sees what each layer's masks read
        self._position = position[self.counted]
        self.divide(budget)

    def divide(self, budget: Budget) -> None:
        """Take this budget: the capacities of its caches, and what it lets every token read."""
        self.budget = budget
        self.caches = tuple(
            LayerCaches(
                self.setting.policy,
                group,
                self.setting.eviction,
                capacities,
                self.shape.axis_size(group.axis) * len(group.copies),
            )
            for group, capacities in zip(self.groups, budget.in_layers(self.shape.num_hidden_layers), strict=True)
        )
        self._enter_static(self._position)

    def trial(self, tokens: int, starts: tuple[int, ...], capacities: Sequence[tuple[int, ...]]) -> PlanBuilder:
        """A builder of the same setting for other tokens: from a cold start, with caches of these `capacities` of each
        group in each layer. Columns lie as they lie here.
        """
        setting = replace(self.setting, dram_bytes=ANY_BYTES, start="cold", split="even")
        trial = PlanBuilder(self.shape, setting, tokens, starts)
        trial.divide(replace(self.budget, capacities=tuple(capacities)))
        trial._placed = self._placed
        return trial

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The plan's arrays by name, still writable."""
        return self._arrays

    def layer(self, index: int) -> dict[str, NDArray[Any]]:
        """What the plan's arrays have of one layer, by name, still writable."""
        here = slice(index * len(self._steps), (index + 1) * len(self._steps))
        return {name: array[here] if array.ndim == 1 else array[:, here] for name, array in self._arrays.items()}

    def place(
        self,
        layer: int,
        scores: Sequence[Numbers] = (),
        rankings: Mapping[str, Ints] | None = None,
        pinned: Mapping[str, int] | None = None,
    ) -> None:
        """Lay out one layer. A layout that learns needs the `scores` [T, N] of calibration tokens, one of each group.

        By `rankings` and `pinned`, of each group as `layers.{layer}.{group}`, somebody else has decided what to pin.
        Raises InputError if the layout cannot be learned or does not fit.
        """
        sites = [self._site(caches, layer) for caches in self.caches]
        if scores:
            pairs = zip(sites, self.caches, scores, strict=True)
            sites = [replace(site, **self._calibration(caches, site, values)) for site, caches, values in pairs]
        if rankings is None or pinned is None:
            self._placed[layer] = self.layout.place(layer, sites, self.setting.flash)
        else:
            names = [f"layers.{layer}.{site.name}" for site in sites]
            self._placed[layer] = [
                self.layout.placed(site, pinned[name], rankings[name]) for site, name in zip(sites, names, strict=True)
            ]

    def placement(self, caches: LayerCaches, layer: int) -> Placement:
        """Where the columns of one group lie, in one layer."""
        if layer not in self._placed:
            self.place(layer)
        return self._placed[layer][self.groups.index(caches.group)]

    def leave(self, layer: int) -> None:
        """Forget where the columns of a layer lie, once all is entered of it: over all layers that is much memory."""
        self._placed.pop(layer, None)

    def begin_with(self, caches: LayerCaches, layer: int) -> Mask | None:
        """The columns [N] that are resident when a sequence begins; None if there are none."""
        if self.rule.fixed:
            return self.placement(caches, layer).resident
        return lowest(caches.columns, caches.capacities[layer]) if self.setting.start == "filled" else None

    def priced_masks(self, caches: LayerCaches, layer: int, scores: Numbers) -> Mask:
        """What tokens want of one group with a price, [T, N], by scores [T, N]."""
        price = caches.group.price
        assert price is not None
        placement = self.placement(caches, layer)
        return placement.resident | worth_reading(scores, price, placement, self.setting.flash)

    def fetch(self, caches: LayerCaches, layer: int, masks: Mask, residents: Mask) -> tuple[Fetch, Mask]:
        """What tokens that want `masks` [T, N] and find `residents` [T, N] read of one group, and what they use."""
        found = fetch(masks & ~residents, self.placement(caches, layer), self.setting.flash)
        return found, masks | residents | found.masks if caches.group.uses_all else masks

    def record_masks(self, caches: LayerCaches, layer: int, masks: Mask, residents: Mask) -> None:
        """Enter what one group's tokens want [T, N] and find resident [T, N] in one layer."""
        found, used = self.fetch(caches, layer, masks, residents)
        self.watch(caches, layer, found)
        if self.rule.fixed:
            held = found.placement.hot
        else:  # a cache never shrinks by itself
            starts = sequences(self.sequence_starts, self.tokens)
            seen = max(int(ones(np.bitwise_or.reduce(pack(masks[begin:end])))) for begin, end in starts)
            capacity = caches.capacities[layer]
            held = capacity if self.setting.start == "filled" else min(capacity, seen)
        wanted, hits = ones(pack(used)), ones(pack(used & residents))
        self.record(
            caches,
            range(layer, layer + 1),
            Counts(wanted[:, None], hits[:, None], found.reads[:, None], found.read_bytes[:, None], np.array([held])),
        )

    def fetch_levels(self, caches: LayerCaches, layer: int, requested: LevelsOf) -> Brought:
        """What tokens that want levels [T, N] of one group read, and the levels that they get."""
        assert self.precision is not None
        return self.precision.fetch(caches.group, layer, requested, self._arrays["reads"].shape[2])

    def record_levels(self, caches: LayerCaches, layer: int, brought: Brought) -> None:
        """Enter the levels that tokens have of one group in one layer, and what brought them.

        What every token has of gate_proj and up_proj is read before anything is chosen: it is what choosing goes by.
        """
        assert self.precision is not None
        arrays, group, precision = self._arrays, caches.group, self.precision
        here = self.position(caches, layer)
        base = here if "down_proj" in group.matrices else self._positions(WHOLE, range(layer, layer + 1)).start
        every, streamed = precision.base[group.name, layer], precision.streamed_bytes(group, layer)
        fetched = precision.fetched_bytes(group, layer, brought.levels)[self.counted]
        read_bytes = brought.read_bytes[self.counted]
        held, unit = precision.held_bytes(group, layer), precision.unit_bytes(group)
        operations = 2.0 * unit * 8 / self.shape.bits.mlp
        arrays["dram_hits"][:, base] += held
        arrays["flash_static"][:, base] += streamed
        arrays["static_reads"][base] += streamed > 0
        arrays["flash_misses"][:, here] = fetched
        gaps = read_bytes.sum(axis=1) - fetched
        arrays["flash_gaps"][:, here] = np.where(gaps > LEAST_BYTES, gaps, 0.0)
        arrays["flops"][:, base] += operations * np.count_nonzero(every)
        arrays["flops"][:, here] += operations * np.count_nonzero(brought.levels > every, axis=1)[self.counted]
        arrays["peak_cache_bytes"][here] = held
        arrays["ranked"][here] = caches.columns
        arrays["unit_bytes"][here] = arrays["piece_bytes"][here] = unit
        arrays["reads"][:, here] = brought.reads[self.counted]
        arrays["read_bytes"][:, here] = read_bytes

    def record(self, caches: LayerCaches, layers: range, counts: Counts) -> None:
        """Enter the counts of one group in adjacent layers."""
        arrays, group = self._arrays, caches.group
        unit = self.unit_bytes(group)[layers.start : layers.stop]
        here = self._positions(group.name, layers)
        computed = counts.wanted if counts.computed is None else counts.computed
        every = (counts.wanted, counts.found, counts.reads, counts.read_bytes, computed)
        wanted, found, reads, read_bytes, computed = (
            every if self.counted.all() else (each[self.counted] for each in every)
        )
        arrays["dram_hits"][:, here] = found * unit
        arrays["flash_misses"][:, here] = (wanted - found) * unit
        arrays["flash_gaps"][:, here] = np.maximum(read_bytes.sum(axis=2) - (wanted - found) * unit, 0)
        arrays["flops"][:, here] = computed * (2.0 * unit * 8 / self.shape.bits.mlp)
        arrays["peak_cache_bytes"][here] = counts.held * unit
        arrays["ranked"][here] = self.shape.axis_size(group.axis) * (unit > 0)
        arrays["unit_bytes"][here] = unit
        pieces = expert_pieces(self.shape, self.setting) if group.axis == "expert" else None
        arrays["piece_bytes"][here] = unit / pieces if pieces else self.placement(caches, layers.start).piece_bytes
        used = np.flatnonzero(reads.any(axis=(0, 1)))
        classes = used if counts.classes is None else counts.classes[used]
        arrays["reads"][:, here, classes] = reads[..., used]
        arrays["read_bytes"][:, here, classes] = read_bytes[..., used]

    def unit_bytes(self, group: Group) -> Floats:
        """Bytes of one column, or expert, of all matrices of a group, in each layer [L]."""
        if group.axis == "expert":
            return self.shape.expert_bytes
        return np.full(self.shape.num_hidden_layers, len(group.matrices) * column_bytes(self.shape, group))

    def _site(self, caches: LayerCaches, layer: int) -> Site:
        group = caches.group
        matrices, length = len(group.matrices), self.shape.unit_length(group.matrices[0], group.axis)
        places = [length if group.axis == "input" or name == "down_proj" else 1 for name in group.matrices]
        return Site(
            name=group.name,
            matrices=matrices,
            columns=caches.columns,
            column_bytes=column_bytes(self.shape, group),
            rows=sum(places),
            pinned=caches.capacities[layer] if self.rule.fixed else 0,
            page=self.setting.page,
        )

    def _calibration(self, caches: LayerCaches, site: Site, scores: Numbers) -> dict[str, Any]:
        """What a site knows of calibration tokens with these scores [T, N]."""
        policy, group = caches.policy, caches.group
        if group.price is not None:  # what they would read if nothing were pinned
            anywhere = self.layout.laid_out(site, 0, np.arange(site.columns))
            return {"masks": worth_reading(scores, group.price, anywhere, self.setting.flash)}

        def wants(tokens: slice, resident: Mask) -> Mask:
            return np.array([aware_mask(policy, group, each, resident, self.warm_up) for each in scores[tokens]])

        return {"masks": blind_masks(group, scores), "wants": wants if policy.cache_aware else None}

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
            sequence_starts=tuple(int(np.count_nonzero(self.counted[:start])) for start in self.sequence_starts),
            layer=layer,
            step=self._steps * len(layers) + (LM_HEAD,),
            admits=self.rule.caches and not self.rule.fixed and self.precision is None,
            warm_up=self.warm_up,
            split=self.split,
            encoded=self.encoded,
            uses=self.uses,
            **self._arrays,  # type: ignore[arg-type]
        )

    def position(self, caches: LayerCaches, layer: int) -> int:
        """Where the plan has one group of one layer."""
        return int(self._positions(caches.group.name, range(layer, layer + 1)).start)

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
        if WHOLE in self._steps:
            size = matrices * shape.mlp_matrix_bytes + shape.whole_mlp_bytes
            self._enter_whole(WHOLE, layers, size, whole, bits.mlp, reads=matrices or 3)
        seen = self.setting.prompt + position[:, None] + 1  # a token attends to all before it and to itself
        own = budget.policy_bytes / len(layers)
        here = self._positions(ATTENTION, layers)
        self._arrays["dram_static"][:, here] += shape.kv_position_bytes * seen
        self._arrays["dram_static"][:, here] += own
        self._arrays["flops"][:, here] += 4 * shape.query_size * seen
        self._arrays["flops"][:, here] += 2 * own * 8 / PREDICTOR_BITS

    def _enter_whole(
        self, step: str, layers: range, size: float | Floats, resident: float, bits: float, reads: int
    ) -> None:
        """Enter weights of `size` bytes that every token reads whole, `resident` of them from DRAM."""
        here, streamed = self._positions(step, layers), size * (1 - resident)
        self._arrays["dram_static"][:, here] = size * resident
        self._arrays["flash_static"][:, here] = streamed
        self._arrays["static_reads"][here] = reads * (np.asarray(streamed) > 0)
        self._arrays["flops"][:, here] = 2 * size * 8 / bits


def _unwatched(_caches: LayerCaches, _layer: int, _fetch: Fetch) -> None:
    """Nobody looks."""


def make_builders(
    shape: ModelShape,
    settings: Sequence[Setting],
    tokens: int,
    starts: tuple[int, ...],
    prompts: Sequence[tuple[int, int]] = (),
) -> list[PlanBuilder]:
    """The builders of plans that are made side by side. Raises InputError as one does, and for want of memory."""
    builders = [PlanBuilder(shape, setting, tokens, starts, prompts) for setting in settings]
    what = f"{len(builders)} plans of {tokens} tokens of {shape.name or 'the model'}"
    check_memory(sum(builder.least_bytes for builder in builders), what, LESS)
    return builders


def _empty_arrays(
    shape: ModelShape, groups: Sequence[Group], page: float, tokens: int, positions: int
) -> dict[str, NDArray[Any]]:
    """All arrays of a plan, zero."""
    size = (tokens, positions)

    def largest(group: Group) -> int:
        """The most columns, pages or parts of columns that a read of a group can have."""
        if group.levels is not None and page == 1:
            return int(shape.axis_size(group.axis) / group.levels.steps[group.levels.steps > 0].min()) + 1
        if group.axis == "expert":
            return int(shape.expert_bytes.max() / page) + 2 if page > 1 else 1
        pages = int(len(group.matrices) * shape.mlp_matrix_bytes / page) + 2 if page > 1 else 0
        return max(shape.axis_size(group.axis), pages)

    most = [largest(group) for group in groups]
    classes = max(most, default=1).bit_length()
    names = ("dram_static", "flash_static", "dram_hits", "flash_misses", "flash_gaps", "flops")
    arrays: dict[str, NDArray[Any]] = {name: np.zeros(size) for name in names}
    each = ("static_reads", "peak_cache_bytes", "ranked", "piece_bytes", "unit_bytes")
    arrays |= {name: np.zeros(positions) for name in each}
    for name, kind in (("reads", np.int32), ("read_bytes", np.float64)):
        # the classes come first in memory: one that is never used takes none
        arrays[name] = np.moveaxis(np.zeros((classes, *size), dtype=kind), 0, 2)
    return arrays
