"""Levels of precision in a plan: which are resident, where the rest lies, what tokens request and what they get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dipsim.basics.arrays import Floats, Numbers
from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.basics.units import show
from dipsim.memory.budget import Budget, column_bytes
from dipsim.memory.residency import hold_levels
from dipsim.planning.fetch_plan import Setting
from dipsim.sparsity.levels import Levels, at_levels, costs_of_levels, worth_levels
from dipsim.sparsity.policy import Group, Policy
from dipsim.sparsity.selection import checked_units
from dipsim.storage.records import Brought, LevelsOf, Records, bring
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Trace

ORDERS = ("columns", "popularity")  # layouts that say how records lie


class Precision:
    """The levels of the groups of one setting, which fit into `room` bytes of DRAM.

    `resident` [N] are those in DRAM, of each (group, layer). `base` [N] are those that every token has: what is not
    resident of them is streamed, in one large read, where reading it piece by piece would take longer. Raises
    InputError if not even what must be there fits, the layout does not say how records lie, or the setting's bits are
    not those of the highest level.
    """

    def __init__(self, shape: ModelShape, setting: Setting, groups: Sequence[Group], room: float) -> None:
        if setting.layout not in ORDERS:
            raise InputError(
                f"layout: {setting.layout}: {setting.policy.label} reads records of precision, which lie by index or "
                f"by how often they are read; use {' or '.join(ORDERS)}"
            )
        for group in groups if setting.bits else ():
            _check_bits(group, setting.policy, shape.bits.mlp)
        self.shape, self.setting, self.groups = shape, setting, groups
        sites = [(group, layer) for layer in range(shape.num_hidden_layers) for group in groups]
        self.units = {
            (group.name, layer): checked_units(setting.policy, group, layer, shape.axis_size(group.axis))
            for group, layer in sites
        }
        found = [
            costs_of_levels(self.units[group.name, layer], self.streaming(group), self.reading(group))
            for group, layer in sites
        ]
        sizes = [
            np.tile(self.resident_bytes(group), (len(costs), 1))
            for (group, _), (costs, _) in zip(sites, found, strict=True)
        ]
        try:
            chosen = hold_levels(np.concatenate([costs for costs, _ in found]), np.concatenate(sizes), room)
        except ValueError as error:
            raise InputError(
                f"dram: {show(setting.dram_bytes, 'size')} leave {show(room, 'size')} for the MLP; {error}, give more"
            ) from None
        self.resident: dict[tuple[str, int], LevelsOf] = {}
        self.base: dict[tuple[str, int], LevelsOf] = {}
        parts = np.split(chosen, np.cumsum([len(costs) for costs, _ in found])[:-1])
        for (group, layer), (_, bases), part in zip(sites, found, parts, strict=True):
            self.resident[group.name, layer] = part.astype(np.uint8)
            self.base[group.name, layer] = at_levels(bases, part).astype(np.uint8)

    def unit_bytes(self, group: Group) -> float:
        """Bytes of a unit at the highest level, in all matrices of its group."""
        return len(group.matrices) * column_bytes(self.shape, group)

    def resident_bytes(self, group: Group) -> Floats:
        """Bytes that a unit takes in DRAM at each level, [levels]."""
        return levels_of(group).resident_bytes(self.unit_bytes(group))

    def fetch_bytes(self, group: Group) -> Floats:
        """Bytes that a unit needs from one level to another, [from, to]."""
        return np.asarray(levels_of(group).steps * self.unit_bytes(group))

    def held_bytes(self, group: Group, layer: int) -> float:
        """What a group holds in DRAM, in one layer."""
        return float(self.resident_bytes(group)[self.resident[group.name, layer]].sum())

    def streamed_bytes(self, group: Group, layer: int) -> float:
        """What every token reads of a group from Flash, in one layer, to have its base."""
        key = group.name, layer
        return float(self.fetch_bytes(group)[self.resident[key], self.base[key]].sum())

    def streaming(self, group: Group) -> Floats:
        """The price of what lies between two levels of a unit, [from, to], in scores; inf downwards."""
        size = self.fetch_bytes(group)
        return np.asarray(np.where(np.isfinite(size), price_of(group) * np.nan_to_num(size, posinf=0), np.inf))

    def reading(self, group: Group) -> Floats:
        """What it costs that a token reads a unit by itself from one level to another, [from, to], in scores.

        Where reads cost time besides their bytes, it is the price of the bytes that Flash could read in that time.
        """
        priced, flash = self.streaming(group), self.setting.flash
        if flash is None:
            return priced
        pages = np.ceil(np.nan_to_num(self.fetch_bytes(group), posinf=0) / flash.page) * flash.page
        alone = price_of(group) * flash.transfer_time(pages) * flash.peak_bandwidth
        return np.asarray(np.where(np.isfinite(priced), alone, np.inf))

    @cached_property
    def total_bytes(self) -> float:
        """What all groups hold in DRAM."""
        return sum(
            self.held_bytes(group, layer) for group in self.groups for layer in range(self.shape.num_hidden_layers)
        )

    def budget(self, budget: Budget) -> Budget:
        """The budget with these levels in place of a cache."""
        rest = budget.cache_bytes + budget.unused_bytes - self.total_bytes
        return replace(budget, cache_bytes=self.total_bytes, unused_bytes=rest, capacities=(0,) * len(self.groups))

    def records(self, group: Group, layer: int) -> Records:
        """Where what is not resident of a group lies."""
        base, steps = self.base[group.name, layer], self.fetch_bytes(group)
        sizes = np.where(np.isfinite(steps), steps, 0.0)[base]
        order = np.arange(len(base))
        if self.setting.layout == "popularity":
            order = np.argsort(-self._gains(group, layer), kind="stable")
        order = order[base[order] < levels_of(group).top]
        return Records(order, sizes[order], self.setting.page)

    def _gains(self, group: Group, layer: int) -> Floats:
        """What reading a unit whole saves a token on average, a byte, beyond its price; [N]."""
        units, base = self.units[group.name, layer], self.base[group.name, layer]
        read = self.fetch_bytes(group)[base, -1]
        saved = units.scores * at_levels(units.errors, base) - price_of(group) * read
        return np.asarray(units.weights @ np.maximum(saved, 0.0) / np.maximum(read, 1.0))

    def request(self, group: Group, layer: int, scores: Numbers) -> LevelsOf:
        """The levels [T, N] that are worth reading for scores [T, N]."""
        chosen: LevelsOf = worth_levels(scores, *self.tables(group, layer, scores.dtype))
        return chosen

    def tables(self, group: Group, layer: int, dtype: Any) -> tuple[Numbers, Numbers]:
        """What a unit of score 1 loses at each level, and what reading up to it costs; [N, levels] each."""
        reading = self.reading(group)[self.base[group.name, layer]]
        return self.units[group.name, layer].errors.astype(dtype), reading.astype(dtype)

    def fetch(self, group: Group, layer: int, requested: LevelsOf, classes: int) -> Brought:
        """What tokens that request levels [T, N] read, and have."""
        held = np.maximum(requested, self.base[group.name, layer])
        return bring(held, self.records(group, layer), self.setting.flash, classes)

    def fetched_bytes(self, group: Group, layer: int, levels: LevelsOf) -> Floats:
        """Bytes [T] from the levels that every token has to others [T, N]."""
        table = self.fetch_bytes(group)[self.base[group.name, layer]]
        return np.asarray(at_levels(table, levels).sum(axis=-1))


def _check_bits(group: Group, policy: Policy, bits: float) -> None:
    """Raise InputError unless bits of a weight are those of the highest level's code, with its scales or without."""
    code, scales, _ = levels_of(group).each[-1]
    if bits not in (code, code + scales):
        raise InputError(
            f"bits: mlp: {bits:g}, and the codes of {policy.label} have {code:g}, or {code + scales:g} with their "
            "scales; use one of these, or another policy"
        )


