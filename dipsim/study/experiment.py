"""Experiment files: what to simulate, as a checked and immutable value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, StrictBool, WithJsonSchema, model_validator

from dipsim.basics import assets
from dipsim.basics.errors import InputError, collected, named
from dipsim.basics.fields import Count, Natural, Strict, parse
from dipsim.basics.files import read_settings
from dipsim.basics.units import Size, show
from dipsim.basics.units import parse as parse_quantity
from dipsim.basics.units import write as write_quantity
from dipsim.memory.budget import largest_unit
from dipsim.memory.eviction import Eviction
from dipsim.planning.fetch_plan import Scope, Setting, Shares, Start
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.selection import checked_groups
from dipsim.storage.layouts import load_layout
from dipsim.storage.learned import learned_file
from dipsim.study.choices import Choice
from dipsim.study.clock_options import ClockOptions
from dipsim.study.paths import moved, seen_from, seen_in
from dipsim.timing.device import Device
from dipsim.timing.timeline import Timing
from dipsim.workload.shape import Bits, ModelShape
from dipsim.workload.trace import Trace


@dataclass(frozen=True)
class MlpFraction:
    """DRAM for the static parts and this share of the MLP."""

    mlp_fraction: float

    def bytes(self, shape: ModelShape, length: int, streams: int = 1) -> float:
        """Bytes of DRAM for `streams` sequences of `length` positions."""
        return shape.static_bytes(length, streams) + self.mlp_fraction * shape.mlp_bytes


class ChangedBits(Strict):
    """Bits per value of `mlp`, `attention`, `lm_head` and `kv_cache`, by default the trace's own.

    They may be fractions: 4.5 where 32 values of 4 bits share a scale of 16.
    """

    mlp: Bits | None = None
    attention: Bits | None = None
    lm_head: Bits | None = None
    kv_cache: Bits | None = None


class Cache(Strict):
    """The bytes of all caches together, and what each serves: a `layer` (they share evenly) or the whole `model`.

    `size` takes the place of `dram`, which is then this and what every token reads: static parts and shared experts. Of
    dense MLPs it is for all matrices, also those that a policy reads whole. `scope` is by default `model` for experts,
    and `layer` for columns.
    """

    size: Size | None = None
    scope: Scope | None = None


def _read_dram(value: Any) -> float | MlpFraction:
    if not isinstance(value, dict):
        return parse_quantity(value, "size")
    share = value.get("mlp_fraction")
    if len(value) != 1 or isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not a share of the MLP; write {{mlp_fraction: 0.5}}, from 0 to 1")
    return MlpFraction(float(share))


def _write_dram(dram: float | MlpFraction) -> Any:
    return vars(dram) if isinstance(dram, MlpFraction) else write_quantity(dram, "size")


_DRAM_SCHEMA: Any = {
    "oneOf": [
        {"type": "string"},
        {"type": "object", "properties": {"mlp_fraction": {"type": "number"}}, "required": ["mlp_fraction"]},
    ],
    "examples": ["60 MB", {"mlp_fraction": 0.5}],
}
Dram = Annotated[
    float | MlpFraction, BeforeValidator(_read_dram), PlainSerializer(_write_dram), WithJsonSchema(_DRAM_SCHEMA)
]


class Options(ClockOptions):
    """How to simulate, whatever is simulated.

    `dram` is for weights and KV cache; by default it is all that the device has free. `cache` says instead how large
    the caches are, or what each serves. `tokens` is by default all that the trace has. `prompt` is the number of
    positions before the trace's. `start` says how caches begin: `warm` (the default), the prompt of the trace, or else
    the first tokens of each sequence, pass through them before the clock starts and are not counted; `cold`, they are
    empty; `filled`, they hold the columns of lowest index. `layout` says how columns lie in Flash; one that is learned
    is learned from the trace `calibration`, by default from the tokens that are not counted. With `read_through` (the
    default), gaps are read too where that is faster; without it, layouts and masks take a read to cost its bytes only.
    `split` says how caches share the DRAM: evenly, or as is `best` for Flash, which is learned as a layout is.
    `eviction` is the name of a rule, by default lfu (lru for experts), or pinned where the layout lays pinned columns
    apart. `timing` is serial, concurrent or pipelined. `stream_static` lets lm_head and attention overflow to Flash.
    `bits` replace those that the trace has for a value of `mlp`, `attention`, `lm_head` or `kv_cache`; a perplexity
    that was measured for others is not shown. What depends on the clock is told in `ClockOptions`.
    """

    dram: Dram | None = None
    cache: Cache | None = None
    tokens: Count | None = None
    prompt: Natural = 0
    start: Start = "warm"
    layout: str = "columns"
    calibration: str | None = None
    read_through: StrictBool = True
    split: Shares = "even"
    eviction: Eviction | None = None
    timing: Timing = "serial"
    stream_static: StrictBool = False
    bits: ChangedBits | None = None

    def eviction_rule(self, shape: ModelShape) -> str:
        """The name of the eviction rule for a model. Raises InputError if the layout cannot be used."""
        if self.eviction is not None:
            return self.eviction
        if load_layout(self.layout).pins:
            return "pinned"
        return "lfu" if shape.mixture is None else "lru"

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.dram is not None and self.cache is not None and self.cache.size is not None:
            raise ValueError("give either dram or cache.size, not both: dram is the caches and all else")
        return self

    def with_own_bits(self, shape: ModelShape) -> ModelShape:
        """The model's shape with the bits of these options."""
        return shape if self.bits is None else shape.with_bits(self.bits.model_dump(exclude_none=True))

    def dram_bytes(self, shape: ModelShape, length: int, device: Device) -> float:
        """The DRAM to simulate, in bytes, for sequences of `length` tokens after the prompt.

        Raises InputError if the device has less, or less free without saying what paging costs.
        """
        size = device.dram.usable if self.dram is None else self.dram
        if self.cache is not None and self.cache.size is not None:
            size = shape.static_bytes(self.prompt + length, self.streams) + self.cache.size
            size += float(shape.whole_mlp_bytes.sum())
        if isinstance(size, MlpFraction):
            size = size.bytes(shape, self.prompt + length, self.streams)
        shown = show(size, "size")
        if size > device.dram.capacity:
            raise InputError(
                f"dram: {shown} is more than the {show(device.dram.capacity, 'size')} of device "
                f"{device.name}; give less, or a device with more"
            )
        if size > device.dram.usable and device.dram.paging is None:
            raise InputError(
                f"dram: {shown} is more than the {show(device.dram.usable, 'size')} that device {device.name} has "
                "free; give less, or say in its file how fast pages come back (dram.paging)"
            )
        return size

    def settings(self, policies: Iterable[Policy], shape: ModelShape, length: int, device: Device) -> list[Setting]:
        """What to plan for each policy. Raises InputError if the device has less DRAM, or bits cannot be changed."""
        own, shape = shape, self.with_own_bits(shape)
        eviction = self.eviction_rule(shape)
        flash = device.flash if self.read_through and not device.flash.scattered_is_free else None
        page = device.flash.page
        same = Setting(
            policy=Policy(),
            dram_bytes=self.dram_bytes(shape, length, device),
            eviction=eviction,
            prompt=self.prompt,
            stream_static=self.stream_static,
            start=self.start,
            layout=self.layout,
            calibration=self.calibration,
            split=self.split,
            scope=(self.cache and self.cache.scope) or ("layer" if shape.mixture is None else "model"),
            streams=self.streams,
            draft=self.speculate.draft if self.speculate else 0,
            bits=None if shape == own else shape.bits,
        )
        flash = None if shape.mixture else flash  # an expert is read by itself, without gaps
        found = []
        for policy in policies:
            setting = replace(same, policy=policy)
            if groups := checked_groups(policy, shape):
                buffer = self.buffer_bytes(shape, max(largest_unit(shape, group) for group in groups))
                setting = replace(setting, page=page, flash=flash, buffer=buffer)
            found.append(setting)
        return found


