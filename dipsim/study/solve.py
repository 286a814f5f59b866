"""Finds the value of one thing that just reaches a target, such as the least DRAM for 10 tokens/s.

This is a sweep that chooses its own values, for each policy by itself. The first values cover the whole range, and show
on which side the target is reached. Later ones close in on the value where it is just reached, near the straight line
between its neighbours in logarithms. So each answer is a value that was simulated, and speed need not be monotone: what
speaks against that is told.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dipsim.basics.assets import policy_name, same_policy
from dipsim.basics.errors import InputError, did_you_mean, quoted
from dipsim.basics.files import write
from dipsim.basics.progress import Progress, silent
from dipsim.basics.units import dimension_of, parse
from dipsim.basics.units import write as write_quantity
from dipsim.planning.planner import plan
from dipsim.results.dictionary import write_columns
from dipsim.results.folder import clear_results
from dipsim.results.provenance import write_experiment, write_origin
from dipsim.results.quality import Measured, bits_of, read_quality
from dipsim.storage.flash import Flash
from dipsim.study.choices import PolicyChoice
from dipsim.study.experiment import Experiment
from dipsim.study.grid import HARDWARE
from dipsim.study.passes import Row
from dipsim.study.points import Point, points
from dipsim.study.sweep import complete, files_behind, finished, line
from dipsim.timing.device import Device
from dipsim.workload.shape import BitWidths, ModelShape
from dipsim.workload.trace import Trace

FIRST, FIRST_OF_ONE_PLAN = 5, 65  # values that cover the range; a plan serves many where it does not depend on them
TOLERANCE = 0.005  # of an answer, relative
MONOTONE = 0.001  # change of speed the wrong way, relative, that is no rounding
DIGITS = 4  # of a value, so that it can be read out
LEAST = 1e-300  # of a figure that has a logarithm
LATENCIES = ("mean", "p50", "p95", "p99")
IOPS = "iops"  # reads a second that Flash answers if they have no bytes: 1 / flash.command_time
BANDWIDTH = "flash.read_bandwidth"


@dataclass(frozen=True)
class Target:
    """What to reach: at least `value` of a column of `RESULTS` if more is better, at most otherwise."""

    text: str
    column: str
    value: float
    unit: str
    scale: float  # of the unit, in which people read it
    more_is_better: bool = False

    @classmethod
    def read(cls, text: str) -> Target:
        """Read "10 tokens/s", "p95 80 ms" (or mean, p50, p99) or "20 mJ/token". Raises InputError for anything else."""
        name, _, rest = text.strip().partition(" ")
        try:
            if name in LATENCIES:
                return cls(text, f"latency_{name}_s", parse(rest, "time"), f"{name} ms", 1e-3)
            if dimension_of(text) == "energy per token":
                return cls(text, "energy_j_per_token", parse(text, "energy per token"), "mJ/token", 1e-3)
            return cls(text, "tokens_per_s", parse(text, "speed"), "tokens/s", 1.0, more_is_better=True)
        except ValueError as error:
            raise InputError(f'--target: {error}, "p95 80 ms" or "20 mJ/token"') from None

    def gap(self, row: Row) -> float:
        """The logarithm of how far a point is beyond the target: 0 or more where it is reached."""
        found = row[self.column]
        if found is None:
            raise InputError(f"--target {self.text}: the device does not say what energy it takes; add energy to it")
        ratio = math.log(max(found, LEAST) / self.value)
        return ratio if self.more_is_better else -ratio


@dataclass(frozen=True)
class Unknown:
    """What to find, by the key of a sweep or as `iops`, and its range. Without `dimension` it is a plain number."""

    name: str
    dimension: str | None
    low: float
    high: float
    whole: bool = False
    flash: Flash | None = None  # whose curves keep their form, where they and not its bandwidth are the unknown

    def swept(self, value: float) -> tuple[str, Any]:
        """The key of a sweep and its value there, as a file would say it."""
        if self.name == IOPS:
            return "flash.command_time", f"{1 / value!r} s"
        if self.flash is not None:
            key = "read_curve" if self.flash.read_curve else "read_curves"
            faster = self.flash.slowed(value / self.flash.peak_bandwidth)
            return f"flash.{key}", faster.model_dump(mode="json")[key]
        return self.name, self.shown(value) if self.dimension else int(value) if self.whole else value

    def shown(self, value: float) -> str:
        """A value as a file would say it."""
        return write_quantity(value, self.dimension) if self.dimension else f"{value:.{DIGITS}g}"

    def spread(self, count: int) -> list[float]:
        """So many values from the lowest to the highest, in equal ratios."""
        return sorted({self._rounded(value) for value in np.geomspace(self.low, self.high, count)})

    def between(self, low: float, low_gap: float, high: float, high_gap: float) -> list[float]:
        """The values to try next between two: around where the target is just reached, and in the middle."""
        near = low * (high / low) ** (low_gap / (low_gap - high_gap))
        step = 1 + TOLERANCE / 2
        tried = {self._rounded(value) for value in (near / step, near * step, math.sqrt(low * high))}
        return sorted(value for value in tried if low < value < high)

    def _rounded(self, value: float) -> float:
        value = min(max(float(f"{value:.{DIGITS - 1}e}"), self.low), self.high)
        return round(value) if self.whole else value


@dataclass(frozen=True)
class Answer:
    """What was found for a policy: the value, as a file would say it; empty if the target is not reached.

    `row` is the point's row of `samples.csv`, of the best point where the target is not reached. `within` is whether
    the perplexity grows by no more than was allowed, None if it was not measured or nothing was asked.
    """

    policy: str
    value: str
    row: dict[str, Any]
    within: bool | None
    note: str


@dataclass
class _Search:
    """One policy: the points so far by value, and their rows."""

    choice: PolicyChoice
    unknown: Unknown
    target: Target
    tried: dict[float, Point] = field(default_factory=dict)
    rows: dict[float, Row] = field(default_factory=dict)

    def bracket(self) -> tuple[float | None, float | None]:
        """(the value nearest to it that does not reach the target, the answer); None where there is none.

        The answer is the one from which on all values up to an end of the range reach the target, the cheap one where
        all do: less of the unknown if more of it helps, and more if less helps.
        """
        values = sorted(self.rows)
        gaps = [self.target.gap(self.rows[value]) for value in values]
        if gaps[0] > gaps[-1]:  # less helps
            values, gaps = values[::-1], gaps[::-1]
        reached = [gap >= 0 for gap in gaps]
        if not any(reached):
            return None, None
        end = len(reached) if reached[-1] else len(reached) - reached[::-1].index(True)
        first = next((index + 1 for index in reversed(range(end)) if not reached[index]), 0)
        return values[first - 1] if first else None, values[first]

    def next(self) -> list[float]:
        """The values to try next; none if the answer is found."""
        beyond, answer = self.bracket()
        if beyond is None or answer is None or abs(math.log(answer / beyond)) <= TOLERANCE:
            return []
        (low, low_gap), (high, high_gap) = sorted((v, self.target.gap(self.rows[v])) for v in (beyond, answer))
        return self.unknown.between(low, low_gap, high, high_gap)

    def answer(self, allowed: float | None) -> Answer:
        """What was found, where perplexity may reach `allowed`."""
        beyond, value = self.bracket()
        best = value if value is not None else max(self.rows, key=lambda tried: self.target.gap(self.rows[tried]))
        price = self.tried[best].planned.perplexity
        within = None if value is None or allowed is None or price is None else price <= allowed
        shown = "" if value is None else self.unknown.shown(value)
        return Answer(self.case, shown, self.row(best), within, self._note(value, best, beyond, allowed))

    @cached_property
    def case(self) -> str:
        """The policy, without the parameter that is looked for."""
        head, _, parameter = self.unknown.name.rpartition(".")
        if not same_policy(head, self.choice.policy):
            return self.choice.load().label
        others = {name: value for name, value in self.choice.parameters.items() if name != parameter}
        try:
            return self.choice.model_copy(update={"parameters": others}).load().label
        except InputError:  # it has no default
            return policy_name(self.choice.policy)

    def row(self, value: float) -> dict[str, Any]:
        """A point's row of the table."""
        point, row, target = self.tried[value], self.rows[value], self.target
        mine = {
            "unknown": self.unknown.name,
            "dimension": self.unknown.dimension or "",
            "value": value,
            "case": self.case,
        }
        mine |= {"target": target.text, "reached": target.gap(row) >= 0, "column": target.column}
        mine |= {
            "limit": target.value / target.scale,
            "found": (row[target.column] or 0.0) / target.scale,
            "unit": target.unit,
        }
        return mine | line(point, row)

    def _note(self, value: float | None, best: float, beyond: float | None, allowed: float | None) -> str:
        """What an answer does not say: that there is none, that speed is not monotone, what was measured nearby."""
        unknown, column, said = self.unknown, self.target.column, []
        if value is None:
            said.append(f"not reached; nearest at {unknown.shown(best)}")
        elif beyond is None:
            said.append(f"reached everywhere from {unknown.shown(unknown.low)} to {unknown.shown(unknown.high)}")
        values = sorted(self.rows)
        steps = np.diff([self.target.gap(self.rows[tried]) for tried in values])
        worst = int(np.argmin(steps) if steps.sum() > 0 else np.argmax(steps)) if len(steps) else 0
        if len(steps) and steps[worst] * steps.sum() < 0 and abs(steps[worst]) > MONOTONE:
            ends = (f"{self.rows[tried][column]:.4g} at {unknown.shown(tried)}" for tried in values[worst : worst + 2])
            said.append(f"not monotone: {column} goes from {' to '.join(ends)}, so there may be other answers")
        if allowed is not None and value is not None:
            measured = [(p.planned.perplexity, tried) for tried, p in self.tried.items() if p.planned.perplexity]
            good = [(p, tried) for p, tried in measured if p <= allowed and self.target.gap(self.rows[tried]) >= 0]
            if measured and self.tried[value].planned.perplexity is None:
                near = f"{unknown.shown(min(good)[1])} (perplexity {min(good)[0]:.2f})" if good else "none"
                said.append(f"best value of measured perplexity within the target and what was allowed: {near}")
        return "; ".join(said)


