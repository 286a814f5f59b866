"""Planning on a GPU: the caches of many layers and settings step from token to token side by side (`batch.py`).

Activations are read on the CPU, some layers ahead. Scores, and masks that do not see the cache, are made for all tokens
at once and shared by all settings that have the same. The plans are the CPU's (`tests/test_planning.py`): a policy
whose formulas do not give the same bits here is left to the CPU.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipsim import plan as on_cpu
from dipsim.cache import CLAIRVOYANT
from dipsim.files import InputError
from dipsim.live import kernels, tensors
from dipsim.live.batch import Batch, Counted, Member, rerank
from dipsim.plan import Counts, FetchPlan, Key, Progress, book
from dipsim.policy import Group, Policy, checked_groups, guarded
from dipsim.selection import at
from dipsim.selection import scores as scores_of
from dipsim.trace import Activations, Trace

AHEAD = 8  # layers that are read meanwhile, each by a thread; the memory for as many activations is needed
ROWS = 4096  # caches side by side that keep a GPU busy
MEMORY = 0.6  # of what is free, for the layers that are planned together
TRIED = 128  # tokens on which a policy is tried, enough to tell one order of summing from another


class Moved:
    """A layer's activations on a device, each moved when it is first asked for."""

    def __init__(self, acts: Activations, device: str) -> None:
        self._acts, self._device, self.layer = acts, device, acts.layer

    def __getattr__(self, name: str) -> Tensor:
        values = torch.tensor(getattr(self._acts, name), device=self._device)
        setattr(self, name, values)
        return values


def check(device: str) -> None:
    """Raises InputError unless kernels can run there."""
    tensors.check_device(device)
    one = torch.ones((1, 1), device=device)
    try:
        kernels.choose(one, one[0].int(), one.bool(), one[0].byte())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {device!r}: Triton cannot build a kernel here ({reason}); use cpu") from None


def fill(trace: Trace, plans: Sequence[FetchPlan], layers: int, progress: Progress, device: str) -> None:
    """`plan.fill` on a device; what the device would plan otherwise is left to the CPU.

    Meanwhile torch's default dtype is float64. Raises InputError as `plan.fill` does, and if there is no such device.
    """
    check(device)
    members = [Member(plan, group) for plan in plans for group in plan.groups]
    acts = trace.layer(0, min(plans[0].tokens, TRIED))
    with _as_in_numpy():
        tried = {key: _try(member.policy, member.group, acts, device) for key, member in _by_key(members).items()}
        apart = {id(member.plan): member.plan for member in members if tried[member.key] is None}
        members = [member for member in members if id(member.plan) not in apart]
        if apart:
            on_cpu.fill(trace, [*apart.values()], layers, (lambda _done, _total: None) if members else progress)
        if members:
            reading = _read_ahead(
                trace, plans[0].tokens, layers, [name for name in ("gate", "glu") if name in vars(acts)]
            )
            marks = {key: mark for key, mark in tried.items() if mark is not None}
            _fill(reading, members, layers, _layers_together(members, marks, device), progress, device)


def able(trace: Trace, policy: Policy, tokens: int, device: str) -> bool:
    """Whether the device plans a policy just as the CPU does."""
    acts = trace.layer(0, min(tokens, TRIED))
    with _as_in_numpy():
        return all(_try(policy, group, acts, device) is not None for group in checked_groups(policy, trace.shape))


