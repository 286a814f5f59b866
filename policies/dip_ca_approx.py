"""Approximate caching: cache-aware masking, class by class (docs/background/equations.md, section 2)."""

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from dipsim import Group, top_k

from .dip import Dip


class DipCaApprox(Dip):
    """The k places go to the `fixed_top_n` best, then to residents among the k best, then to residents among the
    `reach` k best, then to the others of the k best; within a class the larger score wins.
    """

    fixed_top_n: NonNegativeInt = 0
    reach: Annotated[float, Field(ge=1)] = 1.5

    def select(self, group: Group, scores: Any, resident: Any) -> Any:
        best, near = top_k(scores, group.k), top_k(scores, int(self.reach * group.k))
        places = 4 * top_k(scores, self.fixed_top_n) + 2 * (near & resident) + 1 * best
        return top_k(places + scores / (2 * scores.max() + 1e-30), group.k)
