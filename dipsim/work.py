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
    bandwidth, copies = device.dram.bandwidth, device.dram.flash_copies
    throughput = device.compute.throughput if device.compute else np.inf
    read_size = np.divide(plan.flash_static, plan.static_reads, out=np.zeros_like(plan.flash_static),
                          where=plan.static_reads > 0)  # fmt: skip
    return Work(
        flash_static=plan.static_reads * device.flash.read_time(read_size),
        flash=device.flash.batch_time(plan.reads, plan.read_bytes),
        dram_static=(plan.dram_static + copies * plan.flash_static) / bandwidth,
        dram=(plan.dram_hits + copies * plan.flash_misses) / bandwidth,
        compute=plan.flops / throughput,
        prefill=_prefill(plan, device, throughput),
    )


def _prefill(plan: FetchPlan, device: Device, throughput: float) -> Floats:
    """Encoding the prompt: the static bytes from DRAM and the whole MLP once from Flash (reference section 5).

    A prompt of 0 positions is the first token on its own, which still needs every weight once.
    """
    shape, budget = plan.shape, plan.budget
    positions = max(plan.setting.prompt, 1)
    matrices = 3 * shape.num_hidden_layers
    flash = matrices * float(device.flash.read_time(shape.mlp_matrix_bytes))
    flash += float(device.flash.read_time(budget.streamed_static_bytes))
    static = shape.lm_head_bytes + shape.attention_bytes + budget.kv_cache_bytes - budget.streamed_static_bytes
    copied = device.dram.flash_copies * (shape.mlp_bytes + budget.streamed_static_bytes)
    weights = shape.mlp_bytes * 8 / shape.bits.mlp + shape.attention_bytes * 8 / shape.bits.attention
    flops = 2 * weights * positions + 2 * shape.hidden_size * shape.vocab_size
    flops += 2 * shape.num_hidden_layers * shape.query_size * positions * (positions + 1)
    return np.array([flash, (static + copied) / device.dram.bandwidth, flops / throughput])
