"""Learns a layout from the first tokens of a trace, and tells on the others what it is good for.

Which columns to pin is decided over all layers and groups at once: those that save the most for each byte of DRAM.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dipsim.basics.arrays import Floats, Ints
from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.basics.progress import Progress, silent
from dipsim.planning.builder import LayerCaches, PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.masks import LayerScores
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.selection import policy_bytes
from dipsim.storage.flash import Flash
from dipsim.storage.layouts import load_layout
from dipsim.storage.learned import Learned, Origin
from dipsim.storage.worth import cost_of_leaving
from dipsim.workload.trace import Trace


class Told(NamedTuple):
    """Reads and bytes a token, as learned and with equal shares pinned and the rest by index, on `tokens` tokens."""

    tokens: int
    reads: float
    read_bytes: float
    plain_reads: float
    plain_read_bytes: float


def learn_layout(
    trace: Trace,
    policy: Policy,
    layout: str,
    out: Path,
    *,
    flash: Flash | None = None,
    tokens: int | None = None,
    pinned: float = 0.5,
    progress: Progress = silent,
) -> Told:
    """Learn the orders of `layout` from the first `tokens` tokens of a trace, by default half of them; write `out`.

    `pinned` is the share of the MLP that DRAM will hold, matrices that the policy reads whole included. `flash` is what
    the rest will be read from. Raises InputError if the layout is not learned, the policy masks nothing, or no token is
    left to tell it on.
    """
    shown = trace.tokens // 2 if tokens is None else tokens
    if not 0 < shown < trace.tokens:
        raise InputError(f"tokens: {shown} to learn from, of {trace.tokens}; leave some, to tell what was learned")
    if not (shipped := load_layout(layout)).learns or shipped.needs_pinned:
        raise InputError(f"layout: {layout} has nothing to learn; use popularity, hot-apart or coactivation")
    if not 0 <= pinned <= 1:
        raise InputError(f"pinned: {pinned} is not a share of the MLP, from 0 to 1")
    static = trace.shape.static_bytes(trace.longest_sequence()) + policy_bytes(policy, trace.shape)
    page = 1.0 if flash is None else flash.page
    setting = Setting(policy, static, "pinned", layout=layout, page=page, flash=flash)
    learning = PlanBuilder(trace.shape, setting, trace.tokens, trace.sequence_starts)
    if not learning.groups:
        raise InputError(f"policy {policy.label}: reads every column, so there is no order to learn; use another")
    dram = static + pinned * trace.shape.mlp_bytes
    plain = PlanBuilder(
        trace.shape, replace(setting, dram_bytes=dram, layout="hot-apart"), trace.tokens, trace.sequence_starts
    )
    layers = trace.shape.num_hidden_layers
    savings: dict[str, tuple[Floats, float]] = {}  # of each column, and its bytes
    for index in range(layers):
        layer = LayerScores(trace.layer(index, shown))
        learning.place(index, [layer.scores_of(caches) for caches in learning.caches])
        for caches in learning.caches:
            savings[_name(index, caches)] = _savings(learning, layer, caches, index)
        progress("learning what to pin", index + 1, layers)
    rankings, counts = _pin(savings, plain.budget.cache_bytes + plain.budget.unused_bytes)
    orders: dict[str, Ints] = {}
    told = np.zeros(4)
    for index in range(layers):
        layer = LayerScores(trace.layer(index))
        plain.place(index, [layer.scores_of(caches)[:shown] for caches in plain.caches])
        learning.place(index, [layer.scores_of(caches)[:shown] for caches in learning.caches], rankings, counts)
        for which, builder in enumerate((learning, plain)):
            for caches in builder.caches:
                masks, residents = layer.masks_and_residents(builder, caches, index)
                found, _ = builder.fetch(caches, index, masks[shown:], residents[shown:])
                told[2 * which : 2 * which + 2] += found.reads.sum(), found.read_bytes.sum()
        for caches in learning.caches:
            orders[_name(index, caches)] = learning.placement(caches, index).order
        progress("learning orders", index + 1, layers)
    origin = Origin(
        layout=layout,
        model=trace.shape,
        policy=policy.label,
        trace=trace.name,
        trace_sha256=sha256(trace.path),
        tokens=shown,
        pinned=counts,
    )
    Learned(out, origin, orders).write()
    rest = trace.tokens - shown
    return Told(rest, *(told / rest).tolist())


def _name(layer: int, caches: LayerCaches) -> str:
    return f"layers.{layer}.{caches.group.name}"


def _savings(learning: PlanBuilder, layer: LayerScores, caches: LayerCaches, index: int) -> tuple[Floats, float]:
    """What pinning each column saves, [N], and the bytes of one, by tokens that find nothing pinned."""
    placement, price, flash = learning.placement(caches, index), caches.group.price, learning.setting.flash
    masks, residents = layer.masks_and_residents(learning, caches, index)
    found, _ = learning.fetch(caches, index, masks, residents)
    scores = None if price is None else layer.scores_of(caches)
    wanted = masks if price is None else found.masks
    return cost_of_leaving(wanted, scores, 1.0 if price is None else price, placement, flash), placement.unit_bytes


def _pin(savings: dict[str, tuple[Floats, float]], room: float) -> tuple[dict[str, Ints], dict[str, int]]:
    """Each group's columns from the most to the least worth pinning, and how many of them fill `room` bytes best."""
    rankings = {name: np.argsort(-saved, kind="stable") for name, (saved, _) in savings.items()}
    value = np.concatenate([saved[rankings[name]] / size for name, (saved, size) in savings.items()])
    sizes = np.concatenate([np.full(len(saved), size) for saved, size in savings.values()])
    owner = np.repeat(np.arange(len(savings)), [len(saved) for saved, _ in savings.values()])
    best = np.argsort(-value, kind="stable")
    fits = best[np.cumsum(sizes[best]) <= room]
    counts = np.bincount(owner[fits], minlength=len(savings))
    return rankings, dict(zip(savings, counts.tolist(), strict=True))
