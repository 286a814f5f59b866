"""A device: what the hardware can do. It knows nothing of models.

It ignores wear, thermal throttling, refresh, and everything else that makes a rate vary with time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from dipsim.basics import assets
from dipsim.basics.errors import InputError
from dipsim.basics.fields import Strict, parse
from dipsim.basics.files import read_yaml
from dipsim.basics.units import Bandwidth, EnergyPerByte, EnergyPerOperation, Size, Throughput
from dipsim.timing.flash import Flash


class Dram(Strict):
    """Working memory: its capacity in bytes and its bandwidth in bytes per second.

    `flash_copies` is how often a byte that comes from Flash also crosses the DRAM bus: 0 (the default, as in the
    paper), 1 if storage writes it there, 2 if the processor then reads it back.
    """

    capacity: Size
    bandwidth: Bandwidth
    flash_copies: int = Field(0, ge=0, le=2)


class Compute(Strict):
    """Arithmetic: floating-point operations per second. A multiply-add counts as two."""

    throughput: Throughput


class Energy(Strict):
    """Energy in joules per byte moved and per operation. A part that is not given is unknown, and so is the sum."""

    flash: EnergyPerByte | None = None
    dram: EnergyPerByte | None = None
    compute: EnergyPerOperation | None = None


class Device(Strict):
    """A device file: Flash, DRAM, and optionally compute and energy. Without compute, computation takes no time."""

    name: str
    description: str = ""
    flash: Flash
    dram: Dram
    compute: Compute | None = None
    energy: Energy | None = None
    sources: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Device:
        """Load a shipped device by name, or a YAML file by path. Raises InputError naming file, field and fix."""
        path = assets.find("devices", name_or_path)
        return parse(cls, read_yaml(path), path)

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
