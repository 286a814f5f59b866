"""A sweep: every combination of the values listed under `sweep`, under every policy, is a point with a key.

The key is a hash of all that the point's figures depend on: the contents of trace, policy file and device, the options,
and dipsim itself. So a result that was kept is used again exactly as long as nothing behind it changed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import dipsim
from dipsim import quality
from dipsim.assets import means
from dipsim.device import Device
from dipsim.experiment import Experiment, PolicyChoice, dram_bytes, longest_sequence
from dipsim.files import InputError, parse, sha256
from dipsim.plan import Setting, plan
from dipsim.policy import Policy
from dipsim.trace import Trace

HARDWARE = ("flash", "dram", "compute", "energy")
SHOWING = (
    "cli",
    "fit",
    "outputs",
    "perfetto",
    "plots",
    "report",
    "sweep",
    "sweep_plots",
    "workers",
)  # change no figure
ON_A_GPU = ("batch", "kernels", "planning", "tensors")  # of live, what plans


def grid(experiment: Experiment, where: object = "sweep") -> list[Experiment]:
    """The experiments of a sweep, without `sweep`, in the order of the file, the last key varying fastest.

    A key is a field of the experiment (`dram`, `eviction`), of the device (`flash.read_bandwidth`), or a policy's
    parameter (`dip.keep`). Raises InputError for any other key and for values that the field does not take.
    """
    base = experiment.model_dump(mode="json") | {"sweep": {}}
    cells = []
    for values in product(*experiment.sweep.values()):
        data = base
        for key, value in zip(experiment.sweep, values, strict=True):
            data = _changed(data, key, value, where)
        cells.append(parse(Experiment, data, where))
    return cells


def _changed(data: dict[str, Any], key: str, value: Any, where: object) -> dict[str, Any]:
    """The experiment's data with one field changed."""
    if key in Experiment.model_fields and key not in ("sweep", "policies", "hardware"):
        return data | {key: value}
    head, dot, parameter = key.rpartition(".")
    if dot and key.split(".")[0] in HARDWARE:
        return data | {"hardware": data["hardware"] | {key: value}}
    policies = [{entry: {}} if isinstance(entry, str) else entry for entry in data["policies"]]
    if dot and any(means(head, name) for entry in policies for name in entry):
        changed = [
            {name: parameters | {parameter: value} if means(head, name) else parameters}
            for entry in policies
            for name, parameters in entry.items()
        ]
        return data | {"policies": changed}
    raise InputError(
        f"{where}: sweep.{key}: is neither a field of the experiment, nor of its device (flash.read_bandwidth), nor a "
        "parameter of a policy in it (dip.keep)"
    )


@dataclass(frozen=True)
class Planned:
    """What is known of a fetch plan before it is made. `key` stands for all that the plan depends on."""

    key: str
    setting: Setting
    policy_hash: str
    bytes: int  # of its arrays
    layers: int  # to be planned; 0 if the policy does not look at activations
    mlp_fraction: float  # share of the MLP that DRAM could hold
    perplexity: float | None  # only if it was measured
    standard_error: float | None


@dataclass(frozen=True)
class Point:
    """One policy in one cell of the grid. `columns`: what it is, as its row in the table says it.

    `key` stands for all that its result depends on.
    """

    cell: Experiment
    choice: PolicyChoice
    device: Device
    planned: Planned
    columns: dict[str, Any]
    key: str


def points(experiment: Experiment, where: object = "sweep") -> list[Point]:
    """The points of a sweep, each once, in the order of the grid.

    Raises InputError, naming the point, if one of them cannot run; nothing is computed before.
    """
    if not experiment.sweep:
        raise InputError(f"{where}: sweep: is missing; list values, like `dram: [2 GB, 4 GB]`, or use `dipsim run`")
    open_trace = cache(_open_trace)  # for now only: a file may change before the next sweep
    plans: dict[str, Planned] = {}
    found: dict[str, Point] = {}
    for cell in grid(experiment, where):
        named = {key: _value(cell, key) for key in experiment.sweep}
        try:
            trace, trace_hash, measured = open_trace(cell.trace)
            device, policies = cell.hardware_and_policies()
            size = dram_bytes(cell, trace.shape, longest_sequence(trace, cell.tokens), device)
            for choice, policy in zip(cell.policies, policies, strict=True):
                setting = Setting(policy, size, cell.eviction, cell.prompt, cell.stream_static)
                key = _plan_key(trace_hash, cell.tokens or trace.tokens, setting)
                if key not in plans:
                    plans[key] = _planned(key, trace, setting, cell.tokens, measured)
                hardware = {name: value for name, value in named.items() if name in cell.hardware}
                point = _point(cell, choice, device, trace, plans[key], hardware)
                found.setdefault(point.key, point)
        except InputError as error:
            values = ", ".join(f"{name}: {value}" for name, value in named.items())
            raise InputError(f"{where}: point ({values}): {error}") from None
    return list(found.values())


