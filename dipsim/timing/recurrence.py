"""The timeline in closed form: recurrences over arrays that say what the engine finds, without events and spans.

Within a token the steps follow each other. Step p can start its masked transfers and its compute only when step p - 1
is done. In `serial`, Flash, DRAM and compute of a step follow each other. In `concurrent`, Flash and DRAM run side by
side, then compute. In `pipelined` all three run side by side, and the static transfers of step p + 1 queue behind those
of step p, so that they move while the other resource is still busy; those of the next token's first step queue behind
the last step. The equations are in docs/background/equations.md, section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dipsim.basics.arrays import Floats, Mask
from dipsim.planning.fetch_plan import FetchPlan
from dipsim.timing.device import Device
from dipsim.timing.service import ServiceTimes, service_times
from dipsim.timing.timeline import BREAKDOWN, WAIT, Resource, Timeline, Timing

Interval = tuple[Floats, Floats]  # (start, end) of a request, seconds
LAST = 6  # steps of a token, at its end, that mostly decide what is ahead of the next
ROUNDING = 1e-14  # of a token's latency


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
    return encoding_time(service.prefill.tolist(), timing)


def encoding_time(prefill: Sequence[float], timing: Timing) -> float:
    """The same, from the service of Flash, DRAM and compute (and of further resources, which prompts do not use)."""
    flash, dram, compute, *_ = prefill
    if timing == "serial":
        return float(flash + dram + compute)
    return float(max(flash, dram) + compute) if timing == "concurrent" else float(max(flash, dram, compute))


def _pipelined(service: ServiceTimes, starts: Sequence[int]) -> tuple[Floats, Floats]:
    """`parts_s` and `waited_s` of a timeline in which all resources run side by side.

    A token begins with what the one before asked for ahead. All tokens are computed side by side: at first as if what
    is ahead followed from the last steps of the one before alone, and again until it is what that one left.
    """
    fresh = np.isin(np.arange(len(service.compute)), starts)
    steps = _Steps(
        np.stack([service.flash_static.T, service.dram_static.T], axis=1),
        np.stack([service.flash.T, service.dram.T], axis=1),
        np.ascontiguousarray(service.compute.T),
        np.ascontiguousarray(service.interrupts.T),
    )
    first = np.roll(steps.static[0], -1, axis=-1)
    _, _, left = _tokens(
        _Steps(*(seconds[-LAST:] for seconds in steps)), first, np.zeros((3, *first.shape)), np.ones_like(fresh)
    )
    while True:
        ahead = np.where(fresh, 0.0, np.roll(left, 1, axis=-1))
        parts, waited, left = _tokens(steps, first, ahead, fresh)
        off = np.abs(np.where(fresh, 0.0, np.roll(left, 1, axis=-1)) - ahead)
        if (off <= ROUNDING * parts.sum(axis=-1)).all():
            return parts, waited


class _Steps(NamedTuple):
    """Service times by step: of static and masked transfers [P, 2, T], of compute and what interrupts it [P, T]."""

    static: Floats
    masked: Floats
    compute: Floats
    interrupts: Floats


def _tokens(steps: _Steps, first: Floats, ahead: Floats, fresh: Mask) -> tuple[Floats, Floats, Floats]:
    """Tokens that begin at 0 with the static transfers of their first step asked for `ahead`, or else `fresh` [T].

    `ahead` [3, 2, T] is when they are served from, when they end, and how long they waited, of Flash and DRAM. `first`
    [2, T] are the static transfers of the first step of the next token.

    When step p - 1 is done, each resource is asked for the masked transfer of step p, then for the static of p + 1. A
    step ends with the last of its requests, and with what they interrupted. The token waited for the last one from its
    start or, where it had started earlier, from the begin of the step. Returns parts and waiting, [T, 4] and [T, 3],
    and what is ahead of the next token, as `ahead`.
    """
    done = np.zeros(len(fresh))
    begin_s, end_s = _served(done, done, steps.static[0])
    early = (np.where(fresh, begin_s, ahead[0]), np.where(fresh, end_s, ahead[1]))
    parts = np.zeros((len(BREAKDOWN), *done.shape))
    following = np.concatenate([steps.static[1:], first[None]])
    delays = np.empty((2, *following.shape))  # of masked transfers, and of those ahead of the next step
    for p, (static, masked, compute, interrupts) in enumerate(zip(*steps, strict=True)):
        begin = done
        needed = _served(early[1], begin, masked)
        done = _book_last(
            parts,
            begin,
            (
                (Resource.FLASH, static[0], (early[0][0], early[1][0])),
                (Resource.DRAM, static[1], (early[0][1], early[1][1])),
                (Resource.FLASH, masked[0], (needed[0][0], needed[1][0])),
                (Resource.DRAM, masked[1], (needed[0][1], needed[1][1])),
                (Resource.COMPUTE, compute, (begin, begin + compute)),
            ),
        )
        done = done + interrupts
        parts[Resource.COMPUTE] += interrupts
        early = _served(needed[1], begin, following[p])
        np.subtract(needed[0], begin, out=delays[0, p])
        np.subtract(early[0], begin, out=delays[1, p])
    delays[0] *= steps.masked > 0
    delays[1] *= following > 0
    waited = np.where(fresh, 0.0, ahead[2]) + delays[0].sum(axis=0) + delays[1, :-1].sum(axis=0)
    over = np.maximum(early[0] - done, 0), np.maximum(early[1] - done, 0)  # what ended before begins with the token
    return parts.T, np.append(waited, np.zeros((1, len(fresh))), axis=0).T, np.stack([*over, delays[1, -1]])


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
