"""Policy x activations x cache -> masks and hits of one layer: which columns each token wants, and which it finds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipsim.cache import CLAIRVOYANT, ColumnCache, Eviction, Mask
from dipsim.policy import Group, Policy, calibrated, guarded, top_k, wrong_ranking, wrong_scores
from dipsim.trace import Activations


def scores(policy: Policy, group: Group, acts: Activations) -> NDArray[Any]:
    """The policy's scores [T, N], checked. Raises InputError for another shape, NaN, or a failing plugin."""
    expected = (acts.mlp_input if group.axis == "input" else acts.gate_proj).shape
    values = np.asarray(guarded(policy, "scores", partial(policy.scores, group, acts)))
    if values.shape != expected or values.dtype.kind not in "fiu" or np.isnan(values).any():
        raise wrong_scores(policy, group, expected, f"{values.dtype} {list(values.shape)}")
    values = values.view()
    values.setflags(write=False)  # other settings rank by them too
    return values


def choose(group: Group, values: NDArray[Any], limit: float | None = None) -> Mask:
    """Masks [..., N] from scores [..., N] that do not see the cache.

    `limit` of a threshold group: by default calibrated on these very tokens.
    """
    if not group.threshold:
        return np.asarray(top_k(values, group.k))
    return np.asarray(values >= (calibrated(values, group.k) if limit is None else limit))


def serve(masks: Mask, capacity: int, eviction: Eviction, starts: Sequence[int]) -> Mask:
    """Hits [T, N] of masks [T, N]; each sequence begins with an empty cache."""
    hits = np.zeros_like(masks)
    for begin, end in sequences(starts, len(masks)):
        future = masks[begin:end] if eviction in CLAIRVOYANT else None
        cache = ColumnCache(masks.shape[1], capacity, eviction, future)
        for token in range(begin, end):
            hits[token] = cache.step(masks[token])
    return hits


def select_aware(
    policy: Policy, group: Group, values: NDArray[Any], capacity: int, eviction: Eviction, starts: Sequence[int]
) -> tuple[Mask, Mask]:
    """Masks and hits [T, N] of a cache-aware policy from its scores [T, N]: each ranking sees who is resident."""
    masks, hits = np.zeros(values.shape, dtype=bool), np.zeros(values.shape, dtype=bool)
    for begin, end in sequences(starts, len(masks)):
        cache = ColumnCache(values.shape[-1], capacity, eviction)
        for token in range(begin, end):
            masks[token] = choose_aware(policy, group, values[token], cache, token - begin)
            hits[token] = cache.step(masks[token])
    return masks, hits


def at(policy: Policy, position: int) -> Policy:
    """The policy at a position of a sequence. Raises InputError if the plugin fails."""
    return guarded(policy, "at", lambda: policy.at(position))


def choose_aware(policy: Policy, group: Group, values: NDArray[Any], cache: ColumnCache, position: int) -> Mask:
    """Mask [N] of one token from its scores [N]. Raises InputError if the policy does not choose k of the columns."""
    resident = cache.resident.view()
    resident.setflags(write=False)
    now = at(policy, position)
    written = "rerank" if type(policy).select is Policy.select else "select"  # by the plugin's author
    mask = guarded(policy, written, lambda: now.select(group, values, resident))
    if not isinstance(mask, np.ndarray) or mask.shape != values.shape or mask.dtype != np.bool_:
        raise wrong_ranking(policy, group, f"keep the shape {list(values.shape)}")
    if not group.threshold and np.count_nonzero(mask) != group.k:
        raise wrong_ranking(policy, group, "leave numbers, without NaN")
    return mask


def sequences(starts: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """The (begin, end) of each sequence."""
    return list(zip(starts, (*starts[1:], tokens), strict=True))
