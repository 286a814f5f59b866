"""Knows what a layer will want, as well as it is told to: how good would a predictor have to be?"""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dipsim import Known, Prefetcher


class Oracle(Prefetcher):
    """Names each unit that will be missed with the probability `recall`; a share `precision` of what it names is right.

    What it names wrongly is drawn from the units that are neither resident nor wanted, where something will be missed,
    and then at least as many as for one right guess.
    """

    oracle = True

    recall: Annotated[float, Field(ge=0, le=1)] = 1.0
    precision: Annotated[float, Field(gt=0, le=1)] = 1.0

    def scores(self, known: Known) -> Any:
        wanted, cold, draw = known.actual(), ~known.resident, known.random.random(len(known.resident))
        missed, others = wanted & cold, ~wanted & cold
        count = np.count_nonzero(missed)
        right = missed & (draw < self.recall)
        expected = max(1.0, count * self.recall) * (count > 0)
        wrong = known.random.poisson(expected * (1 / self.precision - 1))
        last = np.sort(draw[others])[::-1][wrong : wrong + 1]  # the largest draw of those that are not named
        return (1 + known.random.random(len(draw))) * (right | (others & (draw > last[0] if len(last) else others)))
