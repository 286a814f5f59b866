"""Selection on torch tensors: what `sparsity.selection` does on arrays, with the same ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dipsim.basics.errors import InputError
from dipsim.sparsity.policy import Group, Policy
from dipsim.sparsity.ranking import top_k
from dipsim.sparsity.selection import guarded, wrong_scores


def tensor_scores(policy: Policy, group: Group, acts: Any, expected: Sequence[int]) -> Tensor:
    """The policy's scores, a tensor of the `expected` shape. Raises InputError as `checked_scores` does."""
    values = guarded(policy, "scores", lambda: policy.scores(group, acts))
    if not isinstance(values, Tensor):
        raise wrong_scores(policy, group, expected, type(values).__name__)
    if values.shape != torch.Size(expected) or values.isnan().any():
        raise wrong_scores(policy, group, expected, f"{values.dtype} {list(values.shape)}")
    return values


def as_floats(values: Tensor) -> Tensor:
    """float32 and float64 as they are, shorter floats as float32, whole numbers as float64."""
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.to(torch.float32 if values.is_floating_point() else torch.float64)


def tensor_masks(group: Group, scores: Tensor, limit: float | None = None) -> Tensor:
    """Masks [..., N] of a policy that does not see the cache, from its scores [..., N].

    `limit` is that of a threshold group. By default it is calibrated on these very tokens.
    """
    if not group.threshold:
        masks: Tensor = top_k(scores, group.k)
        return masks
    if limit is None:
        flat = scores.flatten()
        kept = round(group.k / scores.shape[-1] * flat.numel())
        limit = float(flat.topk(max(kept, 1)).values[-1])
    return scores >= limit


def check_device(device: str) -> None:
    """Raise InputError unless torch can compute there."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"device {device!r}: is not available here ({reason}); use cpu") from None