def solve(
    experiment: Experiment,
    target: Target,
    name: str,
    folder: Path,
    *,
    low: str | None = None,
    high: str | None = None,
    within: float | None = None,
    workers: int = 1,
    progress: Progress = silent,
    where: object = "solve",
) -> list[Answer]:
    """Find for each policy the value of `name` that just reaches the target, to 0.5 %.

    `name` is a key of a sweep (`dram`, `flash.read_bandwidth`, `dip.keep`) or `iops`. `low` and `high` are its range as
    a file would say it; there is a default for `dram` (what must fit to what is of use), for fields of the device that
    have a value (a hundredth to a hundred times of it) and for shares (0.05 to 1). Perplexity may grow over that of
    dense by `within`. Writes `solve.csv`, a row a policy, and `samples.csv`, a row a point, to the folder, where
    finished points are kept as those of a sweep are. Raises InputError, beginning with `where`, if something cannot be
    used.
    """
    if experiment.sweep:
        raise InputError(f"{where}: sweep: solve chooses values by itself; leave the sweep out")
    if name == "dram" and experiment.cache is not None:  # which it takes the place of
        experiment = experiment.model_copy(update={"cache": experiment.cache.model_copy(update={"size": None})})
    _, trace, device = experiment.load_parts()
    if target.column == "energy_j_per_token" and device.energy is None:
        target.gap({target.column: None})  # which complains
    measured = read_quality(trace)
    allowed = _allowed(measured, experiment.with_own_bits(trace.shape), within)
    head = name.rpartition(".")[0]
    choices = [choice for choice in experiment.policies if same_policy(head, choice.policy)] or experiment.policies
    searches = []
    for choice in choices:
        alone = experiment.model_copy(update={"policies": (choice,)})
        searches.append(_Search(choice, _unknown(name, alone, device, trace, (low, high), where), target))
    rows: dict[str, Row] = {}
    wanted = [(search, _first(search, experiment, measured, where)) for search in searches]
    while any(values for _, values in wanted):
        new: dict[str, Point] = {}
        for search, values in ((search, values) for search, values in wanted if values):
            found = _points(search, experiment, values, where)
            search.tried |= found
            new |= {point.key: point for point in found.values()}
        kept = finished(list(new.values()), folder)
        rows |= complete(list(new.values()), kept, folder, workers=workers, progress=progress)
        for search in searches:
            search.rows = {value: rows[point.key] for value, point in search.tried.items()}
        wanted = [(search, search.next()) for search in searches]
    answers = [search.answer(allowed) for search in searches]
    _write(folder, experiment, searches, answers)
    return answers


