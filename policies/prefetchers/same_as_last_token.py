"""Guesses that a token uses in each layer what the token before it used there."""

from typing import Any

from dipsim import Known, Prefetcher


class SameAsLastToken(Prefetcher):
    """What the last token used; of that, what most tokens used comes first."""

    def scores(self, known: Known) -> Any:
        return known.last * (1.0 + known.uses)
