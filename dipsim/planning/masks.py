"""One layer's activations become scores, masks, and what each token finds resident."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipsim.basics.arrays import Mask, Numbers
from dipsim.memory.cache import ColumnCache, find_residents, run_tokens
from dipsim.planning.builder import LayerCaches, PlanBuilder, ScoresKey
from dipsim.planning.precision import levels_of
from dipsim.sparsity.selection import aware_mask, blind_masks, checked_scores
from dipsim.workload.level_requests import LevelRequests
from dipsim.workload.routing import Routing
from dipsim.workload.trace import Activations, sequences


class LayerScores:
    """One layer's activations. What several settings share of its scores and masks is made once."""

    def __init__(self, acts: Activations | Routing | LevelRequests) -> None:
        self.acts = acts
        self._scores: dict[ScoresKey, Numbers] = {}
        self._masks: dict[ScoresKey, Mask] = {}  # where they do not depend on the memory

    def record(self, builder: PlanBuilder, caches: LayerCaches, index: int) -> None:
        """Enter what tokens read of one group into a plan."""
        if builder.precision is None:
            builder.record_masks(caches, index, *self.masks_and_residents(builder, caches, index))
            return
        if isinstance(self.acts, LevelRequests):
            requested = self.acts.of(caches.group.name, levels_of(caches.group).top)
        else:
            requested = builder.precision.request(caches.group, index, self.scores_of(caches))
        builder.record_levels(caches, index, builder.fetch_levels(caches, index, requested))

    def masks_and_residents(self, builder: PlanBuilder, caches: LayerCaches, index: int) -> tuple[Mask, Mask]:
        """What tokens want of one group and what they find resident, [T, N] each."""
        begin_with = builder.begin_with(caches, index)
        if caches.policy.cache_aware:
            return aware_masks(caches, index, self.scores_of(caches), builder.sequence_starts, begin_with)
        if caches.group.price is not None:
            masks = builder.priced_masks(caches, index, self.scores_of(caches))
        else:
            masks = self.masks_of(caches)
        capacity, starts = caches.capacities[index], builder.sequence_starts
        return masks, find_residents(masks, capacity, caches.eviction, starts, begin_with)

    def masks_of(self, caches: LayerCaches) -> Mask:
        """Masks [T, N] of one group, which do not depend on the memory."""
        if caches.key not in self._masks:
            masks = blind_masks(caches.group, self.scores_of(caches))
            if isinstance(self.acts, Routing) and not self.acts.routed.all():
                masks &= self.acts.routed[:, None]
            self._masks[caches.key] = masks
        return self._masks[caches.key]

    def scores_of(self, caches: LayerCaches) -> Numbers:
        """Scores [T, N] of one group."""
        if caches.key not in self._scores:
            self._scores[caches.key] = checked_scores(caches.policy, caches.group, self.acts)
        return self._scores[caches.key]


def aware_masks(
    caches: LayerCaches, layer: int, scores: Numbers, starts: Sequence[int], begin_with: Mask | None = None
) -> tuple[Mask, Mask]:
    """Masks and residents [T, N] of a cache-aware policy in one layer, from its scores [T, N].

    Each sequence begins with no residents, or with the columns `begin_with` [N].
    """
    masks, residents = (np.zeros(scores.shape, dtype=bool) for _ in range(2))
    for begin, end in sequences(starts, len(scores)):
        here = slice(begin, end)
        cache = caches.cache(layer, begin_with)
        choose_and_run(caches, cache, scores[here], masks=masks[here], residents=residents[here])
    return masks, residents


def choose_and_run(
    caches: LayerCaches, cache: ColumnCache, scores: Numbers, *, masks: Mask, residents: Mask, position: int = 0
) -> None:
    """Fill in masks and residents [T, N] of adjacent tokens of one sequence, each token seeing who is resident.

    `position` is that of the first token.
    """

    def choose(token: int) -> Mask:
        return aware_mask(caches.policy, caches.group, scores[token], cache.resident, position + token)

    run_tokens(cache, masks, residents=residents, choose=choose)