def _first(search: _Search, experiment: Experiment, measured: Sequence[Measured], where: object) -> list[float]:
    """Values that cover the range, and those of a parameter whose perplexity was measured."""
    unknown = search.unknown
    ends = _points(search, experiment, [unknown.low, unknown.high], where).values()
    one_plan = len({point.planned.key for point in ends}) == 1 and not any(point.on_clock for point in ends)
    head, _, parameter = unknown.name.rpartition(".")
    known = [json.loads(row.parameters).get(parameter) for row in measured if same_policy(head, row.policy)]
    inside = {value for value in known if isinstance(value, float) and unknown.low <= value <= unknown.high}
    return sorted({*unknown.spread(FIRST_OF_ONE_PLAN if one_plan else FIRST), *inside})


def _points(search: _Search, experiment: Experiment, values: Sequence[float], where: object) -> dict[float, Point]:
    """The points of a policy at one or more values."""
    written = {value: search.unknown.swept(value) for value in values}
    (key,) = {key for key, _ in written.values()}
    sweep = {key: [text for _, text in written.values()]}
    found = points(experiment.model_copy(update={"policies": (search.choice,), "sweep": sweep}), where)
    return dict(zip(written, found, strict=True))


def _unknown(
    name: str,
    experiment: Experiment,
    device: Device,
    trace: Trace,
    limits: tuple[str | None, str | None],
    where: object,
) -> Unknown:
    """What to find for the policy of the experiment, with its range. Raises InputError if it has none."""
    current = _current(name, experiment, device, trace.shape)
    found = ({"dram": "size", IOPS: "rate"}.get(name), *map(dimension_of, (current, *limits)))
    dimension = next(filter(None, found), None)
    low, high = (_limit(text, dimension) for text in limits)
    if isinstance(current, bool):
        raise InputError(f"{where}: --for {name}: is no number; look for one that is, such as dram")
    if name == IOPS and device.flash.curve is not None:
        raise InputError(
            f"{where}: --for {name}: the Flash of {device.name} is described by a curve; look for {BANDWIDTH}, its peak"
        )
    if name == "dram":
        room = _room(experiment, device, trace)
    elif name == IOPS:
        room = (1e3, 1e7)
    elif dimension is not None:
        room = (parse(current, dimension) / 100, parse(current, dimension) * 100)
    elif isinstance(current, float) and 0 < current <= 1:
        room = (0.05, 1.0)
    else:
        room = None
    if room is None and (low is None or high is None):
        raise InputError(
            f"{where}: --for {name}: has no value to start from; give its range with --from and --to, or another name "
            f"(dram, iops, flash.read_bandwidth, dip.keep){did_you_mean(name, _names(experiment, device))}"
        )
    ends = room or (0.0, 0.0)
    low, high = ends[0] if low is None else low, ends[1] if high is None else high
    whole = isinstance(current, int) or (current is dimension is None and low == int(low) and high == int(high))
    low, high = (math.ceil(low), math.floor(high)) if whole else (low, high)
    if not 0 < low < high:
        raise InputError(f"{where}: --for {name}: the range from {low:.{DIGITS}g} to {high:.{DIGITS}g} is empty")
    flash = device.flash if name == BANDWIDTH and device.flash.curve else None
    return Unknown(name, dimension, low, high, whole, flash)


