"""Tries a policy on a few tokens: a GPU plans it only if tensors give bit for bit what arrays give."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dipsim.basics.arrays import Numbers
from dipsim.basics.errors import InputError
from dipsim.gpu.batch import rerank
from dipsim.gpu.tensors import as_floats, tensor_scores
from dipsim.sparsity.policy import Group, Policy
from dipsim.sparsity.selection import checked_scores, guarded, policy_at
from dipsim.workload.trace import Activations

TOKENS = 128  # on which a policy is tried, enough to tell one order of summing from another
_DIVISIONS = ("div", "true_divide", "__truediv__", "__rtruediv__", "__rdiv__")


class Moved:
    """A layer's activations on a device, each moved when it is first asked for."""

    def __init__(self, acts: Activations, device: str) -> None:
        self._acts, self._device, self.layer = acts, device, acts.layer

    def __getattr__(self, name: str) -> Tensor:
        values = torch.tensor(getattr(self._acts, name), device=self._device)
        setattr(self, name, values)
        return values


class NumpyPromotion(TorchFunctionMode):
    """Inside, a mask or whole numbers become float64 beside a Python float or in a division, as they do in numpy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(arg, float) for arg in args) or getattr(func, "__name__", "") in _DIVISIONS:
            whole = [isinstance(arg, Tensor) and not arg.is_floating_point() for arg in args]
            args = tuple(arg.double() if is_whole else arg for arg, is_whole in zip(args, whole, strict=True))
        return func(*args, **(kwargs or {}))


class Tried(NamedTuple):
    """What a trial found: the sum of the scores, by which equal scores are known, and the bytes of a ranked value."""

    scores_sum: float
    value_bytes: int


def try_policy(policy: Policy, group: Group, acts: Activations, device: str) -> Tried | None:
    """Try one group of a policy on a layer's activations; None unless tensors give what arrays give.

    It must run inside `NumpyPromotion`.
    """
    if type(policy).select is not Policy.select:
        return None
    try:
        scores = checked_scores(policy, group, acts)
        moved = as_floats(tensor_scores(policy, group, Moved(acts, device), scores.shape))
        if not _same(scores, moved):
            return None
        size = _ranked_bytes(policy, scores, moved) if policy.cache_aware else moved.element_size()
    except InputError:  # the CPU will say what is wrong, if anything is
        return None
    return None if size is None else Tried(float(moved.double().sum()), size)


def _ranked_bytes(policy: Policy, scores: Numbers, moved: Tensor) -> int | None:
    """The bytes of a value that the policy ranks by; None unless it ranks tensors as it ranks arrays."""
    resident = np.random.default_rng(0).random(scores.shape, dtype=np.float32) < 0.5

    def ranks_alike(now: Policy, rows: slice) -> bool:
        pairs = zip(scores[rows], resident[rows], strict=True)
        expected = [guarded(policy, "rerank", partial(now.rerank, *row)) for row in pairs]
        found = rerank(now, moved[rows], torch.tensor(resident[rows], device=moved.device)[:, None])[:, 0]
        return {np.shape(row) for row in expected} == {scores.shape[1:]} and _same(np.stack(expected), found)

    stages = [(policy_at(policy, row), slice(row, row + 1)) for row in range(len(scores))]
    changed = [(now, row) for now, row in stages if now is not policy]
    if not all(ranks_alike(now, rows) for now, rows in ((policy, slice(None)), *changed)):
        return None
    return rerank(policy, moved[:1], torch.tensor(resident[:1, None], device=moved.device)).element_size()


def _same(expected: Numbers, found: Tensor) -> bool:
    return expected.shape == found.shape and equal(as_floats(torch.tensor(expected, device=found.device)), found)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype and values."""
    return a.dtype == b.dtype and torch.equal(a, b)
