"""The base of every prefetcher: which units a later layer may want, by what is known at an earlier one.

A plugin is its formula, like a policy. What is resident or already on its way is left out for it, and how many guesses
are read, when, and into what, is the framework's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.basics.errors import InputError, one_line
from dipsim.basics.fields import Strict
from dipsim.sparsity.policy import Group


@dataclass(slots=True)
class Known:
    """What is known when one layer's mask is, of a later layer with N units in the same group.

    `token` wants `mask` [N] at `layer`, where its `acts` are. The guess is for `target`, the layer `ahead` layers later
    among those with the group, of the same token or, if `wraps`, of the next one. `last` [N] is what the token before
    used there, `uses` [N] by how many tokens each unit was used there so far, `resident` [N] what its cache holds or
    will hold. `actual()` [N] is what it will want; only a prefetcher that is an oracle may look.
    """

    group: Group
    token: int
    layer: int
    target: int
    ahead: int
    wraps: bool
    mask: Mask
    last: Mask
    uses: Ints
    resident: Mask
    see: Callable[[], Any]
    actual: Callable[[], Mask]
    random: np.random.Generator

    @property
    def acts(self) -> Any:
        """The activations or the routing of `layer`, of this token alone."""
        return self.see()


class Prefetcher(Strict):
    """Base of all prefetchers. The fields of a subclass are its parameters."""

    oracle: ClassVar[bool] = False  # whether it may look at `Known.actual`

    def scores(self, known: Known) -> Any:
        """How much each unit of the later layer should be read ahead, [N]: the largest first, those of 0 never.

        None where nothing can be said.
        """
        raise NotImplementedError(f"{type(self).__name__} must define scores")

    @property
    def name(self) -> str:
        """The name of the plugin's file."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def label(self) -> str:
        """Name and parameters that were set."""
        shown = [f"{key}={getattr(self, key)!r}" for key in type(self).model_fields if key in self.model_fields_set]
        return f"{self.name}({', '.join(shown)})" if shown else self.name


def guesses(prefetcher: Prefetcher, known: Known, most: int) -> Ints:
    """The units that a prefetcher names, at most so many, the most wanted first; of equals the lowest index.

    What is resident is left out. Raises InputError if the plugin fails, or names units that do not exist.
    """
    try:
        scores = prefetcher.scores(known)
        values = None if scores is None else np.asarray(scores, dtype=np.float64)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        text = one_line(error)
        raise InputError(f"{_where(prefetcher)} failed: {type(error).__name__}: {text}") from error
    if values is None:
        return np.zeros(0, dtype=np.int64)
    if values.shape != known.resident.shape or np.isnan(values).any():
        raise InputError(
            f"{_where(prefetcher)} must be numbers [{len(known.resident)}] without NaN, one for each unit of group "
            f"{known.group.name} in layer {known.target} (got {values.dtype} {list(values.shape)})"
        )
    named = np.flatnonzero((values > 0) > known.resident)
    return named[np.argsort(-values[named], kind="stable")[:most]]


def _where(prefetcher: Prefetcher) -> str:
    return f"prefetch: {prefetcher.label}: scores"
