"""Selection on torch tensors, where they are: twins of `policy.top_k` and `selection.choose`, with the same ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dipsim.files import InputError
from dipsim.policy import Group, Policy, guarded, wrong_scores


def top_k(scores: Tensor, k: int) -> Tensor:
    """Mask [..., N] of the k largest scores of each row [..., N]; among equals the lowest index first."""
    if k <= 0 or k >= scores.shape[-1]:
        return torch.full(scores.shape, k > 0, device=scores.device)
    threshold = scores.topk(k, dim=-1, sorted=True).values[..., -1:]
    above, equal = scores > threshold, scores == threshold
    room = k - above.sum(dim=-1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=-1) <= room))


def scores(policy: Policy, group: Group, acts: Any, expected: Sequence[int]) -> Tensor:
    """The policy's scores, a tensor of the `expected` shape, checked as `selection.scores` does. Raises InputError."""
    values = guarded(policy, "scores", lambda: policy.scores(group, acts))
    if not isinstance(values, Tensor):
        raise wrong_scores(policy, group, expected, type(values).__name__)
    if values.shape != torch.Size(expected) or values.isnan().any():
        raise wrong_scores(policy, group, expected, f"{values.dtype} {list(values.shape)}")
    return values


def floats(values: Tensor) -> Tensor:
    """float32 and float64 as they are, shorter floats as float32, whole numbers as float64."""
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.to(torch.float32 if values.is_floating_point() else torch.float64)


def choose(group: Group, scores: Tensor, limit: float | None = None) -> Tensor:
    """Masks [..., N] from scores [..., N] that do not see the cache; `limit` of a threshold group."""
    if not group.threshold:
        return top_k(scores, group.k)
    if limit is None:
        flat = scores.flatten()
        kept = round(group.k / scores.shape[-1] * flat.numel())
        limit = float(flat.topk(max(kept, 1)).values[-1])
    return scores >= limit


def check_device(device: str) -> None:
    """Raises InputError unless torch can compute there."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"device {device!r}: is not available here ({reason}); use cpu") from None