def made_by(policy: Policy) -> dict[str, Any]:
    """What tells the requests of a policy from those of another: its parameters, and what its files hold."""
    files = policy.files()
    own = {name: value for name, value in policy.model_dump(mode="json").items() if Path(str(value)) not in files}
    return {"policy": policy.name, "parameters": own, "files": [sha256(file) for file in files]}


def check_requests_of(trace: Trace, policy: Policy) -> None:
    """Raise InputError if a trace has the requests of another policy with levels."""
    made = trace.header.source.get("made_by")
    if trace.header.holds == "requests" and made is not None and made != made_by(policy):
        raise InputError(
            f"{trace.name}: has the requests of {trace.header.source.get('policy')}, and {policy.label} is asked for; "
            "replay it with the policy, parameters and calibration that made it"
        )


def levels_of(group: Group) -> Levels:
    """The levels of a group that has some."""
    assert group.levels is not None
    return group.levels


def price_of(group: Group) -> float:
    """The price of a byte in a group with levels."""
    assert group.price is not None
    return group.price


def has_levels(groups: Sequence[Group]) -> bool:
    """Whether groups have levels; they all do, or none. Raises InputError otherwise."""
    with_levels = [group for group in groups if group.levels is not None]
    if with_levels and len(with_levels) < len(groups):
        raise InputError(f"group {with_levels[0].name} has levels, and others have none; give levels to all or to none")
    return bool(with_levels)
