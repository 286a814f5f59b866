"""Knows what a layer will want, as well as it is told to: how good would a predictor have to be?"""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dipsim import Known, Prefetcher


class Oracle(Prefetcher):
    """Names each unit that will be missed with the probability `recall`; of all that it names, `precision` will be.

    What it names wrongly is drawn from the units that are neither resident nor wanted, at least as many as for one
    right guess where something will be missed.
    """

    oracle = True

    recall: Annotated[float, Field(ge=0, le=1)] = 1.0
    precision: Annotated[float, Field(gt=0, le=1)] = 1.0

    def scores(self, known: Known) -> Any:
        wanted = known.actual()
        missed, others = (np.flatnonzero(units & ~known.resident) for units in (wanted, ~wanted))
        right = missed[known.random.random(len(missed)) < self.recall]
        expected = max(1.0, len(missed) * self.recall) * (len(missed) > 0)
        wrong = min(len(others), known.random.poisson(expected * (1 / self.precision - 1)))
        named = np.concatenate([right, known.random.choice(others, wrong, replace=False)])
        scores = np.zeros(len(wanted))
        scores[named] = 1 + known.random.random(len(named))
        return scores
