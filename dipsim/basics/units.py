"""Quantities with units: "1.5 GB/s" becomes 1.5e9 and back. Values are SI inside; units stand at the edges.

GB = 1e9 bytes, GiB = 2^30 bytes, b = bit = 1/8 byte. A number without its unit is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from dipsim.basics.errors import LONGEST, quoted

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}


def _table(prefixes: dict[str, float], bases: dict[str, float]) -> dict[str, float]:
    return {prefix + base: scale * unit for base, unit in bases.items() for prefix, scale in prefixes.items()}


_BYTES = _table(_DECIMAL | {"K": 1e3} | _BINARY, {"B": 1.0}) | _table(_DECIMAL | _BINARY, {"b": 0.125, "bit": 0.125})
_UNITS = {  # dimension: unit -> SI. The order is the order of preference when a value is written out.
    "size": _BYTES,
    "bandwidth": {f"{unit}/s": scale for unit, scale in _BYTES.items()},
    "time": _table({k: v for k, v in _SMALL.items() if k != "p"}, {"s": 1.0}),
    "throughput": _table(_DECIMAL | {"P": 1e15}, {"FLOP/s": 1.0}),
    "rate": _table(_DECIMAL, {"/s": 1.0}),
    "energy per byte": _table(_SMALL, {"J/B": 1.0, "J/bit": 8.0}),
    "energy per operation": _table(_SMALL, {"J/FLOP": 1.0}),
    "energy per token": _table(_SMALL, {"J/token": 1.0}),
    "speed": {"tokens/s": 1.0},
}
DIMENSIONS = tuple(_UNITS)
_EXAMPLES = {
    "size": "64 MB",
    "bandwidth": "1.5 GB/s",
    "time": "60 us",
    "throughput": "2 TFLOP/s",
    "rate": "2 G/s",
    "energy per byte": "52 pJ/bit",
    "energy per operation": "1 pJ/FLOP",
    "energy per token": "20 mJ/token",
    "speed": "10 tokens/s",
}
_WRITTEN = {
    "size": ("GB", "MB", "kB", "B"),
    "bandwidth": ("GB/s", "MB/s", "kB/s", "B/s"),
    "time": ("s", "ms", "us", "ns"),
    "throughput": ("TFLOP/s", "GFLOP/s", "FLOP/s"),
    "rate": ("G/s", "M/s", "k/s", "/s"),
    "energy per byte": ("nJ/B", "pJ/bit", "pJ/B"),
    "energy per operation": ("nJ/FLOP", "pJ/FLOP"),
    "energy per token": ("J/token", "mJ/token", "uJ/token"),
    "speed": ("tokens/s",),
}
_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s.+-]\S*)?\s*")


def parse(text: object, dimension: str, zero: bool = False) -> float:
    """Read a string with a unit of `dimension`; return its SI value.

    Raises ValueError for a bare number, a unit of another dimension, a negative or absurdly large or small value, and
    for 0 unless `zero` is allowed. The message leaves the field's name to the caller, who knows it.
    """
    like = f'write it like "{_EXAMPLES[dimension]}"'
    if not isinstance(text, str):
        raise ValueError(f"{quoted(text)} has no unit; {like}")
    match = _QUANTITY.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        raise ValueError(f"{quoted(text)} is not a number with a unit; {like}")
    number, unit = match.groups()
    if unit is None:
        raise ValueError(f"{text!r} has no unit; {like}")
    if unit not in _UNITS[dimension]:
        raise ValueError(f"{unit!r} is not a unit of {dimension}; {like}")
    value = float(number) * _UNITS[dimension][unit]
    if not (1e-21 < value < 1e21 or (value == 0 and zero)):
        raise ValueError(
            f"{text!r} must be {'0 or more' if zero else 'more than 0'}, and below 1e21 in SI units; {like}"
        )
    return value


def dimension_of(text: object) -> str | None:
    """The dimension of a string that has a unit; None of anything else."""
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) and len(text) <= LONGEST else None
    return next((name for name, units in _UNITS.items() if match and match[2] in units), None)


def write(value: float, dimension: str) -> str:
    """Write a value in the shortest usual spelling that `parse` reads back exactly."""
    units = [unit for unit in _WRITTEN[dimension] if value >= _UNITS[dimension][unit]] or [_WRITTEN[dimension][-1]]
    for unit in units:
        text = f"{value / _UNITS[dimension][unit]:.12g} {unit}"
        if parse(text, dimension, zero=True) == value:
            return text
    base = next(unit for unit, scale in _UNITS[dimension].items() if scale == 1.0)
    return f"{value!r} {base}"


def show(value: float, dimension: str) -> str:
    """Write a value for people, with three significant digits in the largest unit that fits."""
    # 999.9 MB is written as 1 GB: what rounds up to a unit is shown in it
    unit = next((u for u in _WRITTEN[dimension] if value >= 0.9995 * _UNITS[dimension][u]), _WRITTEN[dimension][-1])
    return f"{value / _UNITS[dimension][unit]:.3g} {unit}"


def unit_of(values: Iterable[float], dimension: str) -> tuple[str, float]:
    """The unit of an axis and its SI value: the largest in which the middle value is 1 or more, and none below 0.1."""
    ordered = sorted({value for value in values if value > 0}) or [1.0]
    middle, least = ordered[len(ordered) // 2], ordered[0]
    units = {unit: _UNITS[dimension][unit] for unit in _WRITTEN[dimension]}
    fits = (unit for unit in units.items() if middle >= unit[1] and least >= 0.1 * unit[1])
    return next(fits, (_WRITTEN[dimension][-1], units[_WRITTEN[dimension][-1]]))


def significant(value: float, digits: int = 3) -> str:
    """Write a plain number with significant digits and without an exponent: 0.0123, 71.5, 1,234."""
    decimals = digits - 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, decimals)}f}"


def _read(value: Any, dimension: str, zero: bool) -> float:
    return parse(value, dimension, zero)


def _field(dimension: str, zero: bool = False) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema]:
    return (
        BeforeValidator(partial(_read, dimension=dimension, zero=zero)),
        PlainSerializer(partial(write, dimension=dimension), return_type=str),
        WithJsonSchema({"type": "string", "description": dimension, "examples": [_EXAMPLES[dimension]]}),
    )


# Field types: in a file a string with a unit, in memory the SI value as a float.
Size = Annotated[float, *_field("size")]
Bandwidth = Annotated[float, *_field("bandwidth")]
Time = Annotated[float, *_field("time", zero=True)]
Throughput = Annotated[float, *_field("throughput")]
Rate = Annotated[float, *_field("rate")]
EnergyPerByte = Annotated[float, *_field("energy per byte", zero=True)]
EnergyPerOperation = Annotated[float, *_field("energy per operation", zero=True)]
