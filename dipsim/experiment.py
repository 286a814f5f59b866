"""An experiment file -> results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt, PlainSerializer, PositiveInt

from dipsim import engine
from dipsim.bounds import Timing
from dipsim.cache import Eviction
from dipsim.device import Device
from dipsim.files import InputError, Strict, parse, read_yaml
from dipsim.model import ModelShape
from dipsim.plan import Setting, plan
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


Choice = Annotated[PolicyChoice, BeforeValidator(_read_choice), PlainSerializer(_write_choice)]
Dram = Annotated[float | MlpFraction, BeforeValidator(_read_dram), PlainSerializer(_write_dram)]


class Experiment(Strict):
    """What to simulate: one trace on one device, under several policies. Names or paths, as on the command line."""

    trace: str
    device: str = "paper"
    dram: Dram | None = None  # None: all that the device has
    tokens: PositiveInt | None = None  # None: all that were recorded
    prompt: NonNegativeInt = 0
    eviction: Eviction = "lfu"
    timing: Timing = "serial"
    stream_static: bool = False
    policies: tuple[Choice, ...] = Field(min_length=1)

    @classmethod
    def load(cls, path: Path) -> Experiment:
        """Read an experiment file. Raises InputError naming file, field and remedy."""
        return parse(cls, read_yaml(path), path)


def run(experiment: Experiment, progress: Progress = lambda *_: None) -> list[Result]:
    """Simulate every policy of an experiment; `progress(what, done, total)`.

    Raises InputError if anything in it cannot be used; nothing is written.
    """
    trace, device = Trace.open(experiment.trace), Device.load(experiment.device)
    policies = [choice.load() for choice in experiment.policies]
    labels = [policy.label for policy in policies]
    if len(set(labels)) < len(labels):
        raise InputError(f"policies: {max(labels, key=labels.count)} stands there twice; remove one or change it")
    settings = [
        Setting(
            policy=policy,
            dram_bytes=dram_bytes(experiment, trace, device),
            eviction=experiment.eviction,
            prompt=experiment.prompt,
            stream_static=experiment.stream_static,
        )
        for policy in policies
    ]
    return _simulate(trace, settings, device, experiment.timing, experiment.tokens, progress)


def simulate(
    trace: Trace,
    policy: Policy,
    device: Device,
    *,
    dram: str | float | None = None,
    eviction: Eviction = "lfu",
    timing: Timing = "serial",
    tokens: int | None = None,
    prompt: int = 0,
) -> Result:
    """Simulate one policy. `dram`: "60 MB", or a number of bytes; by default all that the device has.

    Raises InputError if the parts do not fit each other.
    """
    size = parse_quantity(dram, "size") if isinstance(dram, str) else dram
    setting = Setting(policy, device.dram.capacity if size is None else size, eviction, prompt)
    return _simulate(trace, [setting], device, timing, tokens)[0]


def _simulate(
    trace: Trace,
    settings: Sequence[Setting],
    device: Device,
    timing: Timing,
    tokens: int | None,
    progress: Progress = lambda *_: None,
) -> list[Result]:
    plans = plan(trace, settings, tokens, partial(progress, "planning layers"))
    results = []
    for index, fetch_plan in enumerate(plans):
        results.append(Result(fetch_plan, device, engine.run(fetch_plan, device, timing)))
        progress("simulating policies", index + 1, len(plans))
    return results


def dram_bytes(experiment: Experiment, trace: Trace, device: Device) -> float:
    """The experiment's DRAM in bytes. Raises InputError if the device has less."""
    if experiment.dram is None:
        return device.dram.capacity
    size = experiment.dram
    if isinstance(size, MlpFraction):
        tokens = min(experiment.tokens or trace.tokens, trace.tokens)
        longest = max(end - begin for begin, end in sequences([s for s in trace.sequence_starts if s < tokens], tokens))
        size = size.bytes(trace.shape, experiment.prompt + longest)
    if size > device.dram.capacity:
        raise InputError(
            f"dram: {show(size, 'size')} is more than the {show(device.dram.capacity, 'size')} of device "
            f"{device.name}; give less, or a device with more"
        )
    return size
