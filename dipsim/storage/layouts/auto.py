"""Chooses by read time on calibration tokens: how much of each group of a layer to pin, and how the rest lies.

Orders are learned on every other calibration token and compared on those between, so that an order does not win by
chance. The layer's DRAM is divided in `PARTS` equal parts, which go to the groups such that all of them together read
in the least time. What a group cannot use of its parts goes to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dipsim.basics.arrays import Floats, Ints
from dipsim.storage.flash import Flash
from dipsim.storage.layout import Layout, by_uses
from dipsim.storage.layouts.hot_apart import HotApart
from dipsim.storage.layouts.popularity import Popularity
from dipsim.storage.placement import Placement, Site, fetch

PARTS = 12  # with 8, a layer of SmolLM2 that needs two batches of reads falls 3.1 % behind dense
LEARNED, COMPARED = slice(0, None, 2), slice(1, None, 2)  # of the calibration tokens
CANDIDATES: tuple[Layout, ...] = (Popularity(), HotApart())


class Auto(Layout):
    """The layout and the division of DRAM among a layer's groups that read calibration tokens in the least time."""

    bundled = True
    learns = True
    pins = True
    needs_pinned = True

    def place(self, layer: int, sites: Sequence[Site], flash: Flash | None) -> list[Placement]:
        if flash is None:
            return Popularity().place(layer, sites, flash)
        total = sum(site.pinned * site.unit_bytes for site in sites)
        shares = np.arange(PARTS + 1) * total / PARTS
        hot = [_columns(site, shares) for site in sites]
        tried = [_try(site, counts, flash) for site, counts in zip(sites, hot, strict=True)]
        chosen = _divide([seconds.min(axis=0) for seconds in tried])
        counts = [int(mine[parts]) for mine, parts in zip(hot, chosen, strict=True)]
        best = [CANDIDATES[int(np.argmin(mine[:, parts]))] for mine, parts in zip(tried, chosen, strict=True)]
        left = total - sum(count * site.unit_bytes for count, site in zip(counts, sites, strict=True))
        placements = []
        for site, count, layout in zip(sites, counts, best, strict=True):
            more = min(site.columns - count, int(left / (site.unit_bytes) + 1e-9))
            left -= more * site.unit_bytes
            placements.append(layout.placed(site, count + more, by_uses(site)))
        return placements


def _columns(site: Site, shares: Floats) -> Ints:
    """How many columns each share of the DRAM holds."""
    return np.minimum(site.columns, (shares / (site.unit_bytes) + 1e-9).astype(np.int64))


def _try(site: Site, hot: Ints, flash: Flash) -> Floats:
    """Mean seconds of each candidate, [C, shares], on calibration tokens that it was not learned from."""
    learned = replace(site, masks=site.uses[LEARNED])
    ranking = by_uses(learned)
    return np.array(
        [[_seconds(site, layout.placed(learned, int(count), ranking), flash) for count in hot] for layout in CANDIDATES]
    )


def _seconds(site: Site, placement: Placement, flash: Flash) -> float:
    compared = COMPARED if len(site.uses) > 1 else LEARNED
    misses = site.wanted(compared, placement.resident) & ~placement.resident
    return float(fetch(misses, placement, flash).seconds(flash).mean())


def _divide(seconds: Sequence[Floats]) -> list[int]:
    """How many of all parts each group gets, so that the sum of seconds[group][parts] is least."""
    size = len(seconds[0])
    best, choices = np.zeros(size), []
    for each in seconds:
        sums = np.array([[best[have - parts] + each[parts] if parts <= have else np.inf for parts in range(size)]
                         for have in range(size)])  # fmt: skip
        choices.append(sums.argmin(axis=1))
        best = sums.min(axis=1)
    left, parts = size - 1, []
    for choice in reversed(choices):
        parts.append(int(choice[left]))
        left -= parts[-1]
    return parts[::-1]
