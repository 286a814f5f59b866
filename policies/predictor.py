"""Predicted neurons, as in Deja Vu (arXiv 2310.17157): a small network per layer guesses which neurons will matter.

`python -m dipsim train-predictor` makes the networks; their weights are read for every token and stay in DRAM.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dipsim import Fraction, Group, InputError, ModelShape, Policy
from dipsim.basics.tensors import read_tensors
from dipsim.workload.shape import MATRICES

AGAIN = "make one with `python -m dipsim train-predictor`"


def _networks(path: str) -> dict[str, Any]:
    try:
        return _read(path, Path(path).stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None


@lru_cache(maxsize=4)
def _read(path: str, _changed: int) -> dict[str, Any]:
    return read_tensors(Path(path), AGAIN)[1]


class Predictor(Policy):
    """Reads p = `fraction` of all three matrices: the neurons of largest relu(x A) B, from the file `weights`."""

    weights: str
    fraction: Fraction = 0.5

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        return (Group("neuron", MATRICES, "neuron", int(self.fraction * shape.intermediate_size)),)

    def scores(self, group: Group, acts: Any) -> Any:
        x = acts.mlp_input
        a, b = (_networks(self.weights)[f"layers.{acts.layer}.{name}"] for name in ("A", "B"))
        if not isinstance(x, np.ndarray):
            a, b = x.new_tensor(a), x.new_tensor(b)
        hidden = x @ a
        return (hidden * (hidden > 0)) @ b

    def static_bytes(self, shape: ModelShape) -> float:
        networks = _networks(self.weights)
        wanted = [(shape.hidden_size, shape.intermediate_size)] * shape.num_hidden_layers
        found = [(a.shape[0], b.shape[1]) for a, b in zip(*_by_layer(networks), strict=True)]
        if found != wanted:
            raise InputError(
                f"{Path(self.weights).name}: was trained on another model; train one on this model's trace"
            )
        return 2.0 * int(sum(tensor.size for tensor in networks.values()))  # 16 bit


def _by_layer(networks: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    layers = range(len(networks) // 2)
    a, b = ([networks.get(f"layers.{i}.{name}", np.empty((0, 0))) for i in layers] for name in ("A", "B"))
    return a, b
