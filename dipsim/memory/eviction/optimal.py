"""The optimum with bypass: as Belady's rule, but a newcomer may be left out (docs/background/equations.md, section 4).

Keeping the nearest next uses is then the most hits that any cache can have. A cache chooses which of the intervals
between uses to bridge, at most `capacity` of them at a time, and dropping the interval that ends last whenever there
are too many solves that.
"""

from dipsim.memory.eviction.belady import Belady


class Optimal(Belady):
    """Belady's values. Newcomers and residents compete for the same places."""

    bypass = True
