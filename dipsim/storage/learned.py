"""Learned layouts: a file with the order of the columns of each group in each layer.

`layers.{i}.{group}` [N] (int32) are the columns as they lie, those to pin first. The metadata is an `Origin`: which
layout learned them, for which model, and from which tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import save_file

from dipsim.basics import assets
from dipsim.basics.arrays import Ints
from dipsim.basics.errors import InputError
from dipsim.basics.fields import Count, Natural, Strict
from dipsim.basics.files import write
from dipsim.basics.tensors import read_learned
from dipsim.storage.flash import Flash
from dipsim.storage.layout import Layout
from dipsim.storage.placement import Placement, Site
from dipsim.workload.shape import ModelShape

SUFFIX = ".layout.safetensors"


class Origin(Strict):
    """Where a learned layout comes from: a trace by its SHA-256, of which the first `tokens` tokens were shown.

    `pinned` says how many columns of each order are to be pinned.
    """

    format: Literal["dipsim-layout"] = "dipsim-layout"
    version: Literal[1] = 1
    layout: str
    model: ModelShape
    policy: str
    trace: str
    trace_sha256: str
    tokens: Count
    pinned: dict[str, Natural]


class Learned(Layout, listed=False):
    """A layout whose orders were learned beforehand. Columns are bundled, and pinned ones lie apart."""

    bundled = True
    pins = True

    def __init__(self, path: Path, origin: Origin, orders: dict[str, Ints]) -> None:
        self.path, self.origin, self.orders = path, origin, orders

    @classmethod
    def read(cls, path: Path) -> Learned:
        """Read a file. Raises InputError if it is none, or an order in it is not a permutation."""
        if not path.exists():
            raise InputError(
                f"layout: there is no file {path}; give the path of one, or make it with `dipsim learn-layout`"
            )
        origin, orders = read_learned(path, Origin, "learn the layout again")
        for name, order in orders.items():
            if order.ndim != 1 or order.dtype.kind not in "iu" or (np.sort(order) != np.arange(len(order))).any():
                raise InputError(f"{path}: {name}: is not a permutation of its columns; learn the layout again")
        if set(origin.pinned) != set(orders) or any(origin.pinned[name] > len(orders[name]) for name in orders):
            raise InputError(f"{path}: pinned: does not fit the orders; learn the layout again")
        return cls(path, origin, orders)

    def write(self) -> None:
        """Write the file, whole or not at all. Raises InputError if it cannot be written."""
        metadata = {"origin": self.origin.model_dump_json()}
        orders = {name: np.asarray(order, dtype=np.int32) for name, order in self.orders.items()}
        write(self.path, lambda temporary: save_file(orders, temporary, metadata))

    def check(self, shape: ModelShape, first_counted: int | None) -> None:
        """Raise InputError unless the layout fits a model, and was learned from tokens that are not measured.

        `first_counted` is the first token measured where that is of the trace it was learned from, otherwise None.
        """
        if shape.sizes != self.origin.model.sizes:
            raise InputError(
                f"{self.path}: was learned from a trace of {self.origin.model.name}, and {shape.name} is measured; "
                "learn one from a trace of this model"
            )
        if first_counted is not None and first_counted < self.origin.tokens:
            raise InputError(
                f"{self.path}: was learned from the first {self.origin.tokens} tokens of the trace that is measured "
                f"from token {first_counted} on; learn it from another trace, or from fewer tokens"
            )

    def place(self, layer: int, sites: Sequence[Site], flash: Flash | None) -> list[Placement]:
        return [
            self.laid_out(site, self.origin.pinned[f"layers.{layer}.{site.name}"] if site.pinned else 0, order)
            for site, order in ((site, self._order(layer, site)) for site in sites)
        ]

    def _order(self, layer: int, site: Site) -> Ints:
        order = self.orders.get(f"layers.{layer}.{site.name}")
        if order is None or len(order) != site.columns:
            known = sorted({name.split(".", 2)[2] for name in self.orders})
            raise InputError(
                f"{self.path}: has no order of {site.columns} columns for group {site.name} of layer {layer} (it knows "
                f"{', '.join(known)}); learn it with this policy"
            )
        return order


def learned_file(layout: str) -> Path | None:
    """The file of a learned layout, by path or by shipped name; None for any other layout."""
    if layout.endswith(SUFFIX):
        return Path(layout)
    return assets.find("layouts", layout) if layout in assets.names("layouts") else None
