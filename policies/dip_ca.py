"""Cache-aware masking (paper section 5): DIP that prefers, among similar columns, those already in DRAM."""

from typing import Any

from pydantic import NonNegativeInt

from dipsim.policy import Fraction, top_k

from .dip import Dip


class DipCa(Dip):
    """Scores of columns that are not resident are multiplied by `gamma`; 1 is plain DIP.

    The `fixed_top_n` columns of largest score are exempt from the penalty.
    """

    gamma: Fraction = 0.5
    fixed_top_n: NonNegativeInt = 0

    def rerank(self, scores: Any, resident: Any) -> Any:
        exempt = resident | top_k(scores, self.fixed_top_n) if self.fixed_top_n else resident
        return scores * (self.gamma + (1 - self.gamma) * exempt)