def _names(experiment: Experiment, device: Device) -> list[str]:
    """What may be looked for."""
    fields = device.model_dump(exclude_none=True)
    named = [f"{part}.{name}" for part in HARDWARE for name in fields.get(part) or ()]
    policy = experiment.policies[0]
    return [
        "dram",
        IOPS,
        *named,
        *(f"{policy_name(policy.policy)}.{name}" for name in type(policy.load()).model_fields),
    ]


def _current(name: str, experiment: Experiment, device: Device, shape: ModelShape) -> Any:
    """The value that a field has now, as a file would say it; None where there is none."""
    if name == BANDWIDTH:
        return write_quantity(device.flash.peak_bandwidth, "bandwidth")
    found: Any = experiment.resolved() | device.model_dump(mode="json", exclude_none=True)
    head, _, leaf = name.rpartition(".")
    if head == "bits" and leaf in BitWidths.model_fields:
        return float(getattr(experiment.with_own_bits(shape).bits, leaf))
    policy = experiment.policies[0]
    if same_policy(head, policy.policy):
        return getattr(policy.load(), leaf, None)
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _limit(text: str | None, dimension: str | None) -> float | None:
    """An end of the range. Raises InputError if it is none."""
    try:
        return None if text is None else parse(text, dimension) if dimension else float(text)
    except ValueError as error:
        raise InputError(f"--from or --to: {quoted(text)}: {error}") from None


