"""Learns a layout from the first tokens of a trace, and tells on the others what it is good for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.basics.progress import Progress, silent
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.masks import LayerScores
from dipsim.sparsity.policy import Policy
from dipsim.storage.layouts import load_layout
from dipsim.storage.learned import Learned, Origin
from dipsim.workload.trace import Trace


class Told(NamedTuple):
    """Reads a token of columns that are not pinned, in the learned order and by rising index, on `tokens` tokens."""

    tokens: int
    learned: float
    by_index: float


def learn_layout(
    trace: Trace,
    policy: Policy,
    layout: str,
    out: Path,
    *,
    tokens: int | None = None,
    pinned: float = 0.5,
    progress: Progress = silent,
) -> Told:
    """Learn the orders of `layout` from the first `tokens` tokens of a trace, by default half of them; write `out`.

    `pinned` is the share of the MLP that lies apart, to be pinned. Raises InputError if the layout is not learned, the
    policy masks nothing, or no token is left to tell it on.
    """
    shown = trace.tokens // 2 if tokens is None else tokens
    if not 0 < shown < trace.tokens:
        raise InputError(f"tokens: {shown} to learn from, of {trace.tokens}; leave some, to tell what was learned")
    if not load_layout(layout).learns:
        raise InputError(f"layout: {layout} has nothing to learn; use popularity, hot-apart or coactivation")
    dram = trace.shape.static_bytes(trace.longest_sequence()) + pinned * trace.shape.mlp_bytes
    builders = [
        PlanBuilder(trace.shape, Setting(policy, dram, "pinned", layout=name), trace.tokens, trace.sequence_starts)
        for name in (layout, "hot-apart")
    ]
    if not builders[0].groups:
        raise InputError(f"policy {policy.label}: reads every column, so there is no order to learn; use another")
    orders, reads = {}, np.zeros(2)
    for index in range(trace.shape.num_hidden_layers):
        layer = LayerScores(trace.layer(index))
        for which, builder in enumerate(builders):
            builder.place(index, [layer.scores_of(caches)[:shown] for caches in builder.caches])
            for caches in builder.caches:
                masks, residents = layer.masks_and_residents(builder, caches, index)
                reads[which] += builder.fetch(caches, index, masks[shown:], residents[shown:])[0].reads.sum()
                if which == 0:
                    orders[f"layers.{index}.{caches.group.name}"] = builder.placement(caches, index).order
        progress("learning layers", index + 1, trace.shape.num_hidden_layers)
    origin = Origin(
        layout=layout,
        model=trace.shape,
        policy=policy.label,
        trace=trace.name,
        trace_sha256=sha256(trace.path),
        tokens=shown,
    )
    Learned(out, origin, orders).write()
    rest = trace.tokens - shown
    return Told(rest, float(reads[0] / rest), float(reads[1] / rest))
