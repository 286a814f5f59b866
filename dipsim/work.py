"""FetchPlan x Device -> seconds of service that each resource owes each step. The engine and the bounds share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipsim.device import Device
from dipsim.plan import FetchPlan

Floats = NDArray[np.float64]
RESOURCES = ("flash", "dram", "compute")


@dataclass(frozen=True)
class Work:
    """Seconds of service, arrays [T, P]. `*_static` is known ahead of the token, `flash` and `dram` need the mask.

    `prefill` [3]: seconds of Flash, DRAM and compute to encode the prompt.
    """

    flash_static: Floats
    flash: Floats
    dram_static: Floats
    dram: Floats
    compute: Floats
    prefill: Floats

    def by_resource(self) -> Floats:
        """[3, T, P]: all service of each resource."""
        return np.stack([self.flash_static + self.flash, self.dram_static + self.dram, self.compute])


def work(plan: FetchPlan, device: Device) -> Work:
    """The service times of a plan on a device; compute takes no time on a device that does not have it."""
    static, masked = dram_traffic(plan, device)
    where, count, total = plan.fetches
    flash, flash_static = np.zeros_like(plan.flash_misses), np.zeros_like(plan.flash_static)
    flash[:, where] = device.flash.batch_time(count, total)
    streamed = np.flatnonzero(plan.static_reads)
    flash_static[:, streamed] = device.flash.batch_time(
        plan.static_reads[streamed, None], plan.flash_static[:, streamed, None]
    )
    return Work(
        flash_static=flash_static,
        flash=flash,
        dram_static=static / device.dram.bandwidth,
        dram=masked / device.dram.bandwidth,
        compute=plan.flops / _throughput(device),
        prefill=_prefill(plan, device),
    )


def dram_traffic(plan: FetchPlan, device: Device) -> tuple[Floats, Floats]:
    """Bytes over the DRAM bus, [T, P] each: known ahead of the token, and with the mask.

    What comes from Flash crosses the bus `flash_copies` times more.
    """
    copies = device.dram.flash_copies
    return plan.dram_static + copies * plan.flash_static, plan.dram_hits + copies * plan.flash_misses


def _throughput(device: Device) -> float:
    return device.compute.throughput if device.compute else np.inf


def _prefill(plan: FetchPlan, device: Device) -> Floats:
    """Encoding the prompt: the static bytes from DRAM and the whole MLP once from Flash (reference section 5).

    A prompt of 0 positions is the first token on its own, which still needs every weight once.
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
