"""An experiment file -> results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, StrictBool, WithJsonSchema

from dipsim import engine, quality
from dipsim.bounds import Timing
from dipsim.cache import Eviction
from dipsim.device import Device
from dipsim.files import Count, InputError, Natural, Strict, parse, read_yaml
from dipsim.model import ModelShape
from dipsim.plan import FetchPlan, Setting, plan
from dipsim.policy import Policy, load_policy
from dipsim.result import Result
from dipsim.selection import sequences
from dipsim.trace import Trace
from dipsim.units import parse as parse_quantity
from dipsim.units import show
from dipsim.units import write as write_quantity

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class MlpFraction:
    """DRAM for the static parts and this share of the MLP."""

    mlp_fraction: float

    def bytes(self, shape: ModelShape, length: int) -> float:
        return shape.static_bytes(length) + self.mlp_fraction * shape.mlp_bytes


class PolicyChoice(Strict):
    """A policy by name or path, and its parameters. Written `dense` or `{dip: {keep: 0.5}}`."""

    policy: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    def load(self) -> Policy:
        return load_policy(self.policy, **self.parameters)


def _read_choice(value: Any) -> Any:
    if isinstance(value, str):
        return {"policy": value}
    if isinstance(value, dict) and len(value) == 1:
        ((name, parameters),) = value.items()
        if isinstance(parameters, dict) and all(isinstance(key, str) for key in parameters):
            return {"policy": name, "parameters": parameters}
    raise ValueError(f"{value!r} is not a policy; write `dip` or `{{dip: {{keep: 0.5}}}}`")


def _write_choice(choice: PolicyChoice) -> Any:
    return {choice.policy: choice.parameters} if choice.parameters else choice.policy


def _read_dram(value: Any) -> float | MlpFraction:
    if not isinstance(value, dict):
        return parse_quantity(value, "size")
    share = value.get("mlp_fraction")
    if len(value) != 1 or isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not a share of the MLP; write {{mlp_fraction: 0.5}}, from 0 to 1")
    return MlpFraction(float(share))


def _write_dram(dram: float | MlpFraction) -> Any:
    return vars(dram) if isinstance(dram, MlpFraction) else write_quantity(dram, "size")


_CHOICE_SCHEMA: Any = {
    "oneOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "object"}, "maxProperties": 1}],
    "examples": ["dense", {"dip": {"keep": 0.5}}],
}
_DRAM_SCHEMA: Any = {
    "oneOf": [
        {"type": "string"},
        {"type": "object", "properties": {"mlp_fraction": {"type": "number"}}, "required": ["mlp_fraction"]},
    ],
    "examples": ["60 MB", {"mlp_fraction": 0.5}],
}
Choice = Annotated[
    PolicyChoice, BeforeValidator(_read_choice), PlainSerializer(_write_choice), WithJsonSchema(_CHOICE_SCHEMA)
]
Dram = Annotated[
    float | MlpFraction, BeforeValidator(_read_dram), PlainSerializer(_write_dram), WithJsonSchema(_DRAM_SCHEMA)
]


class Options(Strict):
    """How to simulate, whatever is simulated."""

    dram: Dram | None = None  # None: all that the device has
    tokens: Count | None = None  # None: all that were recorded
    prompt: Natural = 0
    eviction: Eviction = "lfu"
    timing: Timing = "serial"
    stream_static: StrictBool = False


class Experiment(Options):
    """What to simulate: one trace on one device, under several policies. Names or paths, as on the command line."""

    trace: str
    device: str = "paper"
    hardware: dict[str, Any] = Field(default_factory=dict)  # fields of the device changed, by dotted name
    policies: tuple[Choice, ...] = Field(min_length=1)
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Experiment:
        """Read an experiment file. Raises InputError naming file, field and remedy."""
        return parse(cls, read_yaml(path), path)

    def open(self) -> tuple[Trace, Device, list[Policy]]:
        """What the experiment names. Raises InputError if one cannot be used, or a policy stands there twice."""
        device, policies = self.hardware_and_policies()
        return Trace.open(self.trace), device, policies

    def hardware_and_policies(self) -> tuple[Device, list[Policy]]:
        """What the experiment names, but the trace."""
        policies = [choice.load() for choice in self.policies]
        labels = [policy.label for policy in policies]
        if len(set(labels)) < len(labels):
            raise InputError(f"policies: {max(labels, key=labels.count)} stands there twice; remove one or change it")
        return Device.load(self.device).replace("hardware", **self.hardware), policies


def run(experiment: Experiment, progress: Progress = lambda *_: None, timeline: bool = False) -> list[Result]:
    """Simulate every policy of an experiment; `progress(what, done, total)`. With `timeline`, all spans are kept.

    Raises InputError if anything in it cannot be used; nothing is written.
    """
    if experiment.sweep:
        raise InputError("sweep: an experiment with a sweep is a grid; use `python -m dipsim sweep`")
    return _run(*experiment.open(), experiment, progress, timeline)


def simulate(
    trace: Trace, policy: Policy, device: Device, *, dram: str | float | None = None, **options: Any
) -> Result:
    """Simulate one policy on a device.

    `dram`: "60 MB", a number of bytes, or None for all that the device has. `options`: those of an experiment
    (`eviction`, `timing`, `tokens`, `prompt`, `stream_static`). Raises InputError if the parts do not fit each other.
    """
    size = f"{dram!r} B" if isinstance(dram, (int, float)) else dram
    return _run(trace, device, [policy], parse(Options, {"dram": size, **options}, "simulate"), timeline=True)[0]


def check(experiment: Experiment) -> None:
    """Everything that can go wrong before the first layer is read. Raises InputError if something does."""
    trace, device, policies = experiment.open()
    _plan(trace, device, policies, experiment, layers=0)


def _plan(
    trace: Trace,
    device: Device,
    policies: Sequence[Policy],
    options: Options,
    progress: Progress = lambda *_: None,
    layers: int | None = None,
) -> list[FetchPlan]:
    size = dram_bytes(options, trace.shape, longest_sequence(trace, options.tokens), device)
    settings = [Setting(policy, size, options.eviction, options.prompt, options.stream_static) for policy in policies]
    return plan(trace, settings, options.tokens, partial(progress, "planning layers"), layers)


def _run(
    trace: Trace,
    device: Device,
    policies: Sequence[Policy],
    options: Options,
    progress: Progress = lambda *_: None,
    timeline: bool = False,
) -> list[Result]:
    plans = _plan(trace, device, policies, options, progress)
    measured = quality.load(trace)
    results = []
    for index, fetch_plan in enumerate(plans):
        traced = None if timeline else (shown_token(fetch_plan),)
        spans = engine.run(fetch_plan, device, options.timing, traced)
        results.append(Result(fetch_plan, device, spans, *quality.lookup(measured, fetch_plan)))
        progress("simulating policies", index + 1, len(plans))
    return results


def shown_token(fetch_plan: FetchPlan) -> int:
    """The token in the middle, whose spans are kept and drawn."""
    return fetch_plan.tokens // 2


def longest_sequence(trace: Trace, tokens: int | None) -> int:
    """Positions of the longest sequence among the first `tokens` tokens of a trace."""
    count = min(tokens or trace.tokens, trace.tokens)
    starts = [start for start in trace.sequence_starts if start < count]
    return max(end - begin for begin, end in sequences(starts, count))


def dram_bytes(options: Options, shape: ModelShape, length: int, device: Device) -> float:
    """The DRAM to be simulated, in bytes, for sequences of `length` tokens after the prompt.

    Raises InputError if the device has less.
    """
    size = device.dram.capacity if options.dram is None else options.dram
    if isinstance(size, MlpFraction):
        size = size.bytes(shape, options.prompt + length)
    if size > device.dram.capacity:
        raise InputError(
            f"dram: {show(size, 'size')} is more than the {show(device.dram.capacity, 'size')} of device "
            f"{device.name}; give less, or a device with more"
        )
    return size
