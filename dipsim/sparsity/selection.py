"""Runs a policy's formulas and checks what comes out: groups, scores, and masks from scores.

A plugin is a stranger's code. What goes wrong inside it becomes one line that names the plugin and its method.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np

from dipsim.basics.arrays import Mask, Numbers
from dipsim.basics.errors import InputError, one_line
from dipsim.sparsity.levels import Units
from dipsim.sparsity.policy import Group, Policy
from dipsim.sparsity.ranking import score_threshold, top_k
from dipsim.workload.level_requests import LevelRequests
from dipsim.workload.routing import Routing
from dipsim.workload.shape import MATRICES, ModelShape
from dipsim.workload.trace import Activations

ATTENTION, WHOLE, LM_HEAD = RESERVED = ("attention", "whole", "lm_head")  # a token's steps that are not groups
Found = TypeVar("Found")


def guarded(policy: Policy, method: str, call: Callable[[], Found]) -> Found:
    """Call a plugin's method. Raises InputError, naming plugin and method, for what goes wrong inside it."""
    try:
        return call()
    except (InputError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            raise
        text = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"policy {policy.label}: {method} failed{_line_of(error, policy)}: {text}") from error


def _line_of(error: BaseException, policy: Policy) -> str:
    """Which line of the policy's own file an error comes from; nothing if from none."""
    own = inspect.getsourcefile(type(policy))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f" in line {lines[-1]}" if lines else ""


def checked_groups(policy: Policy, shape: ModelShape) -> tuple[Group, ...]:
    """The policy's groups for this model. Raises InputError if the matrices cannot be read that way."""
    groups = guarded(policy, "groups", lambda: tuple(policy.groups(shape)))
    seen: list[str] = []
    for group in groups:
        if not isinstance(group, Group) or not isinstance(group.matrices, tuple) or not group.matrices:
            raise InputError(f"policy {policy.label}: groups: {group!r} is not a Group of a tuple of matrices")
        if group.name in RESERVED:
            raise InputError(f"policy {policy.label}: group {group.name}: that name is taken; choose another")
        seen += group.matrices
        size = shape.axis_size(group.axis)
        for matrix in group.matrices:
            shape.unit_length(matrix, group.axis)
        if not isinstance(group.k, int) or not 0 <= group.k <= size:
            where = f"policy {policy.label}: group {group.name}"
            raise InputError(f"{where}: k must be a whole number from 0 to {size} (got {group.k!r})")
        if group.price is not None:
            where = f"policy {policy.label}: group {group.name}"
            if not isinstance(group.price, (int, float)) or not 0 <= group.price < float("inf"):
                raise InputError(f"{where}: price must be a score per byte, 0 or more (got {group.price!r})")
            if group.threshold or policy.cache_aware:
                raise InputError(f"{where}: a price chooses by itself; leave out threshold, rerank and select")
        _check_levels(policy, group)
        _check_copies(policy, group)
    if len(set(seen)) < len(seen) or len({group.name for group in groups}) < len(groups):
        raise InputError(f"policy {policy.label}: groups: a matrix or a name appears twice; put each in one group")
    _check_mixture(policy, groups, shape)
    return groups


def _check_levels(policy: Policy, group: Group) -> None:
    """Raise InputError for levels that do not rise, or that nothing chooses among."""
    where = f"policy {policy.label}: group {group.name}"
    if group.levels is not None and not group.levels.rises:
        raise InputError(f"{where}: levels: each must take more than the one below, and the first nothing")
    if group.levels is not None and (group.price is None or group.axis == "expert"):
        raise InputError(f"{where}: levels: are chosen by price among columns; give a price, and an axis of columns")


def _check_copies(policy: Policy, group: Group) -> None:
    """Raise InputError for copies that are not of experts, do not fall, or that nothing chooses among."""
    where, copies = f"policy {policy.label}: group {group.name}: copies", group.copies
    falls = isinstance(copies, tuple) and copies[:1] == (1.0,) and copies[-1] > 0
    if not falls or any(not lower < higher for higher, lower in pairwise(copies)):
        raise InputError(f"{where}: must be parts of an expert that fall from 1.0, the exact one (got {copies!r})")
    if len(copies) > 1 and group.axis != "expert":
        raise InputError(f"{where}: are of experts, and the axis is {group.axis}; leave them out")
    if len(copies) > 1 and type(policy).select is Policy.select:
        raise InputError(f"{where}: are chosen by what is resident; define select")


def _check_mixture(policy: Policy, groups: Sequence[Group], shape: ModelShape) -> None:
    """Raise InputError for a policy of dense MLPs on a mixture of experts."""
    dense = [group for group in groups if group.axis != "expert"]
    if shape.mixture is not None and (dense or not groups):
        does = f"chooses columns in group {dense[0].name}" if dense else "reads every expert of every layer"
        raise InputError(
            f"policy {policy.label}: {does}, and {shape.name or 'the model'} is a mixture of experts; use experts, "
            "fewer-experts, drop-cold, low-bit or cache-prior"
        )
    for group in groups:
        if group.axis == "expert" and (set(group.matrices) != set(MATRICES) or group.price is not None or group.free):
            raise InputError(
                f"policy {policy.label}: group {group.name}: a group of experts has all three matrices, and neither "
                "price nor free"
            )


