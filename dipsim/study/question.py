"""What `solve` is asked: which target is to be reached, and by which value of what.

The range in which a value is looked for has a default for `dram`, for fields of the device that have a value, and for
shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipsim.basics.assets import policy_name, same_policy
from dipsim.basics.errors import InputError, did_you_mean, quoted
from dipsim.basics.units import dimension_of, parse, show
from dipsim.basics.units import write as write_quantity
from dipsim.planning.planner import plan
from dipsim.storage.flash import Flash
from dipsim.study.experiment import Experiment
from dipsim.study.grid import HARDWARE
from dipsim.study.passes import Row
from dipsim.timing.device import Device
from dipsim.workload.shape import BitWidths, ModelShape
from dipsim.workload.trace import Trace

TOLERANCE = 0.005  # of an answer, relative
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
        return _shown(value, self.dimension)

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


def _shown(value: float, dimension: str | None) -> str:
    return write_quantity(value, dimension) if dimension else f"{value:.{DIGITS}g}"


def unknown_of(
    name: str,
    experiment: Experiment,
    device: Device,
    trace: Trace,
    limits: tuple[str | None, str | None],
) -> Unknown:
    """What to find for the policy of the experiment, with its range. Raises InputError if it has none."""
    current = _current(name, experiment, device, trace.shape)
    found = ({"dram": "size", IOPS: "rate"}.get(name), *map(dimension_of, (current, *limits)))
    dimension = next(filter(None, found), None)
    low, high = (_limit(text, dimension) for text in limits)
    if isinstance(current, bool):
        raise InputError(f"--for {name}: is no number; look for one that is, such as dram")
    if name == IOPS and device.flash.curve is not None:
        raise InputError(
            f"--for {name}: the Flash of {device.name} is described by a curve; look for {BANDWIDTH}, its peak"
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
            f"--for {name}: has no value to start from; give its range with --from and --to, or another name "
            f"(dram, iops, flash.read_bandwidth, dip.keep){did_you_mean(name, _names(experiment, device))}"
        )
    ends = room or (0.0, 0.0)
    low, high = ends[0] if low is None else low, ends[1] if high is None else high
    whole = isinstance(current, int) or (current is dimension is None and low == int(low) and high == int(high))
    low, high = (math.ceil(low), math.floor(high)) if whole else (low, high)
    if not 0 < low < high:
        shown = f"{_shown(low, dimension)} to {_shown(high, dimension)}"
        raise InputError(f"--for {name}: {shown} is no range; give --from less than --to")
    if name == "dram" and not (ends[0] <= low and high <= device.dram.usable):
        raise InputError(
            f"--for dram: --from and --to must be within {show(ends[0], 'size')}, which must fit, and "
            f"{show(device.dram.usable, 'size')}, which {device.name} has for it"
        )
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
