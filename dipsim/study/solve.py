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
from dipsim.basics.errors import InputError
from dipsim.basics.files import write
from dipsim.basics.progress import Progress, silent
from dipsim.results.dictionary import write_columns
from dipsim.results.folder import clear_results
from dipsim.results.provenance import write_origin
from dipsim.results.quality import Measured, bits_of, read_quality
from dipsim.study.choices import PolicyChoice
from dipsim.study.experiment import Experiment
from dipsim.study.passes import Row
from dipsim.study.points import Point, points
from dipsim.study.question import TOLERANCE, Target, Unknown, unknown_of
from dipsim.study.sweep import complete, files_behind, finished, line
from dipsim.workload.shape import ModelShape

FIRST, FIRST_OF_ONE_PLAN = 5, 65  # values that cover the range; a plan serves many where it does not depend on them
MONOTONE = 0.001  # change of speed the wrong way, relative, that is no rounding


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
            end = ", an end of the range" if best in (unknown.low, unknown.high) else ""
            said.append(f"not reached; nearest at {unknown.shown(best)}{end}")
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
        searches.append(_Search(choice, unknown_of(name, alone, device, trace, (low, high)), target))
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
    write_origin(
        folder, experiment.resolved(folder), files_behind([p for search in searches for p in search.tried.values()])
    )
    write(folder / "samples.csv", pd.DataFrame(samples).to_csv(index=False))
    write_columns(folder, ("solve.csv", "samples.csv"))
    write(folder / "solve.csv", pd.DataFrame(found).to_csv(index=False))  # last: it says whose folder this is