def sees_memory(policy: Policy, groups: Sequence[Group]) -> bool:
    """Whether what a token uses depends on what is resident, or on how it is read."""
    return policy.cache_aware or any(group.uses_all for group in groups)


def policy_bytes(policy: Policy, shape: ModelShape) -> float:
    """Bytes that the policy keeps in DRAM for itself. Raises InputError if the plugin fails, or says no such number."""
    size = guarded(policy, "static_bytes", lambda: float(policy.static_bytes(shape)))
    if not 0 <= size < math.inf:
        raise InputError(f"policy {policy.label}: static_bytes must be a number of bytes, 0 or more (got {size:g})")
    return size


def policy_at(policy: Policy, position: int) -> Policy:
    """The policy at a position of a sequence. Raises InputError if the plugin fails."""
    return guarded(policy, "at", lambda: policy.at(position))


def checked_scores(policy: Policy, group: Group, acts: Activations | Routing | LevelRequests) -> Numbers:
    """The policy's scores [T, N], read-only. Raises InputError for another shape, NaN, or a failing plugin."""
    if isinstance(acts, LevelRequests):
        raise InputError(
            f"policy {policy.label}: chooses by activations, and the trace has requested levels only; replay it with "
            "the policy that made it, or use a trace of activations"
        )
    tokens, columns = _columns(group, acts).shape
    expected = (tokens, columns * len(group.copies))
    values = np.asarray(guarded(policy, "scores", partial(policy.scores, group, acts)))
    if values.shape != expected or values.dtype.kind not in "fiu" or np.isnan(values).any():
        raise wrong_scores(policy, group, expected, f"{values.dtype} {list(values.shape)}")
    values = values.view()
    values.setflags(write=False)  # other settings rank by them too
    return values


def _columns(group: Group, acts: Activations | Routing) -> Numbers:
    """Something with a number for each column of a group, [T, N]."""
    if isinstance(acts, Routing):
        return np.asarray(acts.preference)
    return np.asarray(acts.mlp_input if group.axis == "input" else acts.gate_proj)


def checked_units(policy: Policy, group: Group, layer: int, columns: int) -> Units:
    """What the policy knows of the units of a group. Raises InputError for other shapes, or a failing plugin."""
    units = guarded(policy, "units", lambda: policy.units(group, layer))
    assert group.levels is not None
    expected = ((columns, group.levels.top + 1), (len(units.weights), columns))
    found = (np.shape(units.errors), np.shape(units.scores))
    if found != expected or not (np.isfinite(units.errors).all() and np.isfinite(units.scores).all()):
        raise InputError(
            f"policy {policy.label}: units of group {group.name}: errors and scores must be finite, "
            f"{list(expected[0])} and {list(expected[1])} (got {list(found[0])} and {list(found[1])})"
        )
    return units


def blind_masks(group: Group, scores: Numbers, limit: float | None = None) -> Mask:
    """Masks [..., N] of a policy that does not see the cache, from its scores [..., N].

    `limit` is that of a threshold group. By default it is calibrated on these very tokens.
    """
    if not group.threshold:
        return np.asarray(top_k(scores, group.k))
    return np.asarray(scores >= (score_threshold(scores, group.k) if limit is None else limit))


def aware_mask(policy: Policy, group: Group, scores: Numbers, resident: Mask, position: int) -> Mask:
    """Mask [N] of one token of a cache-aware policy, from its scores [N], the residents [N] and its position.

    Raises InputError if the policy does not choose k of the columns, or up to k experts where it selects by itself.
    """
    shown = resident.view()
    shown.setflags(write=False)
    now = policy_at(policy, position)
    method = "rerank" if type(policy).select is Policy.select else "select"  # the one that the plugin defines
    mask = guarded(policy, method, lambda: now.select(group, scores, shown))
    if not isinstance(mask, np.ndarray) or mask.shape != scores.shape or mask.dtype != np.bool_:
        raise wrong_ranking(policy, group, f"keep the shape {list(scores.shape)}")
    chosen = np.count_nonzero(mask)
    if group.axis == "expert" and method == "select":
        if chosen > group.k:
            raise wrong_ranking(policy, group, f"choose no more than {group.k} experts (got {chosen})")
        if len(group.copies) > 1 and mask.reshape(len(group.copies), -1).sum(axis=0).max() > 1:
            raise wrong_ranking(policy, group, "choose one copy of an expert")
    elif not group.threshold and chosen != group.k:
        raise wrong_ranking(policy, group, "leave numbers, without NaN")
    return mask


def wrong_scores(policy: Policy, group: Group, expected: Sequence[int], got: str) -> InputError:
    """The error for scores that are not numbers of the `expected` shape without NaN."""
    return InputError(
        f"policy {policy.label}: scores of group {group.name} must be numbers {list(expected)} without NaN (got {got})"
    )


def wrong_ranking(policy: Policy, group: Group, must: str) -> InputError:
    """The error for a `rerank` or a `select` that does not do what it must."""
    method = "rerank" if type(policy).select is Policy.select else "select"
    return InputError(f"policy {policy.label}: group {group.name}: {method} must {must}")
