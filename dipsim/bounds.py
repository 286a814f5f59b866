"""Closed-form times: a plan's timeline without events, and what no order of events can beat or exceed.

Within a token the steps follow each other; step p can start its masked transfers and its compute only when step p - 1
is done. `serial`: Flash, DRAM and compute of a step follow each other. `concurrent`: Flash and DRAM side by side,
then compute. `pipelined`: Flash, DRAM and compute side by side, and the static transfers of step p + 1 queue behind
those of step p, so that they move while the other resource is still busy. Tokens do not overlap.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from dipsim.device import Device
from dipsim.plan import FetchPlan
from dipsim.timeline import Timeline
from dipsim.work import RESOURCES, Floats, Work, work

Timing = Literal["serial", "concurrent", "pipelined"]
TIMINGS: tuple[Timing, ...] = ("serial", "concurrent", "pipelined")


def timeline(plan: FetchPlan, device: Device, timing: Timing) -> Timeline:
    """What the engine finds, without its events and spans."""
    owed = work(plan, device)
    parts = held_up_by(owed, timing)
    seconds = parts.sum(axis=-1)
    ttft = prefill(owed, timing)
    sequence = np.searchsorted(plan.sequence_starts, np.arange(plan.tokens), side="right")
    starts = np.cumsum(seconds) - seconds + ttft * sequence
    return Timeline(timing, [], starts, seconds, ttft, parts, owed.by_resource().sum(axis=-1).T)


def latency(work: Work, timing: Timing) -> Floats:
    """Seconds per token, [..., T], of work [..., T, P]."""
    return np.asarray(held_up_by(work, timing).sum(axis=-1))


def held_up_by(work: Work, timing: Timing) -> Floats:
    """Seconds per token by what it was held up by, [..., T, 4]: Flash, DRAM, compute, waiting in a queue."""
    if timing == "pipelined":
        return _pipelined(work)
    flash, dram = work.flash_static + work.flash, work.dram_static + work.dram
    if timing == "concurrent":
        first = _begins(np.maximum(flash, dram), work.compute)
        flash_last = first + flash >= first + dram  # equal to rounding is a tie, as for the engine, which compares ends
        flash, dram = np.where(flash_last, flash, 0.0), np.where(flash_last, 0.0, dram)
    parts = [part.sum(axis=-1) for part in np.broadcast_arrays(flash, dram, work.compute)]
    return np.stack([*parts, np.zeros_like(parts[0])], axis=-1)


def _begins(transfer: Floats, compute: Floats) -> Floats:
    """When each step begins, [..., P]: the sums that the engine's clock makes, one after the other."""
    spent = np.stack(np.broadcast_arrays(transfer, compute), axis=-1)
    flat = spent.reshape(*spent.shape[:-2], -1)
    ends = np.cumsum(flat, axis=-1)
    return np.concatenate([np.zeros_like(ends[..., :1]), ends[..., 1:-1:2]], axis=-1)


def _pipelined(work: Work) -> Floats:
    """When step p - 1 is done, each resource is asked for the masked transfer of step p, then for the static of p + 1.

    A step ends with the last of its requests, which is served from `start` or, if it was ahead, from the step's begin.
    """
    services = (work.flash_static, work.dram_static, work.flash, work.dram, work.compute)
    owed = [np.ascontiguousarray(np.moveaxis(service, -1, 0)) for service in np.broadcast_arrays(*services)]  # [P, ...]
    anything = [[bool(step.any()) for step in service] for service in owed]
    done = np.zeros_like(owed[0][0])
    early = [_served(done, done, service[0]) for service in owed[:2]]  # the step's static requests
    parts = np.zeros((len(RESOURCES) + 1, *done.shape))
    for p in range(len(owed[0])):
        asked = start = done
        masked = [_served(end, asked, service[p]) for (_, end), service in zip(early, owed[2:4], strict=True)]
        last = np.zeros(done.shape, dtype=np.int8)
        for request, (begin, end) in enumerate((*early, *masked, (asked, asked + owed[4][p]))):
            if anything[request][p]:
                later = (owed[request][p] > 0) & (end > done)
                done, start = np.where(later, end, done), np.where(later, begin, start)
                last[later] = request
        start = np.maximum(start, asked)
        for request, resource in enumerate((0, 1, 0, 1, 2)):
            if anything[request][p]:
                parts[resource] += np.where(last == request, done - start, 0.0)
        parts[-1] += start - asked
        if p + 1 < len(owed[0]):
            early = [_served(end, asked, service[p + 1]) for (_, end), service in zip(masked, owed[:2], strict=True)]
    return np.moveaxis(parts, 0, -1)


def _served(free: Floats, asked: Floats, service: Floats) -> tuple[Floats, Floats]:
    """(start, end) of a request made at `asked` to a resource busy until `free`; nothing to do takes no turn."""
    start = np.maximum(free, asked)
    return start, np.where(service > 0, start + service, free)


def prefill(work: Work, timing: Timing) -> float:
    """Seconds to encode the prompt, the time to first token: Flash and DRAM added, or side by side."""
    flash, dram, compute = work.prefill
    if timing == "serial":
        return float(flash + dram + compute)
    return float(max(flash, dram) + compute) if timing == "concurrent" else float(max(flash, dram, compute))


def bounds(work: Work) -> tuple[Floats, Floats]:
    """Seconds per token, [..., T] each: the busiest resource on its own, and everything one after the other."""
    totals = work.by_resource().sum(axis=-1)
    return totals.max(axis=0), totals.sum(axis=0)
