"""Cache-aware masking (paper section 5): DIP that prefers, among similar columns, those already in DRAM."""

from typing import Any

import numpy as np
from pydantic import NonNegativeInt

from dipsim.policy import Fraction, Group, top_k

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
        return np.maximum(scores * self.gamma, scores * exempt)  # none is negative, so this is one or the other

    def select(self, group: Group, scores: Any, resident: Any, position: int) -> Any:
        if position >= self.warmup:
            return super().select(group, scores, resident, position)
        gamma = 1 - (1 - self.gamma) * position / self.warmup
        return self.model_copy(update={"gamma": gamma, "warmup": 0}).select(group, scores, resident, position)
