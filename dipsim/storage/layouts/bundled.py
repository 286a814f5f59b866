"""Matrices that share a mask lie side by side: gate and up of an input are one piece (LLM in a flash, 2312.11514)."""

from dipsim.storage.layout import Layout


class Bundled(Layout):
    """One read for each run of what is missing, whatever the number of matrices."""

    bundled = True
