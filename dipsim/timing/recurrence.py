"""The timeline in closed form: recurrences over arrays that say what the engine finds, without events and spans.

Within a token the steps follow each other. Step p can start its masked transfers and its compute only when step p - 1
is done. In `serial`, Flash, DRAM and compute of a step follow each other. In `concurrent`, Flash and DRAM run side by
side, then compute. In `pipelined` all three run side by side, and the static transfers of step p + 1 queue behind those
of step p, so that they move while the other resource is still busy. Tokens do not overlap. The equations are in
docs/background.md, section 6.
"""

from __future__ import annotations

import numpy as np

from dipsim.basics.arrays import Floats
from dipsim.planning.fetch_plan import FetchPlan
from dipsim.timing.device import Device
from dipsim.timing.service import ServiceTimes, service_times
from dipsim.timing.timeline import BREAKDOWN, WAIT, Resource, Timeline, Timing

Interval = tuple[Floats, Floats]  # (start, end) of a request, seconds


def timeline(plan: FetchPlan, device: Device, timing: Timing) -> Timeline:
    """The timeline of a plan on a device, without spans."""
    service = service_times(plan, device)
    parts = breakdown(service, timing)
    seconds = parts.sum(axis=-1)
    ttft = prefill_time(service, timing)
    sequence = np.searchsorted(plan.sequence_starts, np.arange(plan.tokens), side="right")
    return Timeline(
        timing=timing,
        spans=[],
        start_s=np.cumsum(seconds) - seconds + ttft * sequence,
        latency_s=seconds,
        ttft_s=ttft,
        parts_s=parts,
        busy_s=service.by_resource(timing).sum(axis=-1).T,
    )


def latency(service: ServiceTimes, timing: Timing) -> Floats:
    """Seconds per token, [..., T], of service times [..., T, P]."""
    return np.asarray(breakdown(service, timing).sum(axis=-1))


def breakdown(service: ServiceTimes, timing: Timing) -> Floats:
    """Seconds per token by what it waited for, [..., T, 4], in the order of BREAKDOWN."""
    if timing == "pipelined":
        return _pipelined(service)
    flash, dram = service.flash_static + service.flash, service.dram_static + service.dram
    if timing == "concurrent":
        begin = _begins(np.maximum(flash, dram), service.compute)
        flash_last = begin + flash >= begin + dram  # compared as ends, as the engine does, so that rounding ties alike
        flash, dram = np.where(flash_last, flash, 0.0), np.where(flash_last, 0.0, dram)
    parts = [part.sum(axis=-1) for part in np.broadcast_arrays(flash, dram, service.compute)]
    return np.stack([*parts, np.zeros_like(parts[0])], axis=-1)


def prefill_time(service: ServiceTimes, timing: Timing) -> float:
    """Seconds to encode the prompt, the time to first token."""
    flash, dram, compute = service.prefill
    if timing == "serial":
        return float(flash + dram + compute)
    return float(max(flash, dram) + compute) if timing == "concurrent" else float(max(flash, dram, compute))


def _begins(transfer: Floats, compute: Floats) -> Floats:
    """When each step begins, [..., P]: the sums that the engine's clock makes, one after the other."""
    spent = np.stack(np.broadcast_arrays(transfer, compute), axis=-1)
    flat = spent.reshape(*spent.shape[:-2], -1)
    ends = np.cumsum(flat, axis=-1)
    return np.concatenate([np.zeros_like(ends[..., :1]), ends[..., 1:-1:2]], axis=-1)


def _pipelined(service: ServiceTimes) -> Floats:
    """When step p - 1 is done, each resource is asked for the masked transfer of step p, then for the static of p + 1.

    A step ends with the last of its requests, and with what they interrupted. The token waited for the last one from
    its start or, where it had started earlier, from the begin of the step.
    """
    flash_static, dram_static, flash, dram, compute, interrupts = (
        np.ascontiguousarray(np.moveaxis(seconds, -1, 0))  # [P, ...]
        for seconds in np.broadcast_arrays(
            service.flash_static, service.dram_static, service.flash, service.dram, service.compute, service.interrupts
        )
    )
    done = np.zeros_like(compute[0])
    ahead = (_served(done, done, flash_static[0]), _served(done, done, dram_static[0]))
    parts = np.zeros((len(BREAKDOWN), *done.shape))
    for p in range(len(compute)):
        begin = done
        flash_masked, dram_masked = _served(ahead[0][1], begin, flash[p]), _served(ahead[1][1], begin, dram[p])
        done = _book_last(
            parts,
            begin,
            (
                (Resource.FLASH, flash_static[p], ahead[0]),
                (Resource.DRAM, dram_static[p], ahead[1]),
                (Resource.FLASH, flash[p], flash_masked),
                (Resource.DRAM, dram[p], dram_masked),
                (Resource.COMPUTE, compute[p], (begin, begin + compute[p])),
            ),
        )
        done = done + interrupts[p]
        parts[Resource.COMPUTE] += interrupts[p]
        if p + 1 < len(compute):
            ahead = (
                _served(flash_masked[1], begin, flash_static[p + 1]),
                _served(dram_masked[1], begin, dram_static[p + 1]),
            )
    return np.moveaxis(parts, 0, -1)


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
