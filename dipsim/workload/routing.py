"""What the routers of one layer chose: which experts each token uses, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dipsim.basics.arrays import Float32s, Ints, Mask, Numbers
from dipsim.basics.errors import InputError
from dipsim.workload.trace import read_only

TINY = 1e-30
NOT_ROUTED = -1  # instead of experts, for a token of a prompt that a layer did not compute


@dataclass(frozen=True)
class Routing:
    """One layer's routing of T tokens among E experts, of which a token uses `k` by itself.

    It was recorded as the router's `recorded_logits` [T, E], or as the experts chosen, `ids` [T, k] from the most to
    the least wanted, and perhaps their `recorded_weights` [T, k]. `next_layer` [T, E] are the logits that the router of
    the next layer with a mixture would make of this router's input. It is None where it was not recorded, and in the
    last layer. `where` names the file in what goes wrong.
    """

    experts: int
    k: int
    recorded_logits: Float32s | None = None
    ids: Ints | None = None
    recorded_weights: Float32s | None = None
    layer: int = 0
    where: object = ""
    next_layer: Float32s | None = None

    def at(self, token: int | Ints) -> Routing:
        """That of one token, or of several; arrays keep their axis of tokens."""
        names = ("recorded_logits", "ids", "recorded_weights", "next_layer")
        given = {name: values for name in names if (values := getattr(self, name)) is not None}
        return replace(self, **{name: values[np.atleast_1d(token)] for name, values in given.items()})

    @cached_property
    def routed(self) -> Mask:
        """The tokens that the layer computed, [T]."""
        if self.ids is None:
            assert self.recorded_logits is not None
            return np.ones(len(self.recorded_logits), dtype=bool)
        return np.asarray(self.ids[:, 0] != NOT_ROUTED)

    @cached_property
    def preference(self) -> Any:
        """The ranking of the experts, [T, E], whose k largest the router chooses: logits, or else k for the first
        chosen to 1 for the last, and 0 for all others.
        """
        if self.recorded_logits is not None:
            return self.recorded_logits
        assert self.ids is not None
        return self._spread(self.ids, np.broadcast_to(np.arange(self.k, 0, -1), self.ids.shape))

    @property
    def logits(self) -> Any:
        """The router's logits, [T, E]. Raises InputError if they were not recorded."""
        if self.recorded_logits is None:
            raise InputError(f"{self.where}: has no logits of the router, which this policy needs; record it with them")
        return self.recorded_logits

    @cached_property
    def weights(self) -> Any:
        """The share of each of the k chosen experts, [T, E], 0 for all others; the shares of a token sum to 1.

        Raises InputError if neither weights nor logits were recorded.
        """
        if self.recorded_logits is not None:
            chosen = np.argsort(-self.recorded_logits, axis=-1, kind="stable")[:, : self.k]
            values = np.take_along_axis(self.recorded_logits, chosen, axis=-1)
            shares = np.exp(values - values[:, :1])
        elif self.recorded_weights is not None and self.ids is not None:
            chosen, shares = self.ids, self.recorded_weights
        else:
            raise InputError(
                f"{self.where}: has neither weights nor logits of the router, one of which this policy needs; record "
                "it with them"
            )
        return self._spread(chosen, (shares / np.maximum(shares.sum(axis=-1, keepdims=True), TINY)))

    def _spread(self, chosen: Ints, values: Numbers) -> Any:
        """Values [T, k] of the chosen experts [T, k] as [T, E], 0 for all others."""
        found = np.zeros((len(chosen), self.experts), dtype=np.float32)
        np.put_along_axis(found, np.maximum(chosen, 0), values.astype(np.float32), axis=-1)
        found[~self.routed] = 0
        return read_only(found)
