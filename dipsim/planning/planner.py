"""A trace and settings make fetch plans.

Planning is layer-major: one layer's activations are read once, and every setting is planned over them. So memory stays
at one layer's block, however long the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.planning.builder import PlanBuilder, make_builders
from dipsim.planning.experts import ExpertPlans
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.kept import KeptLayers
from dipsim.planning.masks import LayerScores
from dipsim.planning.placer import Placer
from dipsim.planning.precision import check_requests_of
from dipsim.planning.split import learn_splits
from dipsim.workload.trace import Trace


class Planner(Protocol):
    """What fills plans in: the CPU (below), or a GPU (`dipsim.gpu`). All planners make the same plans."""

    task: str  # what progress says of its work
    all_together: bool  # whether one process plans all policies of a trace side by side
    max_plan_bytes: float  # of the plans that one pass over a trace should make

    def able(self, trace: Trace, setting: Setting, tokens: int) -> bool:
        """Whether this planner makes the plan of a setting itself."""

    def fill(self, trace: Trace, builders: Sequence[PlanBuilder], layers: range, progress: Progress) -> None:
        """Enter what the masks of adjacent layers read into builders of one trace and as many tokens."""


def plan(
    trace: Trace,
    settings: Sequence[Setting],
    tokens: int | None = None,
    *,
    layers: int | None = None,
    progress: Progress = silent,
    planner: Planner | None = None,
    kept: KeptLayers | None = None,
) -> list[FetchPlan]:
    """Plan every setting over the first `tokens` tokens and `layers` layers, by default all.

    The CPU plans unless another `planner` is given. It goes on after the layers that are `kept`. Raises InputError if a
    setting does not fit the trace, its policy or its DRAM.
    """
    tokens = trace.tokens if tokens is None else tokens
    if not 0 < tokens <= trace.tokens:
        raise InputError(f"tokens: {tokens} asked for, the trace {trace.name} has {trace.tokens}; ask for 1 to that")
    starts = tuple(start for start in trace.sequence_starts if start < tokens)
    builders = make_builders(trace.shape, settings, tokens, starts, trace.prompts)
    for builder in builders:
        if builder.precision is not None:
            check_requests_of(trace, builder.setting.policy)
    if builders:
        planner = planner or CpuPlanner()
        layers = trace.shape.num_hidden_layers if layers is None else layers
        learn_splits(builders, trace.shape, trace, learn=layers > 0, progress=progress)
        begin = 0 if kept is None else kept.restore(builders, layers)
        if begin:
            progress(planner.task, begin, layers)

        def done(what: str, layer: int, of: int) -> None:
            if kept is not None:
                kept.keep(builders, layer)
            progress(what, layer, of)

        planner.fill(trace, builders, range(begin, layers), done)
    return [builder.finish() for builder in builders]


class CpuPlanner:
    """Plans on the CPU, one layer after the other."""

    task = "planning layers"
    all_together = False
    max_plan_bytes = 400e6  # with the activations of a 14B model a process then stays below 1.5 GB

    def able(self, trace: Trace, setting: Setting, tokens: int) -> bool:  # noqa: ARG002
        """True: the CPU plans everything."""
        return True

    def fill(self, trace: Trace, builders: Sequence[PlanBuilder], layers: range, progress: Progress) -> None:
        """Enter what the masks of adjacent layers read. Raises InputError if a policy or a layout fails."""
        placer, experts = Placer(builders, trace.shape, trace), ExpertPlans(builders)
        for index in [index for index in trace.layers if index in layers]:
            layer = LayerScores(trace.layer(index, builders[0].tokens))
            if experts.mine:
                experts.collect(layer)
            else:
                placer.place(index, layer)
                for builder in builders:
                    for caches in builder.caches:
                        layer.record(builder, caches, index)
                    builder.leave(index)
            progress(self.task, index + 1, layers.stop)
        if layers:
            experts.fill()
