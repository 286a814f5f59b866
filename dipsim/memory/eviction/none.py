"""Nothing is ever resident."""

from dipsim.memory.eviction.rule import EvictionRule, ValueUpdate


class NoCache(EvictionRule):
    """No column is kept from one token to the next."""

    caches = False
    inclusive = True
    on_gpu = ValueUpdate.LAST_USE
