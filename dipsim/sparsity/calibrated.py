"""A calibration of precision: what a nested code's base needs, and what choosing among its levels goes by.

The levels are prefixes of a model's own 4-bit code: nothing, its highest bit, its two, its three highest, all of it
(docs/background/precision.md). For each layer i and matrix the file has the base of each of the levels L from 1 to 4,
`layers.{i}.{matrix}.base{L}` [rows, groups] (uint8: the scale's place in its grid, and 16 times the centre's),
`.scales{L}` [16] and `.centres{L}` [16] (the grids), `.values{L}` (what each code stands for). For each group of units
it has `layers.{i}.{group}.errors` [N, levels] and `.scores` [Q, N], as `Units` says. `layers.{i}.value` [m] is what a
squared unit of glu is worth, and `layers.{i}.token_weight` [d + 1] (float16) is what a token's weight comes
from. If it was trained, it also has `layers.{i}.{matrix}.lora_B` [rows, r] and `.lora_A` [r, inputs] (float16), whose
product is added to the matrix at all levels. All others are float32 but for the uint8. The metadata is an `Origin`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import save_file

from dipsim.basics.arrays import Float32s
from dipsim.basics.errors import InputError
from dipsim.basics.fields import Count, Strict
from dipsim.basics.files import write
from dipsim.basics.tensors import read_learned
from dipsim.sparsity.levels import Level, Levels, Units
from dipsim.workload.shape import ModelShape

SUFFIX = ".precision.safetensors"
BASES = (1, 2, 3, 4)  # the levels with fitted scales
BLOCK = 32  # weights that share a scale
NESTED = Levels((Level(0), *(Level(bits, 0.25) for bits in BASES), Level(4, 0.5)), noted=1.0)
ADDED = ("lora_B", "lora_A")  # the factors of what is added to a matrix
WIDEST = 3.0  # of the logarithm of a token's weight
AGAIN = "make it again with `dipsim calibrate-precision`"


class Trained(Strict):
    """How what is added was trained: on which text, for which policy and size of DRAM, and for how long."""

    text: str
    text_sha256: str
    policy: str
    dram_bytes: float
    rank: Count
    steps: Count
    batch: Count
    length: Count


class Origin(Strict):
    """Where a calibration comes from: a model by its sizes and its file's SHA-256, and the text that it saw.

    `weights` are those of the parts of all tokens that scores are means of. `trained` is there if something is added.
    """

    format: Literal["dipsim-precision"] = "dipsim-precision"
    version: Literal[2] = 2
    model: ModelShape
    model_sha256: str
    text: str
    text_sha256: str
    sequences: Count
    length: Count
    weights: tuple[float, ...] = Field(min_length=1)
    trained: Trained | None = None


@dataclass(frozen=True)
class Calibrated:
    """A calibration, as it was read."""

    path: Path
    origin: Origin
    tensors: dict[str, NDArray[Any]]

    @classmethod
    def read(cls, path: Path) -> Calibrated:
        """Read a file; the same again as long as it has not changed. Raises InputError if it is no calibration."""
        try:
            return _read(path, path.stat().st_mtime_ns)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}); {AGAIN}") from None

    def write(self) -> None:
        """Write the file, whole or not at all. Raises InputError if it cannot be written."""
        metadata = {"origin": self.origin.model_dump_json()}
        write(self.path, lambda temporary: save_file(self.tensors, temporary, metadata))

    def check(self, shape: ModelShape) -> None:
        """Raise InputError unless it is of a model of this shape."""
        if shape.sizes != self.origin.model.sizes:
            raise InputError(
                f"{self.path}: is a calibration of {self.origin.model.name}, and {shape.name} is used; make one of "
                "this model with `dipsim calibrate-precision`"
            )

    def units(self, group: str, layer: int, lowest: int) -> Units:
        """What is known of the units of a group in a layer, none of which is held below the level `lowest`."""
        errors, scores = (self.of(layer, f"{group}.{name}") for name in ("errors", "scores"))
        weights = np.array(self.origin.weights)
        return Units(errors.astype(np.float64), scores.astype(np.float64), weights, lowest)

    def of(self, layer: int, name: str) -> NDArray[Any]:
        """A tensor of a layer. Raises InputError if there is none."""
        found = self.tensors.get(f"layers.{layer}.{name}")
        if found is None:
            raise InputError(f"{self.path}: layers.{layer}.{name}: is missing; {AGAIN}")
        return found

    def base(self, layer: int, matrix: str, level: int) -> Float32s:
        """What each code of a base stands for, the scale and the centre of its groups: scale, centre [rows, groups].

        The scale is in parts of a row's own.
        """
        places = self.of(layer, f"{matrix}.base{level}")
        scales, centres = (self.of(layer, f"{matrix}.{name}{level}") for name in ("scales", "centres"))
        scale = np.exp(scales)[places & 15]
        return np.stack([scale, scale * centres[places >> 4]]).astype(np.float32)

    def added(self, layer: int, matrix: str) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """The factors [rows, r] and [r, inputs] (float16) of what was trained to be added to a matrix, if it was.

        Raises InputError if one is missing, or does not fit.
        """
        if self.origin.trained is None:
            return None
        out, into = (self.of(layer, f"{matrix}.{name}") for name in ADDED)
        model, rank = self.origin.model, self.origin.trained.rank
        sides = (model.hidden_size, model.intermediate_size)
        rows, inputs = sides if matrix == "down_proj" else sides[::-1]
        if (out.shape, into.shape) != ((rows, rank), (rank, inputs)):
            raise InputError(
                f"{self.path}: layers.{layer}.{matrix}: {' and '.join(ADDED)} do not fit the model; {AGAIN}"
            )
        return out, into

    @property
    def table_bytes(self) -> float:
        """What grids, values, tokens' weights and added factors take, in 16 bits each, and neurons' worth in 8."""
        tables = [tensor.size for name, tensor in self.tensors.items() if _is_table(name)]
        return 2.0 * sum(tables) + float(self.origin.model.num_hidden_layers * self.origin.model.intermediate_size)


def _is_table(name: str) -> bool:
    kind = name.rpartition(".")[2].rstrip("0123456789")
    return kind in ("scales", "centres", "values", "token_weight", *ADDED)


def weights_of_tokens(x: Any, weights: Any) -> Any:
    """What tokens x [..., d] weigh, exp(t'x + t0) [..., 1], with `weights` [d + 1] of t and t0, of one type with x."""
    logs = (x @ weights[:-1] + weights[-1]).clip(-WIDEST, WIDEST)[..., None]
    return np.exp(logs) if isinstance(logs, np.ndarray) else logs.exp()


@lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> Calibrated:
    found = Calibrated(path, *read_learned(path, Origin, AGAIN))
    for name, shape in _shapes(found.origin).items():
        for layer in range(found.origin.model.num_hidden_layers):
            here, kind = found.of(layer, name), "u" if ".base" in name else "f"
            if here.shape != shape:
                raise InputError(
                    f"{path}: layers.{layer}.{name}: has shape {[*here.shape]}; {[*shape]} is expected; {AGAIN}"
                )
            if here.dtype.kind != kind:
                raise InputError(f"{path}: layers.{layer}.{name}: has dtype {here.dtype}, which is another; {AGAIN}")
    return found


def _shapes(origin: Origin) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's tensors by name, but of those that were trained."""
    hidden, units = origin.model.hidden_size, origin.model.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"value": (units,), "token_weight": (hidden + 1,)}
    for group in ("gate", "up", "down"):
        shapes |= {f"{group}.errors": (units, len(NESTED.each)), f"{group}.scores": (len(origin.weights), units)}
        rows, inputs = (hidden, units) if group == "down" else (units, hidden)
        for level in BASES:
            of_level = {"base": (rows, inputs // BLOCK), "scales": (16,), "centres": (16,), "values": (2**level,)}
            shapes |= {f"{group}_proj.{name}{level}": shape for name, shape in of_level.items()}
    return shapes
