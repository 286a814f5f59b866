"""Bundled columns from the most to the least used: a pinned hot set lies apart, and what is streamed is dense."""

from dipsim.storage.layout import Layout


class Popularity(Layout):
    """Columns by falling number of uses; among equals the lowest index comes first."""

    bundled = True
    learns = True
    pins = True
