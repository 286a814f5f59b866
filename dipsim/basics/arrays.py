"""The array types of all packages, each under one name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
Numbers = NDArray[Any]  # scores: of whatever numeric dtype the policy makes
Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
SmallInts = NDArray[np.signedinteger[Any]]  # int16 where it suffices: four times the columns in a SIMD register
