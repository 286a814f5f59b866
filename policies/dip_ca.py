"""Cache-aware masking (paper section 5): DIP that prefers, among similar columns, those already in DRAM."""

from typing import Any, Self

import numpy as np
from pydantic import NonNegativeInt

from dipsim.policy import Fraction, top_k

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
        if isinstance(scores, np.ndarray):  # none is negative, so the larger is the one or the other; no branches
            return np.maximum(scores * self.gamma, scores * exempt)
        return scores.where(exempt, scores * self.gamma)

    def at(self, position: int) -> Self:
        if position >= self.warmup:
            return self
        return self.model_copy(update={"gamma": 1 - (1 - self.gamma) * position / self.warmup})
