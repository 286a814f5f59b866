"""One pass over the tokens for many caches side by side: what each finds and misses in some layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from dipsim.gpu import kernels
from dipsim.gpu.tensors import as_floats
from dipsim.memory.eviction import eviction_rule
from dipsim.planning.builder import LayerCaches, PlanBuilder, ScoresKey
from dipsim.sparsity.policy import Axis, Group, Policy
from dipsim.sparsity.ranking import score_threshold
from dipsim.sparsity.selection import guarded, policy_at, wrong_ranking
from dipsim.workload.trace import sequences

Counted = NDArray[np.int32]  # [L, T, places]


class Member(NamedTuple):
    """The caches of one group of one plan, one in each layer."""

    builder: PlanBuilder
    caches: LayerCaches

    @property
    def kind(self) -> tuple[Axis, bool, str]:
        """What members must share to step together."""
        return self.caches.group.axis, self.caches.policy.cache_aware, self.caches.eviction


def one_of_each_key(members: Sequence[Member]) -> dict[ScoresKey, Member]:
    """One member for each key."""
    return {member.caches.key: member for member in members}


class Batch:
    """The caches of members of one kind, those of the same key side by side, in adjacent layers.

    Rows are ordered by ranking (the members of a key), layer and member, so a ranking has a block [L, D] of rows.
    `scores` are those of each key, [L, T, N], float32 or float64, from layer `begin` on.
    """

    def __init__(self, members: Sequence[Member], scores: dict[ScoresKey, Tensor], begin: int) -> None:
        builder, self.columns = members[0].builder, members[0].caches.columns
        _, self.aware, eviction = members[0].kind
        rule = eviction_rule(eviction)
        self.spans = sequences(builder.sequence_starts, builder.tokens)
        self.rankings = [list(same) for _, same in groupby(members, lambda member: member.caches.key)]
        self.scores = [scores[ranking[0].caches.key] for ranking in self.rankings]
        self.layers, device = len(self.scores[0]), self.scores[0].device
        self.rows = [member.caches for ranking in self.rankings for _ in range(self.layers) for member in ranking]
        self.k = torch.tensor([caches.group.k for caches in self.rows], dtype=torch.int32, device=device)
        self.nan = torch.zeros_like(self.k, dtype=torch.uint8)
        held = [
            member.caches.capacities[begin + layer]
            for ranking in self.rankings
            for layer in range(self.layers)
            for member in ranking
        ]
        capacities = torch.tensor(held, dtype=torch.int32, device=device)
        self.caches = kernels.Caches(capacities, self.columns, rule, builder.tokens)
        self.future: Tensor | None = None
        if self.aware:
            self.masks = torch.zeros_like(self.caches.resident)
            self.source = torch.arange(len(self.rows), device=device)
        else:
            self.masks, self.source = self._blind_masks(builder.tokens)
        if rule.needs_future:
            self.future = torch.empty_like(self.masks, dtype=kernels.value_type(builder.tokens))
            for first, last in self.spans:
                self.future[:, :, first:last] = kernels.nearness(self.masks[:, :, first:last])
        self._graph: torch.cuda.CUDAGraph | None = None
        self._compiled = False

    def run(self) -> list[tuple[Member, Counted]]:
        """Let all tokens pass; return each member with its counts [L, T, places], as `kernels.Caches` has them.

        Raises InputError if a ranking holds NaN.
        """
        steady = [ranking[0].caches.policy for ranking in self.rankings]
        for first, last in self.spans:
            self.caches.clear()
            for position in range(last - first):
                policies = [policy_at(policy, position) for policy in steady]
                self._token(policies, all(now is ever for now, ever in zip(policies, steady, strict=True)))
        for caches, nan in zip(self.rows, self.nan.tolist(), strict=True):
            if nan:
                raise wrong_ranking(caches.policy, caches.group, "leave numbers, without NaN")
        counts = np.asarray(self.caches.counts.cpu())
        blocks = np.split(counts, np.cumsum([self.layers * len(ranking) for ranking in self.rankings])[:-1])
        return [
            (member, block[index :: len(ranking)])
            for ranking, block in zip(self.rankings, blocks, strict=True)
            for index, member in enumerate(ranking)
        ]

    def _token(self, policies: Sequence[Policy], steady: bool) -> None:
        """Run the next token. On a GPU, steps that are always the same are recorded: a replay is one launch."""
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
            self._aware_masks(policies)
        self.caches.step(self.masks, self.source, 0 if self.aware else 1, self.future)

    def _aware_masks(self, policies: Sequence[Policy]) -> None:
        row, ranked = 0, []
        here = {id(scores): scores.index_select(1, self.caches.clock[:1])[:, 0] for scores in self.scores}
        for ranking, policy, scores in zip(self.rankings, policies, self.scores, strict=True):
            rows = slice(row, row := row + self.layers * len(ranking))
            resident = self.caches.resident[rows].view(self.layers, len(ranking), self.columns)
            ranked.append(rerank(policy, here[id(scores)], resident).reshape(-1, self.columns))
        kernels.top_k_rows(torch.cat(ranked), self.k, self.masks, self.nan)

    def _blind_masks(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Masks [M, L, T, N] of the different selections, and for each cache the row of its first token's mask."""
        wanted = [(values, ranking[0].caches.group) for values, ranking in zip(self.scores, self.rankings, strict=True)]
        marks = [(id(values), group.k, group.threshold) for values, group in wanted]
        different = list(dict.fromkeys(marks))
        masks = torch.stack([batch_masks(*wanted[marks.index(mark)]) for mark in different])
        first = [
            (different.index(mark) * self.layers + layer) * tokens for mark in marks for layer in range(self.layers)
        ]
        sizes = [len(ranking) for ranking in self.rankings for _ in range(self.layers)]
        return masks, torch.tensor(first, device=masks.device).repeat_interleave(
            torch.tensor(sizes, device=masks.device)
        )


def rerank(policy: Policy, scores: Tensor, resident: Tensor) -> Tensor:
    """The policy's ranking of each row by itself, [L, D, N], of scores [L, N] and residents [L, D, N]."""
    rows = vmap(vmap(policy.rerank, (None, 0)))
    return guarded(policy, "rerank", lambda: as_floats(rows(scores, resident)))


def batch_masks(scores: Tensor, group: Group) -> Tensor:
    """Masks [L, T, N] of a policy that does not see the cache. A threshold is calibrated on each layer's tokens."""
    if group.threshold:
        return torch.stack([layer >= score_threshold(layer.cpu().numpy(), group.k) for layer in scores])
    masks = torch.empty_like(scores, dtype=torch.bool)
    k = torch.full((scores.shape[0] * scores.shape[1],), group.k, dtype=torch.int32, device=scores.device)
    kernels.top_k_rows(scores.flatten(0, 1), k, masks.flatten(0, 1), torch.zeros_like(k, dtype=torch.uint8))
    return masks
