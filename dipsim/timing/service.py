"""Service times: for how many seconds each step of a plan occupies each resource of a device.

The engine and the recurrence share them. The equations are in docs/background.md, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipsim.basics.arrays import Floats
from dipsim.planning.fetch_plan import FetchPlan
from dipsim.timing.device import Device


@dataclass(frozen=True)
class ServiceTimes:
    """Seconds of service, arrays [T, P].

    `flash_static` and `dram_static` are known before the token starts; `flash` and `dram` need its mask. `prefill` [3]
    is the service of Flash, DRAM and compute to encode the prompt.
    """

    flash_static: Floats
    flash: Floats
    dram_static: Floats
    dram: Floats
    compute: Floats
    prefill: Floats

    def by_resource(self) -> Floats:
        """All service of each resource, [3, T, P], in the order of `Resource`."""
        return np.stack([self.flash_static + self.flash, self.dram_static + self.dram, self.compute])


def service_times(plan: FetchPlan, device: Device) -> ServiceTimes:
    """The service times of a plan on a device. Compute takes no time on a device that does not describe it."""
    static, masked = dram_traffic(plan, device)
    where, count, total = plan.fetches
    flash, flash_static = np.zeros_like(plan.flash_misses), np.zeros_like(plan.flash_static)
    flash[:, where] = device.flash.batch_time(count, total)
    streamed = np.flatnonzero(plan.static_reads)
    flash_static[:, streamed] = device.flash.batch_time(
        plan.static_reads[streamed, None], plan.flash_static[:, streamed, None]
    )
    return ServiceTimes(
        flash_static=flash_static,
        flash=flash,
        dram_static=static / device.dram.bandwidth,
        dram=masked / device.dram.bandwidth,
        compute=plan.flops / _throughput(device),
        prefill=_prefill(plan, device),
    )


def dram_traffic(plan: FetchPlan, device: Device) -> tuple[Floats, Floats]:
    """Bytes over the DRAM bus, [T, P] each: those known before the token starts, and those that need its mask.

    What comes from Flash crosses the bus `flash_copies` times more.
    """
    copies = device.dram.flash_copies
    return plan.dram_static + copies * plan.flash_static, plan.dram_hits + copies * plan.flash_misses


def _throughput(device: Device) -> float:
    return device.compute.throughput if device.compute else np.inf


def _prefill(plan: FetchPlan, device: Device) -> Floats:
    """Service [3] to encode the prompt: the static bytes from DRAM, and the whole MLP once from Flash.

    A prompt of 0 positions is the first token alone, which needs every weight once.
    """
    shape, budget, bits = plan.shape, plan.budget, plan.shape.bits
    positions, layers = max(plan.setting.prompt, 1), plan.shape.num_hidden_layers
    is_static = ~plan.is_mlp
    streamed = device.flash.batch_time(plan.static_reads[is_static, None], plan.flash_static[0, is_static, None])
    flash = layers * float(device.flash.batch_time([3], [3 * shape.mlp_matrix_bytes])) + float(streamed.sum())
    dram = budget.static_bytes - budget.streamed_static_bytes
    dram += device.dram.flash_copies * (shape.mlp_bytes + budget.streamed_static_bytes)
    weights = shape.mlp_bytes * 8 / bits.mlp + shape.attention_bytes * 8 / bits.attention
    flops = 2 * weights * positions + 2 * shape.hidden_size * shape.vocab_size
    flops += 4 * layers * shape.query_size * positions * (positions + 1) / 2  # each position sees those before it
    return np.array([flash, dram / device.dram.bandwidth, flops / _throughput(device)])
