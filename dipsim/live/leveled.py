"""A matrix whose rows or columns are each at a level of precision of their own, and products with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Leveled:
    """The weights [rows, inputs] of a matrix at each level, None at one that has nothing.

    `added` are two factors, [rows, r] and [r, inputs] of any dtype, of what is added to the matrix whatever the levels.
    """

    each: Sequence[Tensor | None]
    added: tuple[Tensor, Tensor] | None = None

    def by_row(self, x: Tensor, levels: Tensor) -> Tensor:
        """The products [..., rows] with x [..., inputs], each row at its level, [rows] or [..., rows]."""
        if levels.dim() == 1:  # the same for all of x: one product is enough
            mixed = x.new_zeros(len(levels), x.shape[-1])
            for weight, _, places in self._used(levels):
                mixed[places] = weight[places]
            return self._with_added(x @ mixed.T, x)
        found = x.new_zeros(*x.shape[:-1], levels.shape[-1])
        for weight, here, places in self._used(levels):
            product = x @ weight[places].T
            found[..., places] = torch.where(here[..., places], product, found[..., places])
        return self._with_added(found, x)

    def by_column(self, x: Tensor, levels: Tensor) -> Tensor:
        """The product [..., rows] with x [..., inputs], each column at its level, [inputs] or [..., inputs]."""
        parts = [
            (x[..., places] * here[..., places]) @ weight[:, places].T for weight, here, places in self._used(levels)
        ]
        rows = next(len(weight) for weight in self.each if weight is not None)
        return self._with_added(sum(parts, x.new_zeros(*x.shape[:-1], rows)), x)

    def _used(self, levels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The weights of each level that has some, where it is used, [..., N], and the places [n] of N that ever do."""
        for level, weight in enumerate(self.each):
            here = levels == level
            places = here.reshape(-1, here.shape[-1]).any(0).nonzero()[:, 0]
            if weight is not None and len(places):
                yield weight, here, places

    def _with_added(self, found: Tensor, x: Tensor) -> Tensor:
        if self.added is None:
            return found
        out, into = self.added
        return found + (x @ into.T.to(x.dtype)) @ out.T.to(x.dtype)