class Experiment(Options):
    """What to simulate: one trace on one device under several policies, by name or path.

    Paths in a file are seen from its folder; otherwise, as on the command line, from the current one.
    `hardware` changes fields of the device by dotted name. `hot` takes the speed that it sustains. `scale_to` names a
    trace of a larger model: what a read costs besides its bytes is then scaled down by the ratio of the hidden sizes,
    so that it weighs on the columns of this model as it does on those of the larger one. `sweep` lists values for
    fields of the experiment, of its device or of a policy.
    """

    trace: str
    device: str = "paper"
    hardware: dict[str, Any] = Field(default_factory=dict)
    hot: StrictBool = False
    scale_to: str | None = None
    policies: tuple[Choice, ...] = Field(min_length=1)
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Experiment:
        """Read an experiment file; paths in it are seen from its folder.

        Raises InputError naming file, field and fix.
        """
        read = parse(cls, read_settings(path, "an experiment"), path).resolved()
        with named(path):
            return parse(cls, moved(read, seen_from(path.parent)), "")

    def open_trace(self) -> Trace:
        """Open the trace. Raises InputError if it cannot be used."""
        with named("trace"):
            return Trace.open(self.trace)

    def load_hardware(self, shape: ModelShape | None) -> Device:
        """Load the device, changed as the experiment says, for a model of this shape, if it is known.

        Raises InputError if it cannot be used.
        """
        device = load_device(self.device, shape, self.hardware, self.scale_to)
        return device.hot() if self.hot else device

    def load_policies(self) -> list[Policy]:
        """Load the policies. Raises InputError if one cannot be used, or is there twice."""
        policies: list[Policy] = []
        complaints: list[str] = []
        for choice in self.policies:
            with collected(complaints):
                policies.append(choice.load())
        if complaints:
            raise InputError(*complaints)
        labels = [policy.label for policy in policies]
        if len(set(labels)) < len(labels):
            raise InputError(f"policies: {max(labels, key=labels.count)} is there twice; remove one or change it")
        return policies

    def load_parts(self, open_trace: Callable[[str], Trace] = Trace.open) -> tuple[list[Policy], Trace, Device]:
        """Load the policies, the trace and the device. Raises InputError with all of them that cannot be used."""
        complaints: list[str] = []
        with collected(complaints):
            policies = self.load_policies()
        trace = None
        with collected(complaints), named("trace"):
            trace = open_trace(self.trace)
        with collected(complaints):
            device = self.load_hardware(None if trace is None else trace.shape)
        with collected(complaints):
            load_layout(self.layout)
        if self.prefetch is not None:
            with collected(complaints):
                self.prefetch.by.load()
        if complaints or trace is None:
            raise InputError(*complaints)
        return policies, trace, device

    def resolved(self, folder: Path | None = None) -> dict[str, Any]:
        """All fields, as a file in a folder would say them, by default in the current one."""
        data = self.model_dump(mode="json")
        return data if folder is None else moved(data, seen_in(folder))

    def plugin_files(self) -> dict[str, Path]:
        """The file of each policy and of the prefetcher, by what provenance calls it. None of them is loaded."""
        files = {f"policy {choice.policy}": assets.find("policies", choice.policy) for choice in self.policies}
        if self.prefetch is not None:
            files[f"prefetcher {self.prefetch.by.prefetcher}"] = assets.find("prefetchers", self.prefetch.by.prefetcher)
        return files

    def policy_files(self) -> dict[str, Path]:
        """The plugins' files and those that policies read, by what provenance calls them."""
        files = self.plugin_files()
        read = [(choice.policy, file) for choice in self.policies for file in choice.load().files()]
        return files | {f"policy {name} {file.name}": file for name, file in read}

    def learned_files(self) -> dict[str, Path]:
        """The files that a layout and a scale come from, by what provenance calls them."""
        files = {f"layout {self.layout}": file} if (file := learned_file(self.layout)) else {}
        traces = {"calibration": self.calibration, "scale_to": self.scale_to}
        return files | {f"{key} {name}": assets.find("traces", name) for key, name in traces.items() if name}


def load_device(
    name_or_path: str | Path,
    shape: ModelShape | None,
    changes: Mapping[str, Any] | None = None,
    scale_to: str | None = None,
) -> Device:
    """Load a device with fields changed by dotted name, its reads scaled for a model of this shape, if it is known.

    Raises InputError if the device, a field or the trace `scale_to` cannot be used.
    """
    with named("device"):
        device = Device.load(name_or_path)
    device = device.replace("hardware", **(changes or {}))
    if scale_to is None or shape is None:
        return device
    with named("scale_to"):
        other = Trace.open(scale_to).shape
    return device.scaled(shape.hidden_size / other.hidden_size, f"{device.name} (scaled to {other.name})")


def policy_entries(data: dict[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """The policies of an experiment's data, each as {name: parameters}."""
    return [{entry: {}} if isinstance(entry, str) else entry for entry in data["policies"]]


def set_parameter(entries: list[dict[str, dict[str, Any]]], policy: str, parameter: str, value: Any) -> bool:
    """Set a parameter of every entry that `policy` names, in place; return whether there was one."""
    found = [entry[name] for entry in entries for name in entry if assets.same_policy(policy, name)]
    for parameters in found:
        parameters[parameter] = value
    return bool(found)
