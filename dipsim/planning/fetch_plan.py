"""The fetch plan of one setting: what every token reads, from where, in which pieces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.arrays import Floats, Ints
from dipsim.memory.budget import Budget
from dipsim.memory.split import Split
from dipsim.sparsity.policy import Group, Policy
from dipsim.sparsity.selection import ATTENTION, LM_HEAD
from dipsim.storage.flash import Flash
from dipsim.workload.shape import BitWidths, ModelShape

Start = Literal["warm", "cold", "filled"]
Scope = Literal["layer", "model"]
Shares = Literal["even", "best"]
DIGITS = 9  # of numbers of experts: what is less comes from rounding
WARM_UP = 64  # tokens of a sequence, at most, that pass through the caches before the clock starts


def warm_up_tokens(start: Start, length: int) -> int:
    """How many tokens of a sequence of `length` are not counted: WARM_UP, but no more than half of them."""
    return min(WARM_UP, length // 2) if start == "warm" else 0


@dataclass(frozen=True)
class Setting:
    """One thing to plan.

    `dram_bytes` is the DRAM for weights and KV cache. `prompt` is the number of positions before the trace's. With
    `stream_static`, lm_head and attention may overflow to Flash. `start` says how the caches begin, `layout` (a name or
    a path) how columns lie in Flash. A layout is learned from the trace `calibration`, by default from the tokens that
    are not counted. Flash has pages of `page` bytes, 1 for none. `flash` is given if what is read depends on its times:
    gaps are then read through where that is faster. A cache of experts is divided evenly over the layers, or it is one
    over all layers (`scope`). The `split` of the DRAM over caches is even, or the best for Flash, learned as a layout
    is. `buffer` bytes of the DRAM hold guesses; the KV caches of `streams` sequences are there at a time; `draft`
    tokens are verified together with the one before them. `bits` replace those of the model.
    """

    policy: Policy
    dram_bytes: float
    eviction: str = "lfu"
    prompt: int = 0
    stream_static: bool = False
    start: Start = "cold"
    layout: str = "columns"
    calibration: str | None = None
    page: float = 1.0
    flash: Flash | None = None
    scope: Scope = "layer"
    split: Shares = "even"
    buffer: float = 0.0
    streams: int = 1
    draft: int = 0
    bits: BitWidths | None = None

    def of(self, shape: ModelShape) -> ModelShape:
        """The model's shape with the setting's bits."""
        return shape if self.bits is None else shape.model_copy(update={"bits": self.bits})

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the policy, by name."""
        return {name: value for name, value in vars(self).items() if name != "policy"}


@dataclass(frozen=True)
class Encoded:
    """What tokens that are not counted did to the caches of experts: prompts, or those that warm caches up.

    `wanted` and `found` are experts of all layers, a low copy as its part of an exact one. `reads` and `read_bytes`
    [L, R] are those of a prompt that begins a sequence, as a mean, by copy; 0 where there is none.
    """

    wanted: float
    found: float
    reads: Floats
    read_bytes: Floats


@dataclass(frozen=True)
class Guessed:
    """What became of guesses, [T] each, in units: `useful`, there in time; `late`, waited for; `wasted`, read for
    nothing; `dropped`, never read. `reads` and `bytes` were read from Flash for them, at the token that guessed.
    """

    useful: Floats
    late: Floats
    wasted: Floats
    dropped: Floats
    reads: Floats
    bytes: Floats

    @classmethod
    def none(cls, tokens: int) -> Guessed:
        """No guesses."""
        return cls(*(np.zeros(tokens) for _ in range(6)))

    def of(self, tokens: Ints) -> Guessed:
        """Those of some tokens."""
        return Guessed(*(counts[tokens] for counts in vars(self).values()))


