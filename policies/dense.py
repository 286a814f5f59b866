"""Every token reads every weight: the baseline that streams what DRAM cannot hold."""

from dipsim import Policy


class Dense(Policy):
    """No pruning."""
