"""Recorded requests: which level of precision each token wanted of each unit, written and read back.

For each layer i and each group of units the file has `layers.{i}.{group}.requested` [T, N] (uint8). Such a trace needs
neither model nor formulas: what is resident, and so what is read, is decided when it is replayed
(docs/background/precision.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.errors import InputError
from dipsim.workload.shape import ModelShape

KIND = "requested"


@dataclass(frozen=True)
class LevelRequests:
    """What tokens want of one layer: `levels` [T, N] (uint8) by the name of a group."""

    levels: Mapping[str, NDArray[np.uint8]]
    layer: int = 0

    def of(self, group: str, top: int) -> NDArray[np.uint8]:
        """The levels [T, N] wanted of a group. Raises InputError if the trace has none of it, or one above `top`."""
        found = self.levels.get(group)
        if found is None:
            raise InputError(
                f"layer {self.layer}: the trace has requests of groups {', '.join(self.levels)}, none of {group}; "
                "replay it with the policy that made it"
            )
        if found.size and found.max() > top:
            raise InputError(f"layer {self.layer}: group {group}: level {found.max()} is above the highest, {top}")
        return found


def check_requests(file: Any, shape: ModelShape, path: Path) -> int:
    """Check that every layer has requests of the same groups; return the number of tokens."""
    present = set(file.keys())
    groups = sorted(name.split(".")[2] for name in present if name.startswith("layers.0.") and name.endswith(KIND))
    if not groups:
        raise InputError(f"{path}: layers.0: has no requested levels; record the trace again")
    expected: dict[str, list[int]] = {}
    for index in range(shape.num_hidden_layers):
        for group in groups:
            key = f"layers.{index}.{group}.{KIND}"
            if key not in present:
                raise InputError(f"{path}: {key}: is missing; record the trace again")
            view = file.get_slice(key)
            found = view.get_shape()
            tokens = next(iter(expected.values()))[0] if expected else (found or [0])[0]
            size = expected.setdefault(group, [tokens, *found[1:]])
            if found != size or len(found) != 2 or found[1] not in (shape.hidden_size, shape.intermediate_size):
                raise InputError(f"{path}: {key}: has shape {found}; {size} is expected")
            if view.get_dtype() != "U8" or not tokens:
                raise InputError(f"{path}: {key}: must be U8 with at least one token (got {view.get_dtype()} {found})")
    return int(expected[groups[0]][0])


def read_requests(file: Any, index: int, tokens: int | None) -> LevelRequests:
    """One layer's requests."""
    prefix, suffix = f"layers.{index}.", f".{KIND}"
    names = [name for name in file.keys() if name.startswith(prefix) and name.endswith(suffix)]  # noqa: SIM118
    levels = {}
    for name in sorted(names):
        found = file.get_slice(name)[:tokens]
        found.setflags(write=False)
        levels[name.removeprefix(prefix).removesuffix(suffix)] = found
    return LevelRequests(levels, index)


def request_tensors(layers: Sequence[Mapping[str, NDArray[np.uint8]]]) -> dict[str, NDArray[Any]]:
    """The tensors of a trace, from the levels [T, N] of each group in each layer."""
    return {
        f"layers.{index}.{group}.{KIND}": np.ascontiguousarray(levels)
        for index, layer in enumerate(layers)
        for group, levels in layer.items()
    }
