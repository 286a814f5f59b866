"""One pass over the tokens for many caches side by side: what a batch of settings finds and misses in some layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from dipsim.cache import CLAIRVOYANT, Eviction
from dipsim.live import kernels, tensors
from dipsim.plan import FetchPlan, Key
from dipsim.policy import Axis, Group, Policy, calibrated, guarded, wrong_ranking
from dipsim.selection import at, sequences

Counted = NDArray[np.int32]  # [L, T, places]


@dataclass(frozen=True)
class Member:
    """The caches of one group of one plan, one in each layer."""

    plan: FetchPlan
    group: Group

    @property
    def policy(self) -> Policy:
        return self.plan.setting.policy

    @cached_property
    def key(self) -> Key:
        return type(self.policy), self.policy.label, self.group

    @cached_property
    def kind(self) -> tuple[Axis, bool, Eviction]:
        """Those of a kind step together."""
        return self.group.axis, self.policy.cache_aware, self.plan.setting.eviction

    @property
    def columns(self) -> int:
        return self.plan.shape.axis_size(self.group.axis)

    @property
    def capacity(self) -> int:
        return self.plan.budget.capacities[self.plan.groups.index(self.group)]


class Batch:
    """The caches of members of one kind, those of the same key side by side, in adjacent layers.

    Rows are ordered by ranking (the members of a key), layer, member: a ranking has a block [L, D] of rows. `scores`:
    by key, [L, T, N], float32 or float64.
    """

    def __init__(self, members: Sequence[Member], scores: dict[Key, Tensor]) -> None:
        plan, self.columns = members[0].plan, members[0].columns
        _, self.aware, eviction = members[0].kind
        self.spans = sequences(plan.sequence_starts, plan.tokens)
        self.rankings = [list(same) for _, same in groupby(members, lambda member: member.key)]
        self.scores = [scores[ranking[0].key] for ranking in self.rankings]
        self.layers, device = len(self.scores[0]), self.scores[0].device
        self.rows = [member for ranking in self.rankings for _ in range(self.layers) for member in ranking]
        self.k = torch.tensor([member.group.k for member in self.rows], dtype=torch.int32, device=device)
        self.nan = torch.zeros_like(self.k, dtype=torch.uint8)
        capacities = torch.tensor([member.capacity for member in self.rows], dtype=torch.int32, device=device)
        self.caches = kernels.Caches(capacities, self.columns, eviction, plan.tokens)
        self.future: Tensor | None = None
        if self.aware:
            self.masks = torch.zeros_like(self.caches.resident)
            self.source = torch.arange(len(self.rows), device=device)
        else:
            self.masks, self.source = self._choose_blind(plan.tokens)
        if eviction in CLAIRVOYANT:
            self.future = torch.empty_like(self.masks, dtype=kernels.value_type(plan.tokens))
            for first, last in self.spans:
                self.future[:, :, first:last] = kernels.nearness(self.masks[:, :, first:last])
        self._graph: torch.cuda.CUDAGraph | None = None
        self._compiled = False

    def serve(self) -> list[tuple[Member, Counted]]:
        """Let all tokens pass. Each member with its counts [L, T, places] (see `kernels.Caches`).

        Raises InputError if a ranking holds NaN.
        """
        steady = [ranking[0].policy for ranking in self.rankings]
        for first, last in self.spans:
            self.caches.clear()
            for position in range(last - first):
                policies = [at(policy, position) for policy in steady]
                self._token(policies, all(now is ever for now, ever in zip(policies, steady, strict=True)))
        for member, nan in zip(self.rows, self.nan.tolist(), strict=True):
            if nan:
                raise wrong_ranking(member.policy, member.group, "leave numbers, without NaN")
        counts = np.asarray(self.caches.counts.cpu())
        blocks = np.split(counts, np.cumsum([self.layers * len(ranking) for ranking in self.rankings])[:-1])
        return [
            (member, block[index :: len(ranking)])
            for ranking, block in zip(self.rankings, blocks, strict=True)
            for index, member in enumerate(ranking)
        ]

    def _token(self, policies: Sequence[Policy], steady: bool) -> None:
        """The next token. On a GPU the steps are recorded where they are always the same: a replay is one launch."""
        if self._graph is None and steady and self._compiled and self.masks.is_cuda:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step(policies)
        if self._graph is not None and steady:
            self._graph.replay()
        else:
            self._step(policies)
            self._compiled = True

    def _step(self, policies: Sequence[Policy]) -> None:
        if self.aware:
            self._choose_aware(policies)
        self.caches.step(self.masks, self.source, 0 if self.aware else 1, self.future)

    def _choose_aware(self, policies: Sequence[Policy]) -> None:
        row, ranked = 0, []
        here = {id(scores): scores.index_select(1, self.caches.clock[:1])[:, 0] for scores in self.scores}
        for ranking, policy, scores in zip(self.rankings, policies, self.scores, strict=True):
            rows = slice(row, row := row + self.layers * len(ranking))
            resident = self.caches.resident[rows].view(self.layers, len(ranking), self.columns)
            ranked.append(rerank(policy, here[id(scores)], resident).reshape(-1, self.columns))
        kernels.choose(torch.cat(ranked), self.k, self.masks, self.nan)

    def _choose_blind(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Masks [M, L, T, N] of the different selections, and for each cache the row of its first token's mask."""
        wanted = [(values, ranking[0].group) for values, ranking in zip(self.scores, self.rankings, strict=True)]
        marks = [(id(values), group.k, group.threshold) for values, group in wanted]
        different = list(dict.fromkeys(marks))
        masks = torch.stack([choose(*wanted[marks.index(mark)]) for mark in different])
        first = [
            (different.index(mark) * self.layers + layer) * tokens for mark in marks for layer in range(self.layers)
        ]
        sizes = [len(ranking) for ranking in self.rankings for _ in range(self.layers)]
        return masks, torch.tensor(first, device=masks.device).repeat_interleave(
            torch.tensor(sizes, device=masks.device)
        )


def rerank(policy: Policy, scores: Tensor, resident: Tensor) -> Tensor:
    """The policy's ranking of each row by itself, [L, D, N]; scores [L, N], resident [L, D, N], L layers, D caches."""
    rows = vmap(vmap(policy.rerank, (None, 0)))
    return guarded(policy, "rerank", lambda: tensors.floats(rows(scores, resident)))


def choose(scores: Tensor, group: Group) -> Tensor:
    """Masks from scores [L, T, N] that do not see the cache; a threshold is calibrated on each layer's tokens."""
    if group.threshold:
        return torch.stack([layer >= calibrated(layer.cpu().numpy(), group.k) for layer in scores])
    masks = torch.empty_like(scores, dtype=torch.bool)
    k = torch.full((scores.shape[0] * scores.shape[1],), group.k, dtype=torch.int32, device=scores.device)
    kernels.choose(scores.flatten(0, 1), k, masks.flatten(0, 1), torch.zeros_like(k, dtype=torch.uint8))
    return masks
