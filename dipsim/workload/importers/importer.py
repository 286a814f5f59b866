"""The base of every importer: what a file of routing says, and how a format is registered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from dipsim.basics.arrays import Float32s, Ints, Mask
from dipsim.basics.errors import InputError, quoted
from dipsim.basics.files import read_text
from dipsim.workload.routing import NOT_ROUTED

IMPORTERS: dict[str, type[Importer]] = {}  # by name
LARGEST = 10**9  # of a number in a file


class Importer(ABC):
    """A format. It is known by the name of its file."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__module__.rpartition(".")[2].replace("_", "-")
        IMPORTERS[cls.name] = cls

    @staticmethod
    @abstractmethod
    def read(file: Path) -> Recording:
        """Read a file. Raises InputError, naming the line, if it is not of this format."""


@dataclass(frozen=True)
class Recording:
    """What a file says of T tokens in its L layers with experts, of which a token uses k.

    `ids` [T, L, k] are the experts chosen, in the file's order, or NOT_ROUTED where a layer did not compute a token.
    `weights` [T, L, k] are theirs, if the file has any. `lines` [T, L, k] says where each stands, if the file has
    lines. `layers` says which layer of the model each of the L is, if the file does. The remaining fields are what some
    files say of the model: its name, its layers with and without experts, its experts, and the bytes of one expert and
    of all else that a token reads, a number a layer (0 where the file says nothing).
    """

    ids: Ints
    weights: Float32s | None = None
    lines: Ints | None = None
    layers: tuple[int, ...] | None = None
    prompts: tuple[tuple[int, int], ...] = ()
    model: str = ""
    num_layers: int | None = None
    num_experts: int | None = None
    expert_bytes: tuple[int, ...] | None = None
    dense_bytes: tuple[int, ...] | None = None
    expert_tensors: int = 3

    def picked(self, columns: dict[int, int]) -> Recording:
        """The recording of these layers of the model only, each with the place where this one has it."""
        kept = list(columns.values())
        weights = None if self.weights is None else self.weights[:, kept]
        lines = None if self.lines is None else self.lines[:, kept]
        return replace(self, ids=self.ids[:, kept], weights=weights, lines=lines, layers=tuple(columns))

    @property
    def rising(self) -> bool:
        """Whether the experts of every token stand in rising order, which says nothing of how much it wants them."""
        routed = self.ids[self.ids[..., 0] != NOT_ROUTED]
        return routed.shape[-1] > 1 and bool((np.diff(routed) > 0).all())

    def check(self, experts: int, file: Path) -> None:
        """Raise InputError for an expert out of range or twice, and for weights that no router gives."""
        routed = self.ids[..., :1] != NOT_ROUTED
        if (bad := (self.ids >= experts)).any():
            where = _first(bad)
            raise InputError(
                f"{file}: {self._at(*where)}: expert {self.ids[where]}: experts are 0 to {experts - 1}; "
                "record it again or give another --shape"
            )
        order = np.argsort(self.ids, axis=-1, kind="stable")
        rising = np.take_along_axis(self.ids, order, axis=-1)
        if (bad := (rising[..., 1:] == rising[..., :-1]) & routed).any():
            token, layer, place = _first(bad)
            where = token, layer, int(order[token, layer, place + 1])
            raise InputError(f"{file}: {self._at(*where)}: expert {self.ids[where]} is there twice; record it again")
        if self.weights is None:
            return
        if (bad := ~(self.weights >= 0) & routed).any():  # so written for nan
            where = _first(bad)
            raise InputError(
                f"{file}: {self._at(*where)}: weight {self.weights[where]:g}: must be 0 or more; record it again"
            )
        if (bad := (self.weights.sum(axis=-1, keepdims=True) == 0) & routed).any():
            raise InputError(f"{file}: {self._at(*_first(bad))}: the weights of a token are all 0; record it again")

    def _at(self, token: int, layer: int, slot: int) -> str:
        if self.lines is not None:
            return f"line {self.lines[token, layer, slot]}"
        return f"token {token}, layer {layer if self.layers is None else self.layers[layer]}"


def _first(bad: Mask) -> tuple[int, int, int]:
    token, layer, slot = (int(index) for index in np.argwhere(bad)[0])
    return token, layer, slot


def lines_of(file: Path) -> list[str]:
    """The lines of a text file. Raises InputError if there are none."""
    lines = [line.rstrip("\r") for line in read_text(file).split("\n")]
    if not any(line.strip() for line in lines):
        raise InputError(f"{file}: is empty; record it again")
    return lines


def whole_lines_of(file: Path) -> list[str]:
    """The lines of a text file that ends with a line's end. Raises InputError if it does not, or there are none."""
    *lines, last = lines_of(file)
    if last:
        raise InputError(f"{file}: line {len(lines) + 1}: does not end, so the file is truncated; copy it again")
    return lines


def whole(text: str, what: str, where: str, largest: int = LARGEST) -> int:
    """The whole number that a field holds. Raises InputError naming `where` and the field if it holds none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= largest):
        raise InputError(
            f"{where}: {what} {quoted(text)}: must be a whole number from 0 to {largest:,}; record it again"
        )
    return int(text)


def real(text: str, what: str, where: str) -> float:
    """The number that a field holds, perhaps nan. Raises InputError naming `where` and the field if it holds none."""
    try:
        value = float(text)
    except ValueError:
        value = np.inf
    if abs(value) > LARGEST:
        raise InputError(f"{where}: {what} {quoted(text)}: must be a number up to {LARGEST:,}; record it again")
    return value
