"""Bits instead of zeros: what is not worth reading is not left out, but computed at the precision that is resident.

Each weight is held as a prefix of its own 4-bit code, by default as two bits; Flash brings the others of just the rows
and columns that matter for a token. One price serves all layers, matrices and tokens (docs/background/precision.md).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dipsim import Group, ModelShape, Policy
from dipsim.sparsity.calibrated import NESTED, Calibrated, weights_of_tokens
from dipsim.sparsity.levels import Units, at_levels

MB = 1e6
NODES = ((0.0, 2 / 3), (3**0.5, 1 / 6), (-(3**0.5), 1 / 6))  # of Gauss and Hermite, for a normal distribution
MATRIX = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


class Precision(Policy):
    """Reads what saves more than `price`, the expected loss in nats for each MB of reading.

    `calibration` is a file of `dipsim calibrate-precision`. No row of gate_proj is held below the level `lowest_gate`:
    it is what all choices go by.
    """

    calibration: str
    price: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    lowest_gate: Annotated[int, Field(strict=True, ge=0, le=4)] = 2

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        self._read().check(shape)
        return [
            Group(name, (matrix,), "neuron", 0, price=self.price / MB, levels=NESTED) for name, matrix in MATRIX.items()
        ]

    def units(self, group: Group, layer: int) -> Units:
        return self._read().units(group.name, layer, self.lowest_gate if group.name == "gate" else 0)

    def scores(self, group: Group, acts: Any) -> Any:
        """What an error of a unit's output is expected to cost, E over what is not known yet."""
        x = acts.mlp_input
        weight = weights_of_tokens(x, _like(x, self._read().of(acts.layer, "token_weight")))
        if group.name == "down":
            return acts.glu * acts.glu * weight
        gate, up = acts.gate_proj, acts.up_proj
        value = _like(gate, self._read().of(acts.layer, "value")) * weight
        spread = self._variance("gate", acts) ** 0.5
        if group.name == "gate":
            return (up * up + self._variance("up", acts)) * _mean_square(_slope, gate, spread) * value
        return _mean_square(_silu, gate, spread) * value

    def static_bytes(self, shape: ModelShape) -> float:
        return self._read().table_bytes

    def _variance(self, name: str, acts: Any) -> Any:
        """E of the squared error of a projection [..., m] at the levels known so far, 0 where there are none."""
        levels = getattr(acts, "levels", {}).get(name)
        if levels is None:
            return 0.0
        errors = _like(acts.gate_proj, self._read().of(acts.layer, f"{name}.errors"))
        if isinstance(levels, np.ndarray):
            return at_levels(errors, levels)
        return errors.expand(*levels.shape, -1).gather(-1, levels.long().unsqueeze(-1)).squeeze(-1)

    def _read(self) -> Calibrated:
        return Calibrated.read(Path(self.calibration))


def _mean_square(function: Any, values: Any, spread: Any) -> Any:
    """E of the squared function at values that are normally distributed, by three nodes."""
    return sum(weight * function(values + node * spread) ** 2 for node, weight in NODES)


def _like(values: Any, array: Any) -> Any:
    return array if isinstance(values, np.ndarray) else values.new_tensor(array)


def _sigmoid(x: Any) -> Any:
    half = 0.5 * x
    return 0.5 * (1 + (np.tanh(half) if isinstance(x, np.ndarray) else half.tanh()))


def _silu(x: Any) -> Any:
    return x * _sigmoid(x)


def _slope(x: Any) -> Any:
    """The derivative of silu."""
    sigmoid = _sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))
