"""The straightforward simulator, written from the method alone: what `speed.py` measures dipsim against.

Plain torch and plain SimPy: `torch.topk` per vector, one whole-mask cache update per token, layer, matrix group and
capacity, one request of a SimPy resource per MiB that moves. Nothing is slowed down on purpose; tensors are made once,
nothing is copied that need not be, and `ordered=False` even gives up the order of `torch.topk`'s results, which nobody
needs. The rules for ties are dipsim's, so that results are equal.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import simpy
import torch
from torch import Tensor

CHUNK = 2**20  # bytes that one request of the engine moves
LOWEST = torch.iinfo(torch.int64).min


def top_k(scores: Tensor, k: int, ordered: bool = True) -> Tensor:
    """Mask [N] of the k largest of scores [N]; which of equals is left to torch."""
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[torch.topk(scores, k, sorted=ordered).indices] = True
    return mask


def reranked(scores: Tensor, cached: Tensor, gamma: float) -> Tensor:
    """Cache-aware masking: scores [N] of columns that are not cached count `gamma` times."""
    return torch.where(cached, scores, scores * gamma)


def next_uses(masks: Tensor) -> Tensor:
    """[T, N]: the token after t that uses each column next; T + 1 if none does."""
    tokens = len(masks)
    result = torch.empty(masks.shape, dtype=torch.int64)
    upcoming = torch.full(masks.shape[1:], tokens + 1)
    for token in range(tokens - 1, -1, -1):
        result[token] = upcoming
        upcoming[masks[token]] = token
    return result


class Cache:
    """One cache of `capacity` columns; `step` presents a token's mask [N] and returns its hits [N]."""

    def __init__(self, columns: int, capacity: int, eviction: str, future: Tensor | None = None, ordered: bool = True):
        self.cached = torch.zeros(columns, dtype=torch.bool)
        self.value = torch.zeros(columns, dtype=torch.int64)  # the least valuable leaves first
        self.index = torch.arange(columns)
        self.capacity, self.eviction, self.future, self.ordered = capacity, eviction, future, ordered
        self.token = 0

    def step(self, mask: Tensor) -> Tensor:
        hits = mask & self.cached
        if self.future is not None:
            self.value = -self.future[self.token]
        elif self.eviction == "lru":
            self.value[mask] = self.token
        else:
            self.value += mask
        self.token += 1
        old = self.cached & ~mask
        room = self.capacity - int(mask.sum())
        if room <= 0:
            self.cached = hits | self._best(mask & ~hits, self.capacity - int(hits.sum()), lowest_first=True)
        elif int(old.sum()) > room:
            self.cached = mask | self._best(old, room, lowest_first=False)
        else:
            self.cached = mask | old
        return hits

    def _best(self, among: Tensor, count: int, lowest_first: bool) -> Tensor:
        """The `count` most valuable columns among some; of equals the one of lowest, or of highest index."""
        unique = self.value * len(self.index) + (-self.index if lowest_first else self.index)
        return top_k(torch.where(among, unique, LOWEST), count, self.ordered)


def replay(masks: Tensor, capacity: int, eviction: str, ordered: bool = True) -> list[int]:
    """Hits per token of masks [T, N] through an empty cache."""
    future = next_uses(masks) if eviction == "belady" else None
    cache = Cache(masks.shape[1], capacity, eviction, future, ordered)
    return [int(cache.step(mask).sum()) for mask in masks]


def decode(
    scores: Sequence[Sequence[Tensor]],
    kept: Sequence[int],
    capacities: Sequence[int],
    eviction: str,
    gamma: float = 1.0,
    ordered: bool = True,
) -> list[list[int]]:
    """Hits [layers * groups][T] of token after token through all layers; `scores[layer][group]` is [T, N]."""
    caches = [
        [Cache(s.shape[1], c, eviction, ordered=ordered) for s, c in zip(layer, capacities, strict=True)]
        for layer in scores
    ]
    hits: list[list[int]] = [[] for layer in scores for _ in layer]
    for token in range(len(scores[0][0])):
        for index, layer in enumerate(scores):
            for group, (values, k) in enumerate(zip(layer, kept, strict=True)):
                cache = caches[index][group]
                now = values[token] if gamma == 1 else reranked(values[token], cache.cached, gamma)
                found = cache.step(top_k(now, k, ordered))
                hits[index * len(kept) + group].append(int(found.sum()))
    return hits


def token_time(
    steps: Sequence[tuple[float, float, float]], flash_bandwidth: float, dram_bandwidth: float, together: bool
) -> float:
    """Seconds of one token: per step its Flash bytes, its DRAM bytes and its seconds of compute, chunk by chunk.

    A step's transfers follow each other, or run side by side if `together`; compute comes after both.
    """
    env = simpy.Environment()
    flash, dram, compute = (simpy.Resource(env, capacity=1) for _ in range(3))

    def hold(resource: simpy.Resource, seconds: float) -> Generator[simpy.Event, Any, None]:
        with resource.request() as turn:
            yield turn
            yield env.timeout(seconds)

    def move(resource: simpy.Resource, size: float, bandwidth: float) -> Generator[simpy.Event, Any, None]:
        while size > 0:
            yield from hold(resource, min(size, CHUNK) / bandwidth)
            size -= CHUNK

    def run() -> Generator[simpy.Event, Any, None]:
        for flash_bytes, dram_bytes, seconds in steps:
            fetch = env.process(move(flash, flash_bytes, flash_bandwidth))
            if not together:
                yield fetch
            read = env.process(move(dram, dram_bytes, dram_bandwidth))
            yield env.all_of([fetch, read])
            if seconds:
                yield from hold(compute, seconds)

    env.process(run())
    env.run()
    return float(env.now)