@dataclass(frozen=True)
class FetchPlan:
    """What each of T counted tokens reads at each of P positions: the steps of layer 0, of layer 1, ..., then lm_head.

    Arrays are read-only. Those in bytes are float64 [T, P]: `dram_static` and `flash_static` are known before the token
    starts (attention, KV cache, lm_head, matrices read whole); `dram_hits` and `flash_misses` are known only once the
    mask is, and `flash_gaps` is what is read from Flash without being used. `reads` (int32) and `read_bytes` (float64)
    [T, P, R] count the Flash reads of misses and gaps, and their bytes by size: class r holds runs of 2^r to
    2^(r+1) - 1 pages (columns, where Flash has no pages). `static_reads` [P] counts the reads of `flash_static`.
    `flops` [T, P] are floating-point operations. `peak_cache_bytes` [P] is the most that a position's caches ever held.
    `ranked` [P] are the columns that a position selects among, `piece_bytes` [P] what a column takes in each piece of
    its group, `unit_bytes` [P] what it takes in all of them. What is missed enters a cache if it `admits`. `layer` [P]
    is num_hidden_layers for lm_head. `warm_up` is the number of tokens of a sequence, at most, that came before those
    counted, of which `encoded` tells what they did to experts. `split` tells how the best split of the DRAM was found,
    None for the even one. `uses` [L, E] are the counted tokens that use each expert, in whichever copy, None without
    experts. `guessed` tells what was read ahead of masks, None if nothing
    was; what a step found there in time, or waited for, counts among its `dram_hits`. `accepted` [T] is how many
    tokens each row stands for where drafts are verified together, None where it is one. `tier_bytes` [T, tiers]
    came from tiers above DRAM and behind Flash in `tier_reads`, and count among `dram_hits`, and what is missed and
    read from Flash, all the same.
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
    flash_gaps: Floats
    reads: NDArray[np.int32]
    read_bytes: Floats
    flops: Floats
    peak_cache_bytes: Floats
    ranked: Floats
    piece_bytes: Floats
    unit_bytes: Floats
    admits: bool = False
    warm_up: int = 0
    split: Split | None = None
    encoded: Encoded | None = None
    uses: Ints | None = None
    guessed: Guessed | None = None
    accepted: Ints | None = None
    tier_bytes: Floats | None = None
    tier_reads: Floats | None = None

    @property
    def rows(self) -> int:
        """T, the number of tokens that were computed one by one, or of verified drafts."""
        return len(self.dram_hits)

    @property
    def tokens(self) -> int:
        """The number of tokens that came out."""
        return self.rows if self.accepted is None else int(self.accepted.sum())

    def of_rows(self, rows: Ints) -> FetchPlan:
        """The plan of some of its rows [n], in order."""
        moved = (
            "dram_static",
            "flash_static",
            "dram_hits",
            "flash_misses",
            "flash_gaps",
            "reads",
            "read_bytes",
            "flops",
        )
        starts = np.unique(np.searchsorted(rows, self.sequence_starts))
        kept = {name: getattr(self, name)[rows] for name in moved}
        return replace(self, sequence_starts=tuple(starts.tolist()), **kept)

    @cached_property
    def fetches(self) -> tuple[NDArray[np.intp], Floats, Floats]:
        """The positions [Q] with reads of misses; their number and their bytes [T, Q, S] by size class in use."""
        sizes = np.flatnonzero(self.reads.any(axis=(0, 1)))
        where = np.flatnonzero(self.reads[..., sizes].any(axis=(0, 2)))
        picked = (sizes[:, None, None], np.arange(self.rows)[:, None], where)
        count, total = np.moveaxis(self.reads, 2, 0)[picked], np.moveaxis(self.read_bytes, 2, 0)[picked]
        return where, np.moveaxis(count.astype(np.float64), 0, 2), np.moveaxis(total, 0, 2)

    @property
    def peak_dram_bytes(self) -> float:
        """The most DRAM in use at any time: static parts, matrices read whole, and the caches at their fullest."""
        static = self.budget.static_bytes - self.budget.streamed_static_bytes
        return float(static + self.budget.whole_resident_bytes + self.peak_cache_bytes.sum() + self.setting.buffer)

    @property
    def is_mlp(self) -> NDArray[np.bool_]:
        """Which positions read MLP weights, [P]."""
        return np.array([name not in (ATTENTION, LM_HEAD) for name in self.step])

    @property
    def is_attention(self) -> NDArray[np.bool_]:
        """Which positions begin a layer, [P]."""
        return np.array([name == ATTENTION for name in self.step])

    @property
    def of_experts(self) -> bool:
        """Whether masks choose experts."""
        return any(group.axis == "expert" for group in self.groups)

    @property
    def working_set_bytes(self) -> float:
        """The experts that one token uses, as a mean over the tokens, in bytes."""
        found, missed = self.units
        return float(((found + missed) * self.unit_bytes).sum() / self.rows)

    @property
    def cliff_dram_bytes(self) -> float | None:
        """The DRAM below which a cache does not hold the experts of one token; None where it is not of experts.

        A recency cache over all layers then hits nothing: a token asks for what it has just thrown away.
        """
        if not self.of_experts:
            return None
        used = sum(group.k for group in self.groups) * float(self.shape.expert_bytes.sum())
        return self.budget.static_bytes + self.budget.buffer_bytes + float(self.shape.whole_mlp_bytes.sum()) + used

    @property
    def units(self) -> tuple[Floats, Floats]:
        """Experts found resident and missed, [T, P] each; a low copy counts as its part of an exact one."""
        size = np.maximum(self.unit_bytes, 1.0)
        return np.round(self.dram_hits / size, DIGITS), np.round(self.flash_misses / size, DIGITS)

    @property
    def dram_bytes(self) -> Floats:
        """All bytes from DRAM, [T, P]."""
        return self.dram_static + self.dram_hits

    @property
    def flash_bytes(self) -> Floats:
        """All bytes that are used from Flash, [T, P]."""
        return self.flash_static + self.flash_misses

    @property
    def flash_read_bytes(self) -> Floats:
        """Bytes read from Flash because of masks, [T, P]: what is used, gaps that are read through, and whole pages."""
        return self.flash_misses + self.flash_gaps

    @property
    def flash_reads(self) -> Floats:
        """All reads from Flash, [T, P]."""
        streams = self.static_reads * (self.flash_static > 0)
        return np.asarray(self.reads.sum(axis=2) + streams, dtype=np.float64)