def _room(experiment: Experiment, device: Device, trace: Trace) -> tuple[float, float]:
    """The least DRAM that a policy runs in, and what is of use to it, or what the device has."""
    unlimited = experiment.model_copy(update={"dram": device.dram.usable})
    settings = unlimited.settings(
        unlimited.load_policies(), trace.shape, trace.longest_sequence(experiment.tokens), device
    )
    budget = plan(trace, settings, experiment.tokens, layers=0)[0].budget
    needed = budget.kv_cache_bytes + budget.policy_bytes if experiment.stream_static else budget.static_bytes
    return _up(needed + budget.buffer_bytes), min(_up(budget.used_bytes), device.dram.usable)


def _up(value: float) -> float:
    """The next number of few digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    return math.ceil(value / unit) * unit


def _allowed(measured: Sequence[Measured], shape: ModelShape, within: float | None) -> float | None:
    """How large a perplexity may be; None if nothing was asked, or that of the model as it is was not measured."""
    if within is None:
        return None
    if not within >= 0:
        raise InputError(f"--within {within:g}: must be 0 or more, how much perplexity may grow")
    dense = "dense", shape.name, "", bits_of(shape)
    rows = (row for row in measured if (row.policy, row.model, row.adapter, row.bits) == dense)
    return next((row.perplexity + within for row in rows), None)


def _write(folder: Path, experiment: Experiment, searches: Sequence[_Search], answers: Sequence[Answer]) -> None:
    samples = [search.row(value) for search in searches for value in sorted(search.tried)]
    found = [answer.row | {"answer": answer.value, "note": answer.note} for answer in answers]
    clear_results(folder)
    write_experiment(folder, experiment.resolved(folder))
    write(folder / "samples.csv", pd.DataFrame(samples).to_csv(index=False))
    write(folder / "solve.csv", pd.DataFrame(found).to_csv(index=False))
    write_columns(folder, ("solve.csv", "samples.csv"))
    write_origin(
        folder, experiment.resolved(folder), files_behind([p for search in searches for p in search.tried.values()])
    )
