"""The warning example: matrices as they are computed with, row after row, so that a column is scattered over rows."""

from dipsim.storage.layout import Layout
from dipsim.storage.placement import Site


class Rows(Layout):
    """A run of what is missing takes a read in every row, unless the columns are themselves rows."""

    def pieces(self, site: Site) -> int:
        return site.rows
