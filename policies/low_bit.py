"""Experts that would have to be read for little: read at low precision, in fewer bytes (HOBBIT, arXiv 2411.01433).

HOBBIT goes by the sum of the shares of the experts that are more wanted, with a second limit beyond which an expert is
left out, and divides its cache between precisions. Here an expert's own share decides, none is left out, and all copies
meet in one cache.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dipsim import Fraction, Group, ModelShape, top_k

from .experts import Experts


class LowBit(Experts):
    """Uses a copy of `low` times the bytes of an expert whose exact one is not resident, if its weight is less than
    `share` of that of a token's experts.

    The most wanted expert is always exact.
    """

    share: Fraction = 0.1
    low: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.5

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        return [replace(group, copies=(1.0, self.low)) for group in super().groups(shape)]

    def scores(self, group: Group, acts: Any) -> Any:
        return np.tile(acts.weights, 2)

    def select(self, group: Group, scores: Any, resident: Any) -> Any:
        (weights, _), (exact, _) = np.split(scores, 2), np.split(resident, 2)
        wanted, exactly = top_k(weights, group.k), exact | (weights >= self.share) | top_k(weights, 1)
        return np.concatenate([wanted & exactly, wanted & ~exactly])
