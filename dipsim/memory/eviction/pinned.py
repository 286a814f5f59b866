"""A fixed set of columns stays resident: nothing enters, and nothing leaves."""

from dipsim.memory.eviction.rule import EvictionRule


class Pinned(EvictionRule):
    """The columns are those that the layout puts first; by default those of lowest index."""

    fixed = True
