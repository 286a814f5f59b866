"""Service times: for how many seconds each step of a plan occupies each resource of a device.

The engine and the recurrence share them. The equations are in docs/background/equations.md, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dipsim.basics.arrays import Floats
from dipsim.basics.errors import InputError
from dipsim.planning.expert_reads import expert_pieces, piece_read_bytes
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.timing.device import Device
from dipsim.timing.timeline import Timing

if TYPE_CHECKING:
    from dipsim.workload.shape import ModelShape


@dataclass(frozen=True)
class ServiceTimes:
    """Seconds of service, arrays [T, P].

    `flash_static` and `dram_static` are known before the token starts; `flash` and `dram` need its mask. Where Flash
    and compute run side by side, reads cost compute another `interrupts`. `prefill` [3] is the service of Flash, DRAM
    and compute to encode the prompt, `prefill_bytes` [3] what it moves.
    """

    flash_static: Floats
    flash: Floats
    dram_static: Floats
    dram: Floats
    compute: Floats
    interrupts: Floats
    prefill: Floats
    prefill_bytes: Floats

    def by_resource(self, timing: Timing = "serial") -> Floats:
        """All service of each resource, [3, T, P], in the order of `Resource`."""
        compute = self.compute + self.interrupts if timing == "pipelined" else self.compute
        return np.stack([self.flash_static + self.flash, self.dram_static + self.dram, compute])


def service_times(plan: FetchPlan, device: Device) -> ServiceTimes:
    """The service times of a plan on a device. Compute takes no time on a device that does not describe it.

    Raises InputError if the plan was made for Flash with other pages.
    """
    if plan.groups and plan.setting.page != device.flash.page:
        raise InputError(
            f"flash.page: device {device.name} has {device.flash.page:g} B, and what is read was planned for "
            f"{plan.setting.page:g} B; plan with the page of the device"
        )
    where, count, total = plan.fetches
    flash, flash_static = np.zeros_like(plan.flash_misses), np.zeros_like(plan.flash_static)
    flash[:, where] = device.flash.batch_time(count, total)
    streamed = np.flatnonzero(plan.static_reads)
    flash_static[:, streamed] = device.flash.batch_time(
        plan.static_reads[streamed, None], plan.flash_static[:, streamed, None]
    )
    dram_static, dram = dram_seconds(plan, device)
    encoding, encoding_bytes = prefill(plan, device)
    return ServiceTimes(
        flash_static=flash_static,
        flash=flash,
        dram_static=dram_static,
        dram=dram,
        compute=compute_seconds(plan, device),
        interrupts=plan.flash_reads * (device.compute.interrupt if device.compute else 0.0),
        prefill=encoding,
        prefill_bytes=encoding_bytes,
    )


class Moved(Protocol):
    """What steps move and compute, by the names of a `FetchPlan`: of all its steps, or of a single one."""

    @property
    def setting(self) -> Setting: ...
    @property
    def shape(self) -> ModelShape: ...
    @property
    def admits(self) -> bool: ...
    @property
    def dram_static(self) -> Any: ...
    @property
    def flash_static(self) -> Any: ...
    @property
    def dram_hits(self) -> Any: ...
    @property
    def flash_misses(self) -> Any: ...
    @property
    def flash_read_bytes(self) -> Any: ...
    @property
    def flops(self) -> Any: ...
    @property
    def ranked(self) -> Any: ...
    @property
    def piece_bytes(self) -> Any: ...
    @property
    def is_attention(self) -> Any: ...


def dram_seconds(moved: Moved, device: Device) -> tuple[Any, Any]:
    """Seconds of DRAM: what is known before the token starts, and what needs its mask."""
    static, masked = dram_traffic(moved, device)
    short = np.maximum(1.0, device.dram.row / np.maximum(moved.piece_bytes, 1.0)) - 1  # of a column's own bytes
    gathered = moved.dram_hits * np.where(moved.piece_bytes > 0, short, 0.0)
    if device.compute is not None and device.compute.weights is not None:  # which brings what it computes with
        static, masked, gathered = static - moved.dram_static, masked - moved.dram_hits, np.zeros_like(gathered)
    return (
        (static + _paged(moved, device, moved.dram_static)) / device.dram.bandwidth,
        (masked + gathered + _paged(moved, device, moved.dram_hits)) / device.dram.bandwidth,
    )


def dram_traffic(plan: Moved, device: Device) -> tuple[Any, Any]:
    """Bytes over the DRAM bus, those known before a token starts and those that need its mask; of a plan [T, P] each.

    What comes from Flash crosses the bus `flash_copies` times more.
    """
    copies = device.dram.flash_copies
    masked = plan.dram_hits + copies * plan.flash_read_bytes if copies else plan.dram_hits
    return plan.dram_static + copies * plan.flash_static, masked


def page_fault_share(dram_bytes: float, device: Device) -> float:
    """The share of what is thought resident that is not, where more DRAM is used than the device has free."""
    return max(0.0, 1 - device.dram.usable / dram_bytes)


def _paged(plan: Moved, device: Device, resident: Any) -> Any:
    """Bytes that DRAM could move while `resident` bytes page in as far as they were paged out."""
    share = page_fault_share(plan.setting.dram_bytes, device)
    if not share or device.dram.paging is None:
        return np.zeros_like(resident)
    return resident * (share * device.dram.bandwidth / device.dram.paging)


def compute_seconds(moved: Moved, device: Device) -> Any:
    """Seconds of compute: the arithmetic, the choice of columns, what a layer costs, and filling caches."""
    compute, fill = device.compute, device.dram.fill
    filling = moved.flash_misses / fill if fill and moved.admits else np.zeros_like(moved.flops)
    if compute is None:
        return filling
    if compute.weights is None:
        seconds = moved.flops / _throughput(moved, device)
    else:
        used = moved.dram_static + moved.dram_hits + (moved.flash_static + moved.flash_misses)
        seconds = used / compute.weights
    seconds = seconds + filling + compute.layer * moved.is_attention
    return seconds if compute.selection is None else seconds + moved.ranked / compute.selection


def _throughput(plan: Moved, device: Device) -> float:
    """Operations per second. A byte of MLP weights is 8 / bits weights, of two operations each."""
    if device.compute is None:
        return np.inf
    return device.compute.throughput or (device.compute.weights or 0) * 16 / plan.shape.bits.mlp


def prefill(plan: FetchPlan, device: Device) -> tuple[Floats, Floats]:
    """Service [3] to encode the prompt, and its bytes [3]: the static ones from DRAM, the whole MLP once from Flash.

    Tokens that warm the caches are part of the prompt. A prompt of 0 positions is the first token alone, which needs
    every weight once. Of experts, what the prompt's own tokens missed is read, or else all that so many could use.
    """
    shape, budget, bits = plan.shape, plan.budget, plan.shape.bits
    positions, layers = max(plan.setting.prompt + plan.warm_up, 1), plan.shape.num_hidden_layers
    is_static = ~plan.is_mlp
    streamed = device.flash.batch_time(plan.static_reads[is_static, None], plan.flash_static[0, is_static, None])
    mlp = used = shape.mlp_bytes
    if shape.mixture is None:
        flash = layers * float(device.flash.batch_time([3], [3 * shape.mlp_matrix_bytes]))
    else:
        reads, read = _experts_of_prompt(plan, positions)
        flash = float(device.flash.batch_time(reads, read).sum())
        mlp = float(read.sum()) + budget.whole_streamed_bytes
        used = shape.working_set_bytes + float(shape.whole_mlp_bytes.sum())
    flash += float(streamed.sum())
    dram = budget.static_bytes - budget.streamed_static_bytes
    dram += device.dram.flash_copies * (mlp + budget.streamed_static_bytes)
    weights = used * 8 / bits.mlp + shape.attention_bytes * 8 / bits.attention
    flops = 2 * weights * positions + 2 * shape.hidden_size * shape.vocab_size
    flops += 4 * layers * shape.query_size * positions * (positions + 1) / 2  # each position sees those before it
    seconds = np.array([flash, dram / device.dram.bandwidth, flops / _throughput(plan, device)])
    return seconds, np.array([mlp + float(plan.flash_static[0, is_static].sum()), dram, 0.0])


def _experts_of_prompt(plan: FetchPlan, positions: int) -> tuple[Floats, Floats]:
    """Reads and their bytes [L, R] of a prompt's experts."""
    if plan.encoded is not None and plan.encoded.reads.any() and not plan.setting.prompt:
        return plan.encoded.reads, plan.encoded.read_bytes
    mixture = plan.shape.experts
    most = min(mixture.num_experts, positions * mixture.num_experts_per_tok)
    pieces, size = expert_pieces(plan.shape, plan.setting), piece_read_bytes(plan.shape, plan.setting)
    reads = np.where(plan.shape.is_mixture, most * pieces, 0.0)
    return reads[:, None], (reads * size)[:, None]
