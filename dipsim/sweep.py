"""A grid of experiments: every combination of the values listed under `sweep`."""

from __future__ import annotations

from itertools import product
from typing import Any

from dipsim.experiment import Experiment
from dipsim.files import InputError, parse

HARDWARE = ("flash", "dram", "compute", "energy")


def grid(experiment: Experiment, where: object = "sweep") -> list[Experiment]:
    """The experiments of a sweep, without `sweep`, in the order of the file, the last key varying fastest.

    A key is a field of the experiment (`dram`, `eviction`), of the device (`flash.read_bandwidth`), or a policy's
    parameter (`dip.keep`). Raises InputError for any other key and for values that the field does not take.
    """
    base = experiment.model_dump(mode="json") | {"sweep": {}}
    points = []
    for values in product(*experiment.sweep.values()):
        data = base
        for key, value in zip(experiment.sweep, values, strict=True):
            data = _changed(data, key, value, where)
        points.append(parse(Experiment, data, where))
    return points


def _changed(data: dict[str, Any], key: str, value: Any, where: object) -> dict[str, Any]:
    """The experiment's data with one field changed."""
    if key in Experiment.model_fields and key not in ("sweep", "policies", "hardware"):
        return data | {key: value}
    head, dot, parameter = key.rpartition(".")
    if dot and key.split(".")[0] in HARDWARE:
        return data | {"hardware": data["hardware"] | {key: value}}
    policies = [{entry: {}} if isinstance(entry, str) else entry for entry in data["policies"]]
    if dot and any(head in entry for entry in policies):
        changed = [
            {name: parameters | {parameter: value} if name == head else parameters}
            for entry in policies
            for name, parameters in entry.items()
        ]
        return data | {"policies": changed}
    raise InputError(
        f"{where}: sweep.{key}: is neither a field of the experiment, nor of its device (flash.read_bandwidth), nor a "
        "parameter of a policy in it (dip.keep)"
    )
