"""The grid of a sweep: every combination of the values listed under `sweep` is an experiment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import product
from typing import Any

from dipsim.basics.assets import same_policy
from dipsim.basics.errors import LONGEST, InputError, collected, did_you_mean, named, one_line
from dipsim.basics.fields import parse
from dipsim.basics.limits import check_memory
from dipsim.study.experiment import Experiment, policy_entries, set_parameter

HARDWARE = ("flash", "dram", "compute", "energy")  # a device's parts, with which its fields begin
FIXED = ("sweep", "policies", "hardware", "bits")  # fields that cannot be swept as a whole
POINT_BYTES = 5000  # that a point takes at least, before anything is planned
NESTED = ("cache", "bits", "prefetch", "speculate")  # options that have fields of their own


def grid(experiment: Experiment, where: object = "sweep") -> list[Experiment]:
    """The experiments of a sweep, without `sweep`, in the order of the file. The last key varies fastest.

    A key is a field of the experiment (`dram`, `eviction`, `cache.size`, `bits.mlp`), of the device
    (`flash.read_bandwidth`), or a parameter of a policy or a prefetcher (`dip.keep`, `oracle.recall`). Raises
    InputError for any other key, and for values that its field does not take.
    """
    base = experiment.resolved() | {"sweep": {}}
    count = math.prod(map(len, experiment.sweep.values()), start=1.0) * len(experiment.policies)
    check_memory(POINT_BYTES * count, f"{where}: sweep: {count:,.0f} points", "list fewer values")
    unknown: list[str] = []
    for key, choices in experiment.sweep.items():
        with collected(unknown), named(where):
            _changed(base, key, choices[0])
    if unknown:
        raise InputError(*unknown)
    cells: list[Experiment] = []
    complaints: dict[str, str] = {}
    for values in product(*experiment.sweep.values()):
        data, point = base, dict(zip(experiment.sweep, values, strict=True))
        for key, value in point.items():
            data = _changed(data, key, value)
        with at_point(point, complaints, where):
            cells.append(parse(Experiment, data, ""))
    if complaints:
        raise InputError(*complaints.values())
    return cells


@contextmanager
def at_point(values: dict[str, Any], complaints: dict[str, str], where: object) -> Iterator[None]:
    """Keep what an InputError complains about with the first point, by its swept values, that it is about."""
    try:
        yield
    except InputError as error:
        point = ", ".join(f"{name}: {one_line(value, LONGEST)}" for name, value in values.items())
        for line in error.all:
            complaints.setdefault(line, f"{where}: point ({point}): {line}")


def swept_value(cell: Experiment, key: str) -> Any:
    """The value of a swept key in one cell of a grid, as a file would say it."""
    if key in cell.hardware:
        return cell.hardware[key]
    if "." not in key:
        return cell.resolved()[key]
    head, _, parameter = key.rpartition(".")
    if head in NESTED:
        return cell.resolved()[head][parameter]
    named = [(choice.policy, choice.parameters) for choice in cell.policies]
    named += [(cell.prefetch.by.prefetcher, cell.prefetch.by.parameters)] if cell.prefetch else []
    return next(parameters[parameter] for name, parameters in named if same_policy(head, name))


def _changed(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The experiment's data with one field changed."""
    if key in Experiment.model_fields and key not in FIXED:
        return data | {key: value}
    head, dot, parameter = key.rpartition(".")
    if head in NESTED:
        return data | {head: {**(data[head] or {}), parameter: value}}
    if dot and key.split(".")[0] in HARDWARE:
        return data | {"hardware": data["hardware"] | {key: value}}
    entries = deepcopy(policy_entries(data))
    if dot and set_parameter(entries, head, parameter, value):
        return data | {"policies": entries}
    if dot and data["prefetch"]:
        by = deepcopy(policy_entries({"policies": [data["prefetch"]["by"]]}))
        if set_parameter(by, head, parameter, value):
            return data | {"prefetch": data["prefetch"] | {"by": by[0]}}
    known = (*Experiment.model_fields, *HARDWARE, *(name for entry in entries for name in entry))
    raise InputError(
        f"sweep.{key}: is neither a field of the experiment, nor of its device (flash.read_bandwidth), nor a "
        f"parameter of a policy or a prefetcher in it (dip.keep, oracle.recall){did_you_mean(head or key, known)}"
    )
