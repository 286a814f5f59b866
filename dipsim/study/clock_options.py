"""The options of an experiment that make something depend on the clock: prefetch, streams, drafts, contention."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool

from dipsim.basics.errors import InputError
from dipsim.basics.fields import Count, Natural, Strict
from dipsim.basics.units import Size, show
from dipsim.clock.clocked import Clocked, Prefetch, Speculation, Turns, When
from dipsim.study.choices import PrefetcherBy
from dipsim.timing.device import Device
from dipsim.workload.shape import ModelShape


class PrefetchOptions(Strict):
    """What is read ahead of masks.

    At each layer the prefetcher `by` names `units` columns or experts at most for the layer `ahead` layers later. They
    are read `batch` at a time: `idle`, while Flash serves no demand; `spare`, whenever a lane is free; `eager`, in
    order of arrival like demand; or `never`. They use `lanes` of Flash at most, and wait in a `buffer` of so many bytes
    of DRAM, by default as many as the guesses for `ahead` layers need. With `drop_late`, a guess that has not begun
    when its layer does is never read. `seed` is that of what a prefetcher draws.
    """

    by: PrefetcherBy
    units: Count = 4
    ahead: Count = 1
    batch: Count = 1
    when: When = "idle"
    lanes: Count = 1
    buffer: Size | None = None
    drop_late: StrictBool = True
    seed: Natural = 0


class ClockOptions(Strict):
    """What depends on the clock, by default nothing.

    `streams` sequences run side by side and share caches and Flash, whose demand is served `first-come` or
    `round-robin` (`turns`). With `contention`, what storage writes to DRAM and what caches take in crosses DRAM on the
    clock, beside demand.
    """

    prefetch: PrefetchOptions | None = None
    speculate: Speculation | None = None
    streams: Annotated[int, Field(strict=True, ge=1, le=8)] = 1
    turns: Turns = "first-come"
    contention: StrictBool = False

    @property
    def on_clock(self) -> bool:
        """Whether anything depends on the clock. Where nothing does, plans and the recurrence say all."""
        return self._reads_ahead or self._drafts or self.streams > 1 or self.contention

    def needs_clock(self, device: Device) -> bool:
        """Whether a run on a device needs the engine: these options, or parts that only it knows."""
        return self.on_clock or device.on_clock

    @property
    def _reads_ahead(self) -> bool:
        return self.prefetch is not None and self.prefetch.when != "never"

    @property
    def _drafts(self) -> bool:
        return self.speculate is not None and self.speculate.draft > 0

    @property
    def told(self) -> str:
        """What depends on the clock, in a few words; empty if nothing does."""
        parts = []
        if self.prefetch is not None and self._reads_ahead:
            read = self.prefetch
            parts.append(f"prefetch {read.by.load().label} {read.when}, {read.units} a layer, lanes {read.lanes}")
        if self.speculate is not None and self._drafts:
            parts.append(f"{self.speculate.draft} drafts accepted with {self.speculate.acceptance:g}")
        if self.streams > 1:
            parts.append(f"{self.streams} streams {self.turns}")
        return " · ".join([*parts, *(["contention"] if self.contention else [])])

    @property
    def clock_options(self) -> ClockOptions:
        """These options alone."""
        return ClockOptions(**{name: getattr(self, name) for name in ClockOptions.model_fields})

    def buffer_bytes(self, shape: ModelShape, unit_bytes: float) -> float:
        """DRAM for guesses of units of so many bytes. Raises InputError if it does not hold those read together."""
        prefetch = self.prefetch
        if prefetch is None or not self._reads_ahead or not unit_bytes:
            return 0.0
        size = unit_bytes * prefetch.units * prefetch.ahead if prefetch.buffer is None else prefetch.buffer
        least = unit_bytes * min(prefetch.batch, prefetch.units)
        if size < least:
            raise InputError(
                f"prefetch: buffer: {show(size, 'size')} does not hold the {show(least, 'size')} that are read "
                f"together for {shape.name or 'the model'}; give more"
            )
        return size

    def clocked(self, buffer: float) -> Clocked:
        """What depends on the clock, with a buffer of so many bytes. Raises InputError if a plugin cannot be used."""
        prefetch = None
        if self.prefetch is not None and self._reads_ahead:
            fields = {name: value for name, value in self.prefetch if name not in ("by", "buffer")}
            prefetch = Prefetch(self.prefetch.by.load(), buffer=buffer, **fields)
        speculation = self.speculate if self._drafts else None
        return Clocked(prefetch, self.streams, self.turns, speculation, self.contention)
