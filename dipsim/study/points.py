"""The points of a sweep: one policy in one cell of the grid, with the key that its result is kept under."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dipsim.basics.assets import same_policy
from dipsim.basics.errors import InputError
from dipsim.clock.cycles import check_clock
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.planner import plan
from dipsim.results.dictionary import OWN
from dipsim.results.quality import Measured, lookup, read_quality
from dipsim.study.choices import PolicyChoice
from dipsim.study.experiment import Experiment
from dipsim.study.grid import NESTED, at_point, grid, swept_value
from dipsim.study.keys import plan_key, point_key, trace_hash
from dipsim.timing.device import Device
from dipsim.workload.trace import Trace


@dataclass(frozen=True)
class Planned:
    """What is known of a fetch plan before it is made.

    `key` stands for all that the plan depends on. `bytes` are those of its arrays. `layers` must be planned, 0 if the
    policy does not look at activations. `mlp_fraction` is the share of the MLP that DRAM could hold, `cliff_bytes`
    the DRAM below which a cache of experts does not hold what one token uses. `empty` is the plan without masks.
    `perplexity` and `standard_error` are None where they were not measured.
    """

    key: str
    setting: Setting
    bytes: int
    layers: int
    mlp_fraction: float
    cliff_bytes: float | None
    empty: FetchPlan
    perplexity: float | None
    standard_error: float | None


@dataclass(frozen=True)
class Point:
    """One policy in one cell of the grid.

    `columns` describe it in its row of the table. `key` stands for all that its result depends on.
    """

    cell: Experiment
    choice: PolicyChoice
    device: Device
    planned: Planned
    columns: dict[str, Any]
    key: str

    @property
    def on_clock(self) -> bool:
        """Whether it needs the engine."""
        return bool(self.columns["on_clock"])


@dataclass(frozen=True)
class _Opened:
    """A trace, the hash of its contents, and what was measured on its model."""

    trace: Trace
    hash: str
    measured: list[Measured]

    @classmethod
    def of(cls, name: str) -> _Opened:
        trace = Trace.open(name)
        return cls(trace, trace_hash(trace), read_quality(trace))


def points(experiment: Experiment, where: object = "sweep") -> list[Point]:
    """The points of a sweep, each once, in the order of the grid.

    Raises InputError, naming the points, if some of them cannot run. Nothing is computed before.
    """
    if not experiment.sweep:
        raise InputError(f"{where}: sweep: is missing; list values, like `dram: [2 GB, 4 GB]`, or use `dipsim run`")
    opened = cache(_Opened.of)  # for this call only: a file may change before the next sweep
    plans: dict[str, Planned] = {}
    found: dict[str, Point] = {}
    complaints: dict[str, str] = {}
    for cell in grid(experiment, where):
        named = {key: swept_value(cell, key) for key in experiment.sweep}
        with at_point(named, complaints, where):
            policies, _, device = cell.load_parts(lambda name: opened(name).trace)
            trace = opened(cell.trace)
            length = trace.trace.longest_sequence(cell.tokens)
            settings = cell.settings(policies, trace.trace.shape, length, device)
            for choice, setting in zip(cell.policies, settings, strict=True):
                key = plan_key(trace.hash, cell.tokens or trace.trace.tokens, setting)
                if key not in plans:
                    plans[key] = _planned(key, trace, setting, cell.tokens)
                if cell.needs_clock(device):
                    check_clock(plans[key].empty, cell.clocked(setting.buffer), device)
                point = _point(cell, choice, device, trace.trace, plans[key], named)
                found.setdefault(point.key, point)
    if complaints:
        raise InputError(*complaints.values())
    return list(found.values())


def _planned(key: str, opened: _Opened, setting: Setting, tokens: int | None) -> Planned:
    """Raises InputError if the setting cannot be planned."""
    (plan_of_none,) = plan(opened.trace, [setting], tokens, layers=0)
    shape = plan_of_none.shape
    resident = max(0.0, setting.dram_bytes - plan_of_none.budget.static_bytes)
    perplexity, standard_error = lookup(opened.measured, plan_of_none)
    return Planned(
        key=key,
        setting=setting,
        bytes=sum(array.nbytes for array in vars(plan_of_none).values() if isinstance(array, np.ndarray)),
        layers=shape.num_hidden_layers if plan_of_none.groups else 0,
        mlp_fraction=min(1.0, resident / shape.mlp_bytes),
        cliff_bytes=plan_of_none.cliff_dram_bytes,
        empty=plan_of_none,
        perplexity=perplexity,
        standard_error=standard_error,
    )


def _point(
    cell: Experiment, choice: PolicyChoice, device: Device, trace: Trace, planned: Planned, named: dict[str, Any]
) -> Point:
    shape = planned.empty.shape
    columns = {
        "trace": cell.trace,
        "model": shape.name,
        "device": device.name,
        **{name: value for name, value in named.items() if name in cell.hardware or _is_option(cell, name)},
        "flash_bandwidth_bytes_per_s": device.flash.peak_bandwidth,
        "dram_bandwidth_bytes_per_s": device.dram.bandwidth,
        "dram_bytes": planned.setting.dram_bytes,
        "mlp_fraction_in_dram": planned.mlp_fraction,
        "scope": planned.setting.scope,
        "working_set_bytes": None if shape.mixture is None else shape.working_set_bytes,
        "cliff_dram_bytes": planned.cliff_bytes,
        "layout": cell.layout,
        "calibration": cell.calibration or "",
        "start": cell.start,
        "read_through": cell.read_through,
        "eviction": planned.setting.eviction,
        "timing": cell.timing,
        "prompt": cell.prompt,
        "stream_static": cell.stream_static,
        "on_clock": cell.needs_clock(device),
        "tokens": cell.tokens or trace.tokens,
        "policy": planned.setting.policy.label,
    }
    return Point(cell, choice, device, planned, columns, point_key(planned.key, device, cell.timing, cell))


def _is_option(cell: Experiment, name: str) -> bool:
    """Whether a swept key is an option of its own column, a field of an option, or a parameter of the prefetcher."""
    head = name.rpartition(".")[0]
    by = None if cell.prefetch is None else cell.prefetch.by.prefetcher
    return name in OWN or head in NESTED or (by is not None and same_policy(head, by))
