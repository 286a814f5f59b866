"""The fetch plan of one setting: what every token reads, from where, in which pieces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.arrays import Floats, Ints
from dipsim.memory.budget import Budget
from dipsim.sparsity.policy import Group, Policy
from dipsim.sparsity.selection import ATTENTION, LM_HEAD
from dipsim.workload.shape import ModelShape


@dataclass(frozen=True)
class Setting:
    """One thing to plan.

    `dram_bytes` is the DRAM for weights and KV cache. `prompt` is the number of positions before the trace's. With
    `stream_static`, lm_head and attention may overflow to Flash.
    """

    policy: Policy
    dram_bytes: float
    eviction: str = "lfu"
    prompt: int = 0
    stream_static: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the policy, by name."""
        return {name: value for name, value in vars(self).items() if name != "policy"}


@dataclass(frozen=True)
class FetchPlan:
    """What each of T tokens reads at each of P positions: the steps of layer 0, of layer 1, ..., then lm_head.

    Arrays are read-only. Those in bytes are float64 [T, P]: `dram_static` and `flash_static` are known before the token
    starts (attention, KV cache, lm_head, matrices read whole); `dram_hits` and `flash_misses` are known only once the
    mask is. `reads` (int32) and `read_bytes` (float64) [T, P, R] count the Flash reads of the misses and their bytes
    by size: class r holds runs of 2^r to 2^(r+1) - 1 columns. `static_reads` [P] counts the reads of `flash_static`.
    `flops` [T, P] are floating-point operations. `peak_cache_bytes` [P] is the most that a position's caches ever held.
    `layer` [P] is num_hidden_layers for lm_head.
    """

    setting: Setting
    shape: ModelShape
    groups: tuple[Group, ...]
    budget: Budget
    sequence_starts: tuple[int, ...]
    layer: Ints
    step: tuple[str, ...]
    dram_static: Floats
    flash_static: Floats
    static_reads: Floats
    dram_hits: Floats
    flash_misses: Floats
    reads: NDArray[np.int32]
    read_bytes: Floats
    flops: Floats
    peak_cache_bytes: Floats

    @property
    def tokens(self) -> int:
        """T, the number of tokens."""
        return len(self.dram_hits)

    @cached_property
    def fetches(self) -> tuple[NDArray[np.intp], Floats, Floats]:
        """The positions [Q] with reads of misses; their number and their bytes [T, Q, S] by size class in use."""
        sizes = np.flatnonzero(self.reads.any(axis=(0, 1)))
        where = np.flatnonzero(self.reads[..., sizes].any(axis=(0, 2)))
        picked = (sizes[:, None, None], np.arange(self.tokens)[:, None], where)
        count, total = np.moveaxis(self.reads, 2, 0)[picked], np.moveaxis(self.read_bytes, 2, 0)[picked]
        return where, np.moveaxis(count.astype(np.float64), 0, 2), np.moveaxis(total, 0, 2)

    @property
    def peak_dram_bytes(self) -> float:
        """The most DRAM in use at any time: static parts, matrices read whole, and the caches at their fullest."""
        static = self.budget.static_bytes - self.budget.streamed_static_bytes
        return float(static + self.budget.whole_resident_bytes + self.peak_cache_bytes.sum())

    @property
    def is_mlp(self) -> NDArray[np.bool_]:
        """Which positions read MLP weights, [P]."""
        return np.array([name not in (ATTENTION, LM_HEAD) for name in self.step])

    @property
    def dram_bytes(self) -> Floats:
        """All bytes from DRAM, [T, P]."""
        return self.dram_static + self.dram_hits

    @property
    def flash_bytes(self) -> Floats:
        """All bytes from Flash, [T, P]."""
        return self.flash_static + self.flash_misses
