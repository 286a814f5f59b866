"""The planner for a GPU: it makes the plans that the CPU makes, or leaves a setting to the CPU.

Caches of different layers and settings do not see each other, so they step side by side (`batch.py`). Activations are
read on the CPU, some layers ahead. Scores, and masks that do not see the cache, are made for all tokens at once, and
shared by all settings that have the same.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from math import ceil

import numpy as np
import torch
from torch import Tensor

from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.gpu import kernels
from dipsim.gpu.batch import Batch, Counted, Member, one_of_each_key
from dipsim.gpu.tensors import as_floats, check_device, tensor_scores
from dipsim.gpu.trial import TOKENS, Moved, NumpyPromotion, Tried, equal, try_policy
from dipsim.memory.eviction import eviction_rule
from dipsim.planning.builder import Counts, PlanBuilder, ScoresKey
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import CpuPlanner
from dipsim.sparsity.policy import Group
from dipsim.sparsity.selection import checked_groups
from dipsim.storage.layouts import load_layout
from dipsim.workload.trace import Activations, Trace

AHEAD = 8  # layers that are read meanwhile, each by a thread; the memory for as many activations is needed
ROWS = 4096  # caches side by side that keep a GPU busy
MEMORY = 0.6  # of what is free, for the layers that are planned together


class GpuPlanner:
    """Plans on a torch device. Raises InputError if there is no such device, or Triton cannot build a kernel there."""

    task = "planning layers on the GPU"
    all_together = True
    max_plan_bytes = 8e9  # all its plans come from one process, and each pass reads the activations anew

    def __init__(self, device: str = "cuda") -> None:
        self.device = device
        check_device(device)
        one = torch.ones((1, 1), device=device)
        try:
            kernels.top_k_rows(one, one[0].int(), one.bool(), one[0].byte())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"device {device!r}: Triton cannot build a kernel here ({reason}); use cpu") from None

    def able(self, trace: Trace, setting: Setting, tokens: int) -> bool:
        """Whether the GPU makes the plan of a setting just as the CPU does."""
        if trace.shape.mixture is not None:
            return False
        acts, policy = trace.layer(0, min(tokens, TOKENS)), setting.policy
        groups = checked_groups(policy, trace.shape)
        if not _counts_like_the_cpu(setting, groups):
            return False
        with NumpyPromotion():
            return all(try_policy(policy, group, acts, self.device) is not None for group in groups)

    def fill(self, trace: Trace, builders: Sequence[PlanBuilder], layers: range, progress: Progress) -> None:
        """Enter what the masks of adjacent layers read; what the GPU cannot plan is left to the CPU.

        Raises InputError if a policy fails.
        """
        if trace.shape.mixture is not None:
            CpuPlanner().fill(trace, builders, layers, progress)
            return
        members = [Member(builder, caches) for builder in builders for caches in builder.caches]
        acts = trace.layer(0, min(builders[0].tokens, TOKENS))
        with NumpyPromotion():
            tried = self._try(members, acts)
            left = {
                id(m.builder): m.builder
                for m in members
                if m.caches.key not in tried or not _counts_like_the_cpu(m.builder.setting, m.builder.groups)
            }
            mine = [member for member in members if id(member.builder) not in left]
            if left:
                CpuPlanner().fill(trace, [*left.values()], layers, silent if mine else progress)
            if mine:
                wanted = [name for name in ("gate", "glu") if name in vars(acts)]
                reading = _read_ahead(trace, builders[0].tokens, layers, wanted)
                together = _layers_together(mine, tried, self.device)
                self._fill(reading, mine, layers, together, progress)

    def _try(self, members: Sequence[Member], acts: Activations) -> dict[ScoresKey, Tried]:
        """What the trial of each key found; nothing where tensors give something else than arrays."""
        found = {
            key: try_policy(member.caches.policy, member.caches.group, acts, self.device)
            for key, member in one_of_each_key(members).items()
        }
        return {key: tried for key, tried in found.items() if tried is not None}

    def _fill(
        self, reading: Iterator[Activations], members: list[Member], layers: range, together: int, progress: Progress
    ) -> None:
        members.sort(key=lambda m: (m.kind, m.caches.key[1], id(m.caches.key[0]), m.caches.group.name))
        with ThreadPoolExecutor(1) as recorder:  # records what one batch counted while the next one runs
            recorded = []
            for begin in range(layers.start, layers.stop, together):
                here = range(begin, min(begin + together, layers.stop))
                scores = _all_scores(members, islice(reading, len(here)), len(here), self.device)
                for _, same in groupby(members, lambda member: member.kind):
                    recorded.append(recorder.submit(_record, here, Batch(list(same), scores, begin).run()))
                del scores  # before the next are made
                for layer in here:
                    progress(self.task, layer + 1, layers.stop)
            for future in recorded:
                future.result()


def _counts_like_the_cpu(setting: Setting, groups: Sequence[Group]) -> bool:
    """Whether the kernels know the setting: they step empty caches, and count runs of columns by rising index."""
    return (
        eviction_rule(setting.eviction).on_gpu is not None
        and setting.start != "filled"
        and setting.flash is None
        and setting.page == 1
        and not load_layout(setting.layout).pins  # which moves columns
        and not any(group.uses_all for group in groups)
    )


def _record(layers: range, counted: Sequence[tuple[Member, Counted]]) -> None:
    for (builder, caches), counts in counted:
        of_tokens = counts.swapaxes(0, 1)  # [T, L, places]
        wanted, found, held = np.moveaxis(of_tokens[..., : kernels.RUNS], 2, 0)
        runs, columns = np.split(of_tokens[..., kernels.RUNS :], 2, axis=2)
        placement = builder.placement(caches, layers.start)
        reads, read_bytes = runs * placement.pieces, np.asarray(columns * placement.unit_bytes)
        builder.record(caches, layers, Counts(wanted, found, reads, read_bytes, held.max(axis=0)))


def _read_ahead(trace: Trace, tokens: int, layers: range, wanted: Sequence[str]) -> Iterator[Activations]:
    """The layers one by one, while threads read the next ones and make what is `wanted` of them."""

    def read(index: int) -> Activations:
        acts: Activations = trace.layer(index, tokens)
        for name in wanted:
            getattr(acts, name)  # kept in acts
        return acts

    threads = min(AHEAD, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(read, index) for index in layers[:threads])
        for place in range(threads, threads + len(layers)):
            acts = waiting.popleft().result()
            waiting.extend(pool.submit(read, index) for index in layers[place : place + 1])
            yield acts


def _layers_together(members: Sequence[Member], tried: dict[ScoresKey, Tried], device: str) -> int:
    """How many layers keep the device busy, or by estimate fit into its memory; at least one."""
    busy = ceil(ROWS / max(Counter(member.kind for member in members).values()))
    if device == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        busy = min(busy, int(MEMORY * free / _layer_bytes(members, tried)))
    return max(1, busy)


def _layer_bytes(members: Sequence[Member], tried: dict[ScoresKey, Tried]) -> int:
    """The device memory that one layer takes, by estimate."""
    tokens = members[0].builder.tokens
    scores: dict[tuple[float, int], int] = {}  # bytes of a value of different scores
    masks: dict[tuple[float, int, tuple[str, bool, str]], int] = {}  # bytes of a column of different masks
    own = 0
    for member in members:
        caches = member.caches
        found = tried[caches.key]
        scores[found.scores_sum, caches.columns] = caches.columns * found.value_bytes
        if not caches.policy.cache_aware:
            bytes_each = 6 if eviction_rule(caches.eviction).needs_future else 2
            masks[found.scores_sum, caches.group.k, member.kind] = caches.columns * bytes_each
        own += (6 + 3 * found.value_bytes) * caches.columns + 4 * tokens * kernels.places(caches.columns)
    return tokens * (sum(scores.values()) + sum(masks.values())) + own


def _all_scores(
    members: Sequence[Member], reading: Iterable[Activations], layers: int, device: str
) -> dict[ScoresKey, Tensor]:
    """Scores [L, T, N] of the next layers by key. Scores that are equal in all of them are one tensor."""
    found: dict[ScoresKey, Tensor] = {}
    different = one_of_each_key(members)
    for layer, acts in enumerate(reading):
        moved = Moved(acts, device)
        written: dict[int, Tensor] = {}  # by identity: those that have this layer already
        for key, (_, caches) in different.items():
            expected = (len(acts.mlp_input), caches.columns)
            values = as_floats(tensor_scores(caches.policy, caches.group, moved, expected))
            mine = found.get(key)
            if mine is None:
                mine = next((other for other in written.values() if equal(other[layer], values)), None)
                mine = values.new_empty((layers, *expected)) if mine is None else mine
            elif id(mine) in written and not equal(mine[layer], values):
                mine = mine.clone()  # equal to another's only so far
            if id(mine) not in written:
                mine[layer] = values
                written[id(mine)] = mine
            found[key] = mine
    return found