def _value(cell: Experiment, key: str) -> Any:
    """The value of a swept key in one cell, as a file would say it."""
    if key in cell.hardware:
        return cell.hardware[key]
    if "." not in key:
        return cell.model_dump(mode="json")[key]
    name, _, parameter = key.rpartition(".")
    return next(choice.parameters[parameter] for choice in cell.policies if means(name, choice.policy))


def _open_trace(name: str) -> tuple[Trace, str, list[quality.Measured]]:
    """A trace, the hash of its contents (and of the recipe that it is like), and what was measured on its model."""
    trace = Trace.open(name)
    return trace, _hash([sha256(trace.path), trace.header.source.get("like_sha256")]), quality.load(trace)


def _plan_key(trace_hash: str, tokens: int, setting: Setting) -> str:
    policy = setting.policy
    options = [tokens, setting.dram_bytes, setting.eviction, setting.prompt, setting.stream_static]
    return _hash([code_hash(), trace_hash, policy.name, policy_hash(policy), policy.model_dump(), options])


def _planned(key: str, trace: Trace, setting: Setting, tokens: int | None, measured: list[quality.Measured]) -> Planned:
    """Raises InputError if it cannot be planned."""
    (plan_of_none,) = plan(trace, [setting], tokens, layers=0)
    size = sum(array.nbytes for array in vars(plan_of_none).values() if isinstance(array, np.ndarray))
    resident = max(0.0, setting.dram_bytes - plan_of_none.budget.static_bytes)
    share = min(1.0, resident / trace.shape.mlp_bytes)
    layers = trace.shape.num_hidden_layers if plan_of_none.groups else 0
    perplexity = quality.lookup(measured, plan_of_none)
    return Planned(key, setting, policy_hash(setting.policy), size, layers, share, *perplexity)


def _point(
    cell: Experiment, choice: PolicyChoice, device: Device, trace: Trace, planned: Planned, hardware: dict[str, Any]
) -> Point:
    columns = {
        "trace": cell.trace,
        "model": trace.shape.name,
        "device": device.name,
        **hardware,
        "flash_bandwidth_bytes_per_s": device.flash.peak_bandwidth,
        "dram_bandwidth_bytes_per_s": device.dram.bandwidth,
        "dram_bytes": planned.setting.dram_bytes,
        "mlp_fraction_in_dram": planned.mlp_fraction,
        "eviction": cell.eviction,
        "timing": cell.timing,
        "prompt": cell.prompt,
        "stream_static": cell.stream_static,
        "tokens": cell.tokens or trace.tokens,
        "policy": planned.setting.policy.label,
    }
    contents = device.model_dump(exclude={"description", "sources"})
    return Point(cell, choice, device, planned, columns, _hash([planned.key, contents, cell.timing]))


def policy_hash(policy: Policy) -> str:
    """The hash of the policy's file, of the plugins that it builds on, and of files that its parameters name."""
    plugins = [cls for cls in type(policy).__mro__ if issubclass(cls, Policy) and cls is not Policy]
    named = [Path(value) for value in policy.model_dump().values() if isinstance(value, str) and Path(value).is_file()]
    return _hash([sha256(file) for file in (*(Path(inspect.getfile(cls)) for cls in plugins), *named)])


@cache
def code_hash() -> str:
    """dipsim's version and the hash of those of its modules that figures come from."""
    package = Path(dipsim.__file__).parent
    modules = [path for path in package.glob("*.py") if path.stem not in SHOWING]
    modules += [package / "live" / f"{name}.py" for name in ON_A_GPU]
    return _hash([dipsim.__version__, *(sha256(path) for path in sorted(modules))])


def _hash(value: Any) -> str:
    """Hexadecimal SHA-256 of a value that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
