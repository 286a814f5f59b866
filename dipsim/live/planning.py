"""Planning on a GPU: the caches of many layers and settings step from token to token side by side (`batch.py`).

Activations are read on the CPU, some layers ahead. Scores, and masks that do not see the cache, are made for all tokens
at once and shared by all settings that have the same. The plans are the CPU's (`tests/test_planning.py`): a policy
whose formulas do not give the same bits here is left to the CPU.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipsim import plan as cpu
from dipsim.live import kernels, tensors
from dipsim.live.batch import Batch, Counted, Key, Member, rerank
from dipsim.plan import Counts, FetchPlan, Progress, book
from dipsim.policy import Policy, guarded, wrong_scores
from dipsim.trace import Activations, Trace

AHEAD = 8  # layers that are read meanwhile, each by a thread
ROWS = 4096  # caches side by side that keep a GPU busy
MEMORY = 0.6  # of what is free, for the layers that are planned together
TRIED = 4  # tokens on which a policy is tried


class Moved:
    """A layer's activations on a device, each moved when it is first asked for."""

    def __init__(self, acts: Activations, device: str) -> None:
        self._acts, self._device, self.layer = acts, device, acts.layer

    def __getattr__(self, name: str) -> Tensor:
        values = torch.tensor(getattr(self._acts, name), device=self._device)
        setattr(self, name, values)
        return values


def fill(trace: Trace, plans: Sequence[FetchPlan], layers: int, progress: Progress, device: str) -> None:
    """`plan.fill` on a device. Raises InputError if there is no such device."""
    tensors.check_device(device)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # a mask times a Python number is then what it is in numpy
    try:
        members = [Member(plan, group) for plan in plans for group in plan.groups]
        other = {key for key, member in _by_key(members).items() if not _same_bits(member, device)}
        apart = {id(member.plan): member.plan for member in members if member.key in other}
        members = [member for member in members if id(member.plan) not in apart]
        if apart:
            cpu.fill(trace, [*apart.values()], layers, (lambda _done, _total: None) if members else progress)
        if members:
            _fill(trace, members, layers, progress, device)
    finally:
        torch.set_default_dtype(usual)


def _by_key(members: Sequence[Member]) -> dict[Key, Member]:
    """One member for each key."""
    return {member.key: member for member in members}


def _same_bits(member: Member, device: str) -> bool:
    """Whether a policy gives on tensors bit for bit what it gives on arrays, tried on a few tokens."""
    policy, group, shape = member.policy, member.group, member.plan.shape
    rng = np.random.default_rng(0)
    size = (TRIED, shape.intermediate_size)
    x, gate, up = (rng.standard_normal(each, dtype=np.float32) for each in ((TRIED, shape.hidden_size), size, size))
    acts = Activations(x, gate, up)
    resident = rng.random((TRIED, member.columns)) < 0.5

    def same(expected: NDArray[Any], found: Tensor) -> bool:
        return found.shape == resident.shape and _equal(tensors.floats(torch.tensor(expected, device=device)), found)

    try:
        scores, moved = policy.scores(group, acts), _scores(member, Moved(acts, device))
        if not policy.cache_aware or not same(scores, moved):
            return same(scores, moved)
        ranked = np.stack([policy.rerank(*row) for row in zip(scores, resident, strict=True)])
        there = rerank(policy, moved, torch.tensor(resident, device=device)[:, None])[:, 0]
        return type(policy).select is Policy.select and same(ranked, there)
    except Exception:  # the CPU will say what is wrong, if anything is
        return False


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _scores(member: Member, acts: Moved) -> Tensor:
    """[T, N], float32 or float64."""
    return tensors.floats(guarded(member.policy, "scores", lambda: member.policy.scores(member.group, acts)))


def _fill(trace: Trace, members: list[Member], layers: int, progress: Progress, device: str) -> None:
    members.sort(key=lambda member: (member.kind, member.key[0], member.group.name))
    tokens = members[0].plan.tokens
    reading = _read_ahead(trace, tokens, layers, any(member.group.axis == "neuron" for member in members))
    together = _layers_together(members, tokens, device)
    with ThreadPoolExecutor(1) as clerk:  # books what one batch counted while the next is served
        booked = []
        for begin in range(0, layers, together):
            here = range(begin, min(begin + together, layers))
            scores = _all_scores(members, islice(reading, len(here)), len(here), device)
            for _, same in groupby(members, lambda member: member.kind):
                booked.append(clerk.submit(_book, here, Batch(list(same), scores).serve()))
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


def _read_ahead(trace: Trace, tokens: int, layers: int, glu: bool) -> Iterator[Activations]:
    """The layers one by one, while threads read the next ones."""

    def read(index: int) -> Activations:
        acts = trace.layer(index, tokens)
        if glu:
            _ = acts.glu  # kept in acts
        return acts

    with ThreadPoolExecutor(AHEAD) as pool:
        waiting = deque(pool.submit(read, index) for index in range(min(AHEAD, layers)))
        for index in range(AHEAD, AHEAD + layers):
            acts = waiting.popleft().result()
            if index < layers:
                waiting.append(pool.submit(read, index))
            yield acts


def _layers_together(members: Sequence[Member], tokens: int, device: str) -> int:
    """How many layers keep the device busy, or by estimate fit into its memory; at least one."""
    busy = ceil(ROWS / max(Counter(member.kind for member in members).values()))
    if device == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        shared = {(type(m.policy), m.policy.cache_aware or (m.group.k, m.kind), m.group.name): m for m in members}
        size = sum(tokens * m.columns * (4 if m.policy.cache_aware else 7) for m in shared.values())
        size += sum(9 * m.columns + 4 * tokens * kernels.places(m.columns) for m in members)
        busy = min(busy, int(MEMORY * free / size))
    return max(1, busy)


def _all_scores(
    members: Sequence[Member], reading: Iterable[Activations], layers: int, device: str
) -> dict[Key, Tensor]:
    """Scores [L, T, N] of the next layers by key. What is equal in all of them is one tensor."""
    found: dict[Key, Tensor] = {}
    for layer, acts in enumerate(reading):
        moved = Moved(acts, device)
        written: dict[int, Tensor] = {}  # by identity: those that have this layer already
        for key, member in _by_key(members).items():
            values = _scores(member, moved)
            expected = (len(acts.mlp_input), member.columns)
            if values.shape != expected or values.isnan().any():
                raise wrong_scores(member.policy, member.group, expected, f"{values.dtype} {list(values.shape)}")
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
