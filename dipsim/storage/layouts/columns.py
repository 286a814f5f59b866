"""Every matrix by itself, column after column by rising index."""

from dipsim.storage.layout import Layout


class Columns(Layout):
    """The plain layout: one read for each matrix of a group and run of missing columns."""
