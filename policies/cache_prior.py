"""Cache-prior (arXiv 2412.00099, by authors of DIP-CA): experts in DRAM get a head start in the router's ranking."""

from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt

from dipsim import Group, top_k

from .experts import Experts

TINY = 1e-30  # for a router that does not care


class CachePrior(Experts):
    """Ranks by z' = z + strength * D * [resident, or among the `top` of largest z].

    D is the mean of max z - min z over the tokens of the layer so far. The weights of what is chosen remain those of
    the logits z.
    """

    strength: Annotated[float, Field(ge=0, le=10)] = 0.5
    top: NonNegativeInt = 1

    def scores(self, group: Group, acts: Any) -> Any:
        z = acts.logits
        spread = z.max(-1) - z.min(-1) if isinstance(z, np.ndarray) else z.amax(-1) - z.amin(-1)
        mean = spread.cumsum(-1) / (0 * spread + 1).cumsum(-1)
        return z / (mean + TINY)[..., None]

    def rerank(self, scores: Any, resident: Any) -> Any:
        return scores + self.strength * (resident | top_k(scores, self.top))
