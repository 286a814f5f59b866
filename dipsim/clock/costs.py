"""What the steps of a run on the clock cost alone: the formulas of `timing.service`, a step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dipsim.clock.clocked import Speculation
from dipsim.clock.cycles import Cycle
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.steps import Reads, Site, Stepwise
from dipsim.timing.device import Device
from dipsim.timing.engine import Request, Requests, further_resources
from dipsim.timing.service import compute_seconds, dram_seconds, dram_traffic, service_times
from dipsim.timing.timeline import RESOURCES, Resource
from dipsim.workload.shape import ModelShape


@dataclass(frozen=True)
class _Moved:
    """What one step with a mask moves and computes (see `service.Moved`)."""

    setting: Setting
    shape: ModelShape
    admits: bool
    dram_hits: float
    flash_misses: float
    flash_read_bytes: float
    flops: float
    ranked: float
    piece_bytes: float
    dram_static: float = 0.0
    flash_static: float = 0.0
    is_attention: bool = False


class Found(NamedTuple):
    """How many units a step uses, where it finds them, and what it reads.

    Of the `used` ones, `here` are found without Flash, of which guesses brought `brought`; `above` of them come from
    each tier above DRAM. `behind` are the reads of each tier behind Flash, and their bytes; `read` those of Flash.
    """

    used: float
    here: float
    brought: int = 0
    above: tuple[int, ...] = ()
    behind: tuple[tuple[float, float], ...] = ()
    read: float = 0.0


class Costs:
    """The costs of the steps of a plan, whose rows are `cycles`, on a device.

    `ahead` and `static` [rows, P] are what is known before masks, of weights and of compute, and `static_reads` the
    reads from Flash among it; `prefill` encodes a prompt. `heads` [rows] is where a plan of all counted tokens has the
    first token of each cycle. With `contention`, what is read because of masks crosses DRAM
    and enters caches by itself, and costs a step nothing.
    """

    def __init__(
        self, plan: Stepwise, device: Device, cycles: Sequence[Cycle], speculation: Speculation | None, contention: bool
    ) -> None:
        self.plan, self.device = plan, device
        if contention:
            quiet = device.dram.model_copy(update={"flash_copies": 0, "fill": None})
            device = device.model_copy(update={"dram": quiet})
        self._quiet = device
        self.resources = (*RESOURCES, *further_resources(device))
        still = plan.without_masks()
        self.steps, self.admits = still.step, still.admits
        self.heads = heads = np.searchsorted(plan.counted, [cycle.tokens[0] for cycle in cycles])
        drafts = np.array([cycle.drafts for cycle in cycles])
        self._slower = 1 + drafts * (speculation.verify if speculation else 0.0)
        drafting = drafts * (speculation.draft_time if speculation else 0.0)
        nothing = np.zeros((len(cycles), len(still.step)))
        computing, seconds = [nothing.copy() for _ in self.resources], {}
        for position, step in enumerate(still.step):
            unit, computes = self._unit(step)
            if unit not in seconds:
                seconds[unit] = compute_seconds(still, computes)[heads]
            computing[unit][:, position] = self._slower * seconds[unit][:, position] + drafting * (position == 0)
        service, (traffic, _) = service_times(still, self.device), dram_traffic(still, self.device)
        others = [nothing] * (len(self.resources) - 2)
        self.static = Requests(computing, [nothing, nothing, *others])
        self.ahead = Requests(
            (service.flash_static[heads], service.dram_static[heads], *others),
            (still.flash_static[heads], traffic[heads], *others),
        )
        self.static_reads = still.flash_reads[heads].tolist()
        further = [0.0] * (len(self.resources) - len(RESOURCES))
        self.prefill = Request([*service.prefill.tolist(), *further], [*service.prefill_bytes.tolist(), *further])
        self._masked = lru_cache(maxsize=4096)(self._masked_seconds)
        self._batch = lru_cache(maxsize=4096)(self._batch_seconds)

    def request(self, row: int, site: Site, found: Found, reads: Reads, wanted: Sequence[int]) -> Request:
        """What a step asks of each resource besides what is known before its token starts.

        `wanted` are the units that each of the tokens that are computed together wants. All of them are computed, and
        that takes no shorter than what verifying costs.
        """
        unit, dram, compute, traffic = self._masked(site.position, found)
        if len(wanted) > 1:
            mean = sum(wanted) / len(wanted)
            _, _, alone, _ = self._masked(site.position, Found(mean, mean))
            compute = max(compute, float(self._slower[row]) * alone)
        seconds, sizes = [0.0] * len(self.resources), [0.0] * len(self.resources)
        seconds[Resource.FLASH], sizes[Resource.FLASH] = self.batch_seconds(reads), reads.size
        seconds[Resource.DRAM], sizes[Resource.DRAM] = dram, traffic
        seconds[unit] = compute
        if self.device.tiers:
            pieces = site.unit_bytes / self.plan.piece_bytes(site)
            given = (*((units * pieces, units * site.unit_bytes) for units in found.above), *found.behind)
            tiers = zip(self.device.tiers, given, strict=False)
            for index, (tier, (count, size)) in enumerate(tiers, start=len(RESOURCES)):
                sizes[index] = size
                seconds[index] = count * tier.command_time + size / tier.bandwidth
        return Request(seconds, sizes, max(1.0, reads.total), reads.size / max(1.0, reads.total))

    def batch_seconds(self, reads: Reads) -> float:
        """Seconds of a batch of reads alone."""
        return self._batch(tuple(reads.count.tolist()), tuple(reads.bytes.tolist()))

    def _batch_seconds(self, count: tuple[float, ...], size: tuple[float, ...]) -> float:
        return float(self.device.flash.batch_time(count, size)) if any(count) else 0.0

    def _masked_seconds(self, position: int, found: Found) -> tuple[int, float, float, float]:
        """The unit that computes a step, the seconds of DRAM and of compute, and the bytes over the DRAM bus."""
        plan, site = self.plan, self.plan.sites[position]
        unit, device = self._unit(self.steps[position])
        size, missed = site.unit_bytes, (found.used - found.here) * site.unit_bytes
        moved = _Moved(
            *(plan.setting, plan.shape, self.admits, found.here * size, missed),
            flash_read_bytes=max(found.read + sum(size for _, size in found.behind), missed),
            flops=found.used * (2.0 * size * 8 / plan.shape.bits.mlp),
            ranked=float(site.caches.columns * (size > 0)),
            piece_bytes=plan.piece_bytes(site),
        )
        compute = float(compute_seconds(moved, device))
        if device.dram.fill and self.admits:
            compute += found.brought * size / device.dram.fill
        in_dram = replace(moved, dram_hits=(found.here - sum(found.above)) * size)
        return unit, float(dram_seconds(in_dram, device)[1]), compute, float(dram_traffic(in_dram, device)[1])

    def _unit(self, step: str) -> tuple[int, Device]:
        """Which resource computes a step, and the device with its rate."""
        compute = self._quiet.compute
        for name, unit in (compute.units if compute else {}).items():
            if compute is not None and step in unit.runs:
                rate = {"throughput": unit.throughput, "weights": unit.weights}
                return self.resources.index(name), self._quiet.model_copy(
                    update={"compute": compute.model_copy(update=rate)}
                )
        return Resource.COMPUTE, self._quiet
