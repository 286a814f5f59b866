"""A device: what the hardware can do. It knows nothing of models.

It ignores wear, refresh, and everything else that makes a rate vary while it runs.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dipsim.basics import assets
from dipsim.basics.errors import InputError
from dipsim.basics.fields import Fraction, Strict, parse
from dipsim.basics.files import read_settings
from dipsim.basics.units import Bandwidth, EnergyPerByte, EnergyPerOperation, Rate, Size, Throughput, Time
from dipsim.storage.flash import Flash

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
TAKEN = ("flash", "dram", "compute", "wait", "start", "latency")  # names that tables have for something else


class Dram(Strict):
    """Working memory: its capacity in bytes and its bandwidth in bytes per second.

    `free` is how much of it a model may use, by default all. More is refused, unless `paging` says at how many bytes
    per second pages come back that did not fit. `flash_copies` is how often a byte that comes from Flash also crosses
    the DRAM bus: 0 (the default, as in the paper), 1 if storage writes it there, 2 if the processor then reads it back.
    A column that is gathered takes as long as `row` bytes where it is shorter (1 by default). A cache takes in what was
    read at `fill` bytes per second, by default at once: that is what copies and bookkeeping cost the processor.
    """

    capacity: Size
    bandwidth: Bandwidth
    free: Size | None = None
    paging: Bandwidth | None = None
    flash_copies: int = Field(0, ge=0, le=2)
    row: Size = 1.0
    fill: Bandwidth | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.free is not None and self.free > self.capacity:
            raise ValueError("free: is more than the capacity; a device cannot have more free than it has")
        return self

    @property
    def usable(self) -> float:
        """Bytes that a model may use without paging."""
        return self.capacity if self.free is None else self.free


class Arithmetic(Strict):
    """A rate of computing: `throughput` or `weights`, as `Compute` has them."""

    throughput: Throughput | None = None
    weights: Bandwidth | None = None

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.throughput is None) == (self.weights is None):
            raise ValueError("give either throughput or weights, not both and not neither")
        return self

    def slowed(self, share: float) -> Self:
        """The same at only this share of its rates."""
        rates = {name: getattr(self, name, None) for name in ("throughput", "weights", "selection")}
        return self.model_copy(update={name: rate * share for name, rate in rates.items() if rate is not None})


class Unit(Arithmetic):
    """A further unit of compute, such as an NPU, for the steps that it `runs`: attention, whole (matrices that every
    token reads), input, neuron and expert (columns and experts that masks choose), lm_head. Its rate is given as that
    of `Compute`, whose other times it shares. Prompts and what reads interrupt are the main unit's.
    """

    runs: tuple[Literal["attention", "whole", "input", "neuron", "expert", "lm_head"], ...] = Field(min_length=1)


class Compute(Arithmetic):
    """Arithmetic, as it is reached: `throughput` in floating-point operations per second, of which a multiply-add
    counts as two, or `weights` in bytes of weights (and KV cache) that are computed with per second. Bringing them from
    DRAM is part of the latter, and takes no time of its own.

    `selection` is the rate of choosing columns, in columns per second; by default it takes no time. A layer takes
    `layer` seconds besides (0 by default). A read from Flash that is under way beside compute interrupts it for
    `interrupt` seconds (0 by default), where both run side by side. `units` are further ones, by name, that run some of
    the steps.
    """

    selection: Rate | None = None
    layer: Time = 0.0
    interrupt: Time = 0.0
    units: dict[Name, Unit] = Field(default_factory=dict)

    def slowed(self, share: float) -> Self:
        """Compute that reaches only this share of its speed, in all its units."""
        times = {name: getattr(self, name) / share for name in ("layer", "interrupt")}
        units = {name: unit.slowed(share) for name, unit in self.units.items()}
        return super().slowed(share).model_copy(update={**times, "units": units})


class Tier(Strict):
    """Memory besides DRAM and Flash, such as the SRAM of an NPU or a card behind the Flash.

    It is read at `bandwidth`, each read after `command_time` (0 by default). It holds `capacity` bytes of what masks
    choose, as the rule `eviction` (lru by default) says. The last tier holds everything.
    """

    name: Name
    bandwidth: Bandwidth
    capacity: Size | None = None
    command_time: Time = 0.0
    eviction: str = "lru"


class Sustained(Strict):
    """The share of its speed that each part keeps once the device is hot, by default all."""

    flash: Fraction = 1.0
    dram: Fraction = 1.0
    compute: Fraction = 1.0


class Energy(Strict):
    """Energy in joules per byte moved and per operation. A part that is not given is unknown, and so is the sum."""

    flash: EnergyPerByte | None = None
    dram: EnergyPerByte | None = None
    compute: EnergyPerOperation | None = None


class Evidence(Strict):
    """How right a device is: `level`, what it was compared with (`against`), and the relative `error` found there.

    A `validated` device was compared with measurements that it was not made from, a `fitted` one with those that it was
    made from. A `derived` one follows from measurements of other hardware or from specifications. In an `assumed` one a
    figure that decides is a guess.
    """

    level: Literal["validated", "fitted", "derived", "assumed"]
    against: str = ""
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.level == "validated" and (self.error is None or not self.against):
            raise ValueError("validated needs the error that was found, such as 0.05, and against what")
        if self.level in ("derived", "assumed") and self.error is not None:
            raise ValueError(f"{self.level} has no error; a device with one is validated or fitted")
        return self

    @property
    def shown(self) -> str:
        """In a few words."""
        return self.level if self.error is None else f"{self.level} to {self.error:.1%}"


class Device(Strict):
    """A device file: Flash, DRAM, and optionally compute and energy. Without compute, computation takes no time.

    `tiers` are memories besides, the fastest first: those at least as fast as DRAM cache what it holds; those behind
    Flash hold what it has no `capacity` for.

    `evidence` says how right it is. `conditions` are those that a measured device was measured under.
    """

    name: str
    description: str = ""
    flash: Flash
    dram: Dram
    compute: Compute | None = None
    tiers: tuple[Tier, ...] = ()
    sustained: Sustained | None = None
    energy: Energy | None = None
    evidence: Evidence | None = None
    conditions: dict[str, str] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for first, second in pairwise(self.tiers):
            if second.bandwidth > first.bandwidth:
                raise ValueError(
                    f"tiers: must stand in order of bandwidth, the fastest first; {second.name} is faster than "
                    f"{first.name}, so put it before"
                )
        for tier in self.tiers:
            if self.flash.peak_bandwidth < tier.bandwidth < self.dram.bandwidth:
                raise ValueError(f"tiers: {tier.name}: is slower than DRAM and faster than Flash; nothing goes between")
        if any(tier.capacity is None for tier in (*self.above, *self.behind[:-1])):
            raise ValueError("tiers: all but the last behind Flash need a capacity")
        if bool(self.behind) != (self.flash.capacity is not None):
            raise ValueError("tiers: a tier behind Flash needs flash.capacity, and flash.capacity a tier behind it")
        units = self.compute.units if self.compute else {}
        names = [*TAKEN, *units, *(tier.name for tier in self.tiers)]
        if len(set(names)) < len(names):
            raise ValueError(f"tiers and compute.units need names of their own, other than {', '.join(TAKEN)}")
        runs = [step for unit in units.values() for step in unit.runs]
        if len(set(runs)) < len(runs):
            raise ValueError("compute.units: a step is run by two units; give it to one")
        return self

    @property
    def above(self) -> tuple[Tier, ...]:
        """The tiers above DRAM."""
        return tuple(tier for tier in self.tiers if tier.bandwidth >= self.dram.bandwidth)

    @property
    def behind(self) -> tuple[Tier, ...]:
        """The tiers behind Flash."""
        return tuple(tier for tier in self.tiers if tier.bandwidth < self.dram.bandwidth)

    @property
    def on_clock(self) -> bool:
        """Whether only the engine knows its parts."""
        return bool(self.tiers or (self.compute and self.compute.units))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Device:
        """Load a shipped device by name, or a YAML file by path. Raises InputError naming file, field and fix."""
        path = assets.find("devices", name_or_path)
        return parse(cls, read_settings(path, "a device"), path)

    def hot(self) -> Device:
        """The device once it is hot. Raises InputError if the file does not say how fast it then is."""
        if self.sustained is None:
            raise InputError(f"hot: device {self.name} does not say what it sustains; add sustained to its file")
        share, dram = self.sustained, self.dram
        above = [tier.model_copy(update={"bandwidth": tier.bandwidth * share.dram}) for tier in self.above]
        behind = [tier.model_copy(update={"bandwidth": tier.bandwidth * share.flash}) for tier in self.behind]
        return self.model_copy(
            update={
                "name": f"{self.name} (hot)",
                "flash": self.flash.slowed(share.flash),
                "dram": dram.model_copy(update={"bandwidth": dram.bandwidth * share.dram}),
                "compute": self.compute and self.compute.slowed(share.compute),
                "tiers": (*above, *behind),
            }
        )

    def scaled(self, ratio: float, name: str) -> Device:
        """The device as one for which columns of `ratio` times the size cost what columns cost here, called `name`."""
        tiers = [tier.model_copy(update={"command_time": tier.command_time * ratio}) for tier in self.tiers]
        return self.model_copy(update={"name": name, "flash": self.flash.scaled(ratio), "tiers": tuple(tiers)})

    def replace(self, where: object = "device", **fields: Any) -> Device:
        """A checked copy with fields changed by dotted name, as in `replace(**{"flash.read_bandwidth": "2 GB/s"})`.

        Raises InputError, beginning with `where`, for an unknown field or an impossible value.
        """
        data = self.model_dump(exclude_none=True, exclude_defaults=True)
        for name, value in fields.items():
            *parents, leaf = name.split(".")
            target = data
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise InputError(f"{where}: {name}: no such field")
            target[leaf] = value
        return parse(Device, data, where)
