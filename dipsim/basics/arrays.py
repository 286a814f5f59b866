"""The array types of all packages, each under one name, and when values that hold arrays are equal."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
Numbers = NDArray[Any]  # scores: of whatever numeric dtype the policy makes
Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
SmallInts = NDArray[np.signedinteger[Any]]  # int16 where it suffices: four times the columns in a SIMD register


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal, with the arrays in their fields, which `==` compares element by element."""
    if first is second:
        return True
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if type(first) is not type(second):
        return False
    if is_dataclass(first):
        return all(same(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)
