"""Columns by what they are worth: those are read whose absence would cost more loss than reading them costs time.

One price serves all layers, matrices and tokens. So a token reads more where that matters, from a threshold that knows
what a read costs instead of a top-k (compare Neuron Chunking, arXiv 2511.18692). Everything resident is used.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dipsim import Group, InputError, ModelShape, Policy
from dipsim.basics import assets
from dipsim.basics.tensors import read_tensors

MB = 1e6


@lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> dict[str, Any]:
    return read_tensors(path, "make a file of sensitivities with `dipsim learn-sensitivity`")[1]


class Worth(Policy):
    """Reads what is worth more than `price`, the expected loss in nats that must be saved for each MB of reading.

    `sensitivity` names a file made by `learn-sensitivity`. Without one a column's worth is its share of the layer's
    squared signal, and the price is in such shares.
    """

    price: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    sensitivity: str | None = None

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        self._check(shape)
        return (
            Group("input", ("gate_proj", "up_proj"), "input", 0, price=self.price / MB),
            Group("neuron", ("down_proj",), "neuron", 0, price=self.price / MB),
        )

    def scores(self, group: Group, acts: Any) -> Any:
        values = acts.mlp_input if group.axis == "input" else acts.glu
        squared = values * values
        if self.sensitivity is None:
            return squared / (squared.sum(axis=-1, keepdims=True) + 1e-30)
        curvature = self._sensitivities()[f"layers.{acts.layer}.{group.name}"] / 2
        return squared * (curvature if isinstance(values, np.ndarray) else values.new_tensor(curvature))

    def files(self) -> Sequence[Path]:
        return () if self.sensitivity is None else (assets.find("sensitivities", self.sensitivity),)

    def _sensitivities(self) -> dict[str, Any]:
        (path,) = self.files()
        return _read(path, path.stat().st_mtime_ns)

    def _check(self, shape: ModelShape) -> None:
        if self.sensitivity is None:
            return
        found = {name: values.shape for name, values in self._sensitivities().items()}
        sizes = (("input", shape.hidden_size), ("neuron", shape.intermediate_size))
        layers = range(shape.num_hidden_layers)
        if found != {f"layers.{layer}.{name}": (size,) for layer in layers for name, size in sizes}:
            raise InputError(
                f"sensitivity: {self.sensitivity} is of a model of other sizes; learn that of {shape.name}"
            )
