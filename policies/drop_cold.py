"""Experts that would have to be read for little: left out if they are not resident and weigh less than a share."""

from typing import Any

from dipsim import Fraction, Group, top_k

from .experts import Experts


class DropCold(Experts):
    """Leaves out what is not resident and has less than `share` of the weight of a token's experts.

    The most wanted expert is always used.
    """

    share: Fraction = 0.1

    def scores(self, group: Group, acts: Any) -> Any:
        return acts.weights

    def select(self, group: Group, scores: Any, resident: Any) -> Any:
        wanted = top_k(scores, group.k)
        return wanted & (resident | (scores >= self.share) | top_k(scores, 1))
