"""Knows what a layer will want, as well as it is told to: how good would a predictor have to be?"""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dipsim import Known, Prefetcher


class Oracle(Prefetcher):
    """Names each unit that will be missed with the probability `recall`; a share `precision` of what it names is right.

    What it names wrongly is drawn from the units that are neither resident nor wanted, where something will be missed;
    with a recall of 0 as many as for one right guess.
    """

    oracle = True

    recall: Annotated[float, Field(ge=0, le=1)] = 1.0
    precision: Annotated[float, Field(gt=0, le=1)] = 1.0

    def scores(self, known: Known) -> Any:
        wanted, random = known.actual(), known.random
        missed = np.flatnonzero(wanted > known.resident)
        if not len(missed):
            return None
        right = missed[random.random(len(missed)) < self.recall]
        wrong = random.poisson((len(missed) * self.recall or 1.0) * (1 / self.precision - 1))
        others = np.flatnonzero(~(wanted | known.resident))
        named = [*right, *random.permutation(others)[:wrong]] if wrong else right
        scores = np.zeros(len(wanted))
        scores[named] = 1 + random.random(len(named))
        return scores
