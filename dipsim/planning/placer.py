"""Lays out the layers of plans in the making: as a file says, or learned from tokens that are not counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipsim.basics.arrays import Numbers
from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.basics.units import show
from dipsim.memory.budget import column_bytes
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.masks import LayerScores
from dipsim.storage.learned import Learned
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Trace


class Placer:
    """Lays out `builders` for a model of this shape, measured on `trace` (None: on a live model).

    Raises InputError if a calibration trace or a learned file is of another model, a file was learned from tokens that
    are measured or pins more than fits, or there is nothing that a layout may be learned from.
    """

    def __init__(self, builders: Sequence[PlanBuilder], shape: ModelShape, trace: Trace | None = None) -> None:
        self.builders = [builder for builder in builders if builder.layout.learns]
        names = {builder.setting.calibration for builder in self.builders} - {None}
        self.traces = {name: Trace.open(name) for name in names if name is not None}
        for other in self.traces.values():
            if other.shape.sizes != shape.sizes:
                raise InputError(
                    f"calibration: {other.name} is a trace of {other.shape.name}, and {shape.name} is measured; use a "
                    "trace of the same model"
                )
        for builder in self.builders:
            if builder.setting.calibration is None and (trace is None or builder.counted.all()):
                raise InputError(
                    f"layout: {builder.setting.layout} is learned from tokens that are not counted, and there are "
                    "none; give a calibration trace or a learned layout" + ("" if trace is None else ", or start: warm")
                )
        for builder in builders:
            if isinstance(builder.layout, Learned):
                learned_here = trace is not None and sha256(trace.path) == builder.layout.origin.trace_sha256
                builder.layout.check(shape, int(np.argmax(builder.counted)) if learned_here else None)
                _check_room(builder, builder.layout)

    def place(self, index: int, own: LayerScores | None = None) -> None:
        """Lay out one layer; `own` are the scores of the trace that is measured."""
        layers = {name: LayerScores(trace.layer(index)) for name, trace in self.traces.items()}
        for builder in self.builders:
            name = builder.setting.calibration
            if name is not None:
                builder.place(index, _all(builder, layers[name]))
            elif own is not None:
                builder.place(index, _uncounted(builder, own))


def _check_room(builder: PlanBuilder, layout: Learned) -> None:
    """Raise InputError if the DRAM does not hold what a learned layout pins."""
    if not builder.rule.fixed:
        return
    budget, layers = builder.budget, range(builder.shape.num_hidden_layers)
    room = budget.cache_bytes + budget.unused_bytes
    unit = {c.group.name: len(c.group.matrices) * column_bytes(builder.shape, c.group) for c in builder.caches}
    names = [(f"layers.{layer}.{group}", size) for layer in layers for group, size in unit.items()]
    needed = sum(layout.origin.pinned.get(name, 0) * size for name, size in names)
    if needed > room:
        raise InputError(
            f"{layout.path}: pins {show(needed, 'size')}, and the DRAM has {show(room, 'size')} for it; give more, or "
            "learn it with a smaller --pinned"
        )


def _all(builder: PlanBuilder, layer: LayerScores) -> list[Numbers]:
    return [layer.scores_of(caches) for caches in builder.caches]


def _uncounted(builder: PlanBuilder, own: LayerScores) -> list[Numbers]:
    return [scores[~builder.counted] for scores in _all(builder, own)]
