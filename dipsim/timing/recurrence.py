"""The timeline in closed form: recurrences over arrays that say what the engine finds, without events and spans.

Within a token the steps follow each other. Step p can start its masked transfers and its compute only when step p - 1
is done. In `serial`, Flash, DRAM and compute of a step follow each other. In `concurrent`, Flash and DRAM run side by
side, then compute. In `pipelined` all three run side by side, and the static transfers of step p + 1 queue behind those
of step p, so that they move while the other resource is still busy; those of the next token's first step queue behind
the last step. The equations are in docs/background.md, section 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipsim.basics.arrays import Floats, Mask
from dipsim.planning.fetch_plan import FetchPlan
from dipsim.timing.device import Device
from dipsim.timing.service import ServiceTimes, service_times
from dipsim.timing.timeline import BREAKDOWN, WAIT, Resource, Timeline, Timing

Interval = tuple[Floats, Floats]  # (start, end) of a request, seconds


def timeline(plan: FetchPlan, device: Device, timing: Timing) -> Timeline:
    """The timeline of a plan on a device, without spans."""
    service = service_times(plan, device)
    parts, waited = _pipelined(service, plan.sequence_starts) if timing == "pipelined" else _one_by_one(service, timing)
    seconds = parts.sum(axis=-1)
    ttft = prefill_time(service, timing)
    sequence = np.searchsorted(plan.sequence_starts, np.arange(plan.rows), side="right")
    return Timeline(
        timing=timing,
        spans=[],
        start_s=np.cumsum(seconds) - seconds + ttft * sequence,
        latency_s=seconds,
        ttft_s=ttft,
        parts_s=parts,
        busy_s=service.by_resource(timing).sum(axis=-1).T,
        waited_s=waited,
    )


def latency(service: ServiceTimes, timing: Timing, starts: Sequence[int] = (0,)) -> Floats:
    """Seconds per token, [T], of service times [T, P]; sequences begin at the tokens `starts`."""
    parts, _ = _pipelined(service, starts) if timing == "pipelined" else _one_by_one(service, timing)
    return np.asarray(parts.sum(axis=-1))


def _one_by_one(service: ServiceTimes, timing: Timing) -> tuple[Floats, Floats]:
    """`parts_s` and `waited_s` of a timeline where steps follow each other: nothing waits for another."""
    flash, dram = service.flash_static + service.flash, service.dram_static + service.dram
    if timing == "concurrent":
        flash_last = flash >= dram
        flash, dram = np.where(flash_last, flash, 0.0), np.where(flash_last, 0.0, dram)
    parts = np.stack([part.sum(axis=-1) for part in (flash, dram, service.compute)], axis=-1)
    nothing = np.zeros_like(parts)
    return np.concatenate([parts, nothing[:, :1]], axis=-1), nothing


def prefill_time(service: ServiceTimes, timing: Timing) -> float:
    """Seconds to encode the prompt, the time to first token."""
    flash, dram, compute = service.prefill
    if timing == "serial":
        return float(flash + dram + compute)
    return float(max(flash, dram) + compute) if timing == "concurrent" else float(max(flash, dram, compute))


def _pipelined(service: ServiceTimes, starts: Sequence[int]) -> tuple[Floats, Floats]:
    """`parts_s` and `waited_s` of a timeline in which all resources run side by side.

    A token begins with what the one before asked for ahead. All tokens are computed side by side, at first as if there
    were nothing ahead, and again until what is ahead of each is what the one before it left.
    """
    fresh = np.isin(np.arange(len(service.compute)), starts)
    ahead = np.zeros((3, 2, len(fresh)))
    while True:
        parts, waited, left = _tokens(service, ahead, fresh)
        following = np.roll(left, 1, axis=-1)
        following[..., fresh] = 0.0
        if np.array_equal(following, ahead):
            return parts, waited
        ahead = following


def _tokens(service: ServiceTimes, ahead: Floats, fresh: Mask) -> tuple[Floats, Floats, Floats]:
    """Tokens that begin at 0 with the static transfers of their first step asked for `ahead`, or else `fresh` [T].

    `ahead` [3, 2, T] is when they are served from, when they end, and how long they waited, of Flash and DRAM.

    When step p - 1 is done, each resource is asked for the masked transfer of step p, then for the static of p + 1. A
    step ends with the last of its requests, and with what they interrupted. The token waited for the last one from its
    start or, where it had started earlier, from the begin of the step. Returns parts and waiting, [T, 4] and [T, 3],
    and what is ahead of the next token, as `ahead`.
    """
    static = np.stack([service.flash_static, service.dram_static])  # [2, T, P]
    masked = np.stack([service.flash, service.dram])
    done, positions = np.zeros(len(fresh)), service.compute.shape[1]
    begin_s, end_s = _served(done, done, static[..., 0])
    early = (np.where(fresh, begin_s, ahead[0]), np.where(fresh, end_s, ahead[1]))
    waited = np.where(fresh, 0.0, ahead[2])
    parts = np.zeros((len(BREAKDOWN), *done.shape))
    for p in range(positions):
        begin = done
        needed = _served(early[1], begin, masked[..., p])
        waited = waited + np.where(masked[..., p] > 0, needed[0] - begin, 0.0)
        compute = service.compute[:, p]
        done = _book_last(
            parts,
            begin,
            (
                (Resource.FLASH, static[0, :, p], (early[0][0], early[1][0])),
                (Resource.DRAM, static[1, :, p], (early[0][1], early[1][1])),
                (Resource.FLASH, masked[0, :, p], (needed[0][0], needed[1][0])),
                (Resource.DRAM, masked[1, :, p], (needed[0][1], needed[1][1])),
                (Resource.COMPUTE, compute, (begin, begin + compute)),
            ),
        )
        interrupts = service.interrupts[:, p]
        done = done + interrupts
        parts[Resource.COMPUTE] += interrupts
        following = static[..., p + 1] if p + 1 < positions else np.roll(static[..., 0], -1, axis=-1)
        early = _served(needed[1], begin, following)
        delay = np.where(following > 0, early[0] - begin, 0.0)
        waited = waited + delay * (p + 1 < positions)
    left = np.stack([early[0] - done, early[1] - done, delay])
    all_waited = np.concatenate([waited, np.zeros((1, len(fresh)))])
    return np.moveaxis(parts, 0, -1), np.moveaxis(all_waited, 0, -1), left


def _book_last(parts: Floats, begin: Floats, requests: tuple[tuple[Resource, Floats, Interval], ...]) -> Floats:
    """Add a step's time to the `parts` [4, ...] of the request that ends last; return when the step is done.

    `requests` are (resource, seconds of service, interval). Of requests that end together, the first counts.
    """
    done = start = begin
    last = np.zeros(begin.shape, dtype=np.int8)
    asked = [(index, *request) for index, request in enumerate(requests) if request[1].any()]
    for index, _, seconds, (served_from, end) in asked:
        later = (seconds > 0) & (end > done)
        done, start = np.where(later, end, done), np.where(later, served_from, start)
        last[later] = index
    start = np.maximum(start, begin)
    for index, resource, _, _ in asked:
        parts[resource] += np.where(last == index, done - start, 0.0)
    parts[WAIT] += start - begin
    return done


def _served(free: Floats, asked: Floats, seconds: Floats) -> Interval:
    """(start, end) of a request made at `asked` to a resource that is busy until `free`; no service takes no turn."""
    start = np.maximum(free, asked)
    return start, np.where(seconds > 0, start + seconds, free)
