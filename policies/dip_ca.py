"""Cache-aware masking (paper section 5): DIP that prefers, among similar columns, those already in DRAM."""

from typing import Any, Self

import numpy as np
from pydantic import NonNegativeInt

from dipsim import Fraction, top_k

from .dip import Dip


class DipCa(Dip):
    """Scores of columns that are not resident are multiplied by `gamma`; 1 is plain DIP.

    The `fixed_top_n` columns of largest score are exempt from the penalty. Over the first `warmup` tokens of a
    sequence the factor falls from 1 to `gamma`.
    """

    gamma: Fraction = 0.5
    fixed_top_n: NonNegativeInt = 0
    warmup: NonNegativeInt = 0

    def rerank(self, scores: Any, resident: Any) -> Any:
        exempt = resident | top_k(scores, self.fixed_top_n) if self.fixed_top_n else resident
        lowered, spared = scores * self.gamma, scores * exempt  # none is negative: the larger is the one or the other
        return np.maximum(lowered, spared) if isinstance(scores, np.ndarray) else lowered.maximum(spared)

    def at(self, position: int) -> Self:
        if position >= self.warmup:
            return self
        return self.model_copy(update={"gamma": 1 - (1 - self.gamma) * position / self.warmup})
