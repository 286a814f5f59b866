"""Lays out the layers of plans in the making: as a file says, or learned from tokens that are not counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dipsim.basics.arrays import Numbers
from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.basics.units import show
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.masks import LayerScores
from dipsim.storage.learned import Learned
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Trace

ENOUGH = 0.95  # of the DRAM that a learned layout must pin: the rest would lie idle


class Placer:
    """Lays out `builders` for a model of this shape, measured on `trace` (None: on a live model).

    Raises InputError if a calibration trace or a learned file is of another model, a file was learned from tokens that
    are measured or pins more than fits, or there is nothing that a layout may be learned from.
    """

    def __init__(self, builders: Sequence[PlanBuilder], shape: ModelShape, trace: Trace | None = None) -> None:
        laid = [builder for builder in builders if builder.groups and builder.precision is None]
        self.builders = [builder for builder in laid if builder.layout.learns]
        learned = {builder: f"layout: {builder.setting.layout}" for builder in self.builders}
        self.traces = calibrations(learned, shape, trace, "a calibration trace, a learned layout")
        for builder in laid:
            if isinstance(builder.layout, Learned):
                learned_here = trace is not None and sha256(trace.path) == builder.layout.origin.trace_sha256
                builder.layout.check(shape, int(np.argmax(builder.counted)) if learned_here else None)
                for layer in range(shape.num_hidden_layers):
                    builder.place(layer)
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


def calibrations(
    learned: Mapping[PlanBuilder, str], shape: ModelShape, trace: Trace | None, instead: str = "a calibration trace"
) -> dict[str, Trace]:
    """The traces, by name, that something is learned from; each builder with what that is called.

    Raises InputError if one is of another model or is the `trace` that is measured, or if there is nothing to learn
    from, and what to give `instead`.
    """
    traces = {name: Trace.open(name) for builder in learned if (name := builder.setting.calibration) is not None}
    for other in traces.values():
        if other.shape.sizes != shape.sizes:
            raise InputError(
                f"calibration: {other.name} is a trace of {other.shape.name}, and {shape.name} is measured; use a "
                "trace of the same model"
            )
        if trace is not None and sha256(other.path) == sha256(trace.path):
            raise InputError(f"calibration: {other.name} is the trace that is measured; use one of other text")
    for builder, what in learned.items():
        if builder.setting.calibration is None and (trace is None or builder.counted.all()):
            raise InputError(
                f"{what} is learned from tokens that are not counted, and there are none; give {instead}, or more "
                "tokens with start: warm"
            )
    return traces


def _check_room(builder: PlanBuilder, layout: Learned) -> None:
    """Raise InputError if the DRAM does not hold what a learned layout pins, or holds much more."""
    if not builder.rule.fixed:
        return
    room = builder.budget.cache_bytes + builder.budget.unused_bytes
    places = [
        builder.placement(caches, layer)
        for layer in range(builder.shape.num_hidden_layers)
        for caches in builder.caches
    ]
    pinned = sum(place.hot * place.unit_bytes for place in places)
    if pinned > room or pinned < ENOUGH * min(room, sum(place.columns * place.unit_bytes for place in places)):
        raise InputError(
            f"{layout.path}: pins {show(pinned, 'size')}, and the DRAM has {show(room, 'size')} for it; learn it with "
            f"--pinned {room / builder.shape.mlp_bytes:.3g}, or change the DRAM"
        )


def _all(builder: PlanBuilder, layer: LayerScores) -> list[Numbers]:
    return [layer.scores_of(caches) for caches in builder.caches]


def _uncounted(builder: PlanBuilder, own: LayerScores) -> list[Numbers]:
    return [scores[~builder.counted] for scores in _all(builder, own)]