@contextmanager
def _as_in_numpy() -> Iterator[None]:
    """Inside, a mask times a Python number is of the dtype that it is in numpy."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def _by_key(members: Sequence[Member]) -> dict[Key, Member]:
    """One member for each key."""
    return {member.key: member for member in members}


def _try(policy: Policy, group: Group, acts: Activations, device: str) -> tuple[float, int] | None:
    """Try a policy on the first tokens of the first layer; None unless it gives on tensors bit for bit what it gives on
    arrays. Otherwise the sum of its scores, by which the same are known, and the bytes of a ranked value.
    """
    if type(policy).select is not Policy.select:
        return None

    def same(expected: NDArray[Any], found: Tensor) -> bool:
        return expected.shape == found.shape and _equal(tensors.floats(torch.tensor(expected, device=device)), found)

    def ranks_alike(now: Policy, rows: slice) -> bool:
        pairs = zip(scores[rows], resident[rows], strict=True)
        expected = [guarded(policy, "rerank", partial(now.rerank, *row)) for row in pairs]
        found = rerank(now, moved[rows], torch.tensor(resident[rows], device=device)[:, None])[:, 0]
        return {np.shape(row) for row in expected} == {scores.shape[1:]} and same(np.stack(expected), found)

    try:
        scores = scores_of(policy, group, acts)
        moved = tensors.floats(tensors.scores(policy, group, Moved(acts, device), scores.shape))
        if not same(scores, moved):
            return None
        size = moved.element_size()
        if policy.cache_aware:
            resident = np.random.default_rng(0).random(scores.shape, dtype=np.float32) < 0.5
            stages = [(at(policy, row), slice(row, row + 1)) for row in range(len(scores))]
            stages = [(policy, slice(None)), *((now, row) for now, row in stages if now is not policy)]
            if not all(ranks_alike(now, rows) for now, rows in stages):
                return None
            size = rerank(policy, moved[:1], torch.tensor(resident[:1, None], device=device)).element_size()
        return float(moved.double().sum()), size
    except InputError:  # the CPU will say what is wrong, if anything is
        return None


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _fill(
    reading: Iterator[Activations], members: list[Member], layers: int, together: int, progress: Progress, device: str
) -> None:
    members.sort(key=lambda member: (member.kind, member.key[1], id(member.key[0]), member.group.name))
    with ThreadPoolExecutor(1) as clerk:  # books what one batch counted while the next is served
        booked = []
        for begin in range(0, layers, together):
            here = range(begin, min(begin + together, layers))
            scores = _all_scores(members, islice(reading, len(here)), len(here), device)
            for _, same in groupby(members, lambda member: member.kind):
                booked.append(clerk.submit(_book, here, Batch(list(same), scores).serve()))
            del scores  # before the next are made
            for layer in here:
                progress(layer + 1, layers)
        for future in booked:
            future.result()


def _book(layers: range, counted: Sequence[tuple[Member, Counted]]) -> None:
    for member, counts in counted:
        of_tokens = counts.swapaxes(0, 1)  # [T, L, places]
        wanted, found, held = np.moveaxis(of_tokens[..., : kernels.RUNS], 2, 0)
        runs, columns = np.split(of_tokens[..., kernels.RUNS :], 2, axis=2)
        book(member.plan, layers, member.group, Counts(wanted, found, runs, columns, held.max(axis=0)))


def _read_ahead(trace: Trace, tokens: int, layers: int, wanted: Sequence[str]) -> Iterator[Activations]:
    """The layers one by one, while threads read the next ones, and make what is `wanted` of them."""

    def read(index: int) -> Activations:
        acts = trace.layer(index, tokens)
        for name in wanted:
            getattr(acts, name)  # kept in acts
        return acts

    threads = min(AHEAD, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(read, index) for index in range(min(threads, layers)))
        for index in range(threads, threads + layers):
            acts = waiting.popleft().result()
            if index < layers:
                waiting.append(pool.submit(read, index))
            yield acts


def _layers_together(members: Sequence[Member], tried: dict[Key, tuple[float, int]], device: str) -> int:
    """How many layers keep the device busy, or by estimate fit into its memory; at least one."""
    busy = ceil(ROWS / max(Counter(member.kind for member in members).values()))
    if device == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        tokens = members[0].plan.tokens
        scores = {(tried[m.key][0], m.columns): tried[m.key][1] for m in members}
        masks = {(tried[m.key][0], m.group.k, m.kind): m for m in members if not m.policy.cache_aware}
        size = sum(tokens * columns * item for (_, columns), item in scores.items())
        size += sum(tokens * m.columns * (6 if m.plan.setting.eviction in CLAIRVOYANT else 2) for m in masks.values())
        size += sum((6 + 3 * tried[m.key][1]) * m.columns + 4 * tokens * kernels.places(m.columns) for m in members)
        busy = min(busy, int(MEMORY * free / size))
    return max(1, busy)


def _all_scores(
    members: Sequence[Member], reading: Iterable[Activations], layers: int, device: str
) -> dict[Key, Tensor]:
    """Scores [L, T, N] of the next layers by key. What is equal in all of them is one tensor."""
    found: dict[Key, Tensor] = {}
    different = _by_key(members)
    for layer, acts in enumerate(reading):
        moved = Moved(acts, device)
        written: dict[int, Tensor] = {}  # by identity: those that have this layer already
        for key, member in different.items():
            expected = (len(acts.mlp_input), member.columns)
            values = tensors.floats(tensors.scores(member.policy, member.group, moved, expected))
            mine = found.get(key)
            if mine is None:
                mine = next((other for other in written.values() if _equal(other[layer], values)), None)
                mine = values.new_empty((layers, *expected)) if mine is None else mine
            elif id(mine) in written and not _equal(mine[layer], values):
                mine = mine.clone()  # equal to another's only so far
            if id(mine) not in written:
                mine[layer] = values
                written[id(mine)] = mine
            found[key] = mine
    return found
