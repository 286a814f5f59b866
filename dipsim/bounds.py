"""Closed-form times: a plan's latency without events, and what no order of events can beat or exceed.

Within a token the steps follow each other; step p can start its masked transfers and its compute only when step p - 1
is done. `serial`: Flash, DRAM and compute of a step follow each other. `concurrent`: Flash and DRAM side by side,
then compute. `pipelined`: Flash, DRAM and compute side by side, and the static transfers of step p + 1 queue behind
those of step p, so that they move while the other resource is still busy. Tokens do not overlap.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from dipsim.work import Floats, Work

Timing = Literal["serial", "concurrent", "pipelined"]
TIMINGS: tuple[Timing, ...] = ("serial", "concurrent", "pipelined")


def latency(work: Work, timing: Timing) -> Floats:
    """Seconds per token, [..., T], of work [..., T, P] where every resource serves in order of arrival."""
    flash, dram = work.flash_static + work.flash, work.dram_static + work.dram
    if timing == "serial":
        return np.asarray((flash + dram + work.compute).sum(axis=-1))
    if timing == "concurrent":
        return np.asarray((np.maximum(flash, dram) + work.compute).sum(axis=-1))
    return _pipelined(work)


def _pipelined(work: Work) -> Floats:
    """At done[p - 1] each resource is asked for the masked transfer of step p, then for the static one of p + 1."""
    steps = work.compute.shape[-1]
    done = np.zeros_like(work.compute[..., 0] + work.flash[..., 0] + work.dram[..., 0])
    flash_free, dram_free = done + work.flash_static[..., 0], done + work.dram_static[..., 0]
    for p in range(steps):
        asked = done
        flash_ready = _after(flash_free, asked, work.flash[..., p])
        dram_ready = _after(dram_free, asked, work.dram[..., p])
        done = np.maximum(np.maximum(flash_ready, dram_ready), asked + work.compute[..., p])
        if p + 1 < steps:
            flash_free = _after(flash_ready, asked, work.flash_static[..., p + 1])
            dram_free = _after(dram_ready, asked, work.dram_static[..., p + 1])
    return done


def _after(free: Floats, ready: Floats, service: Floats) -> Floats:
    """When a request made at `ready` is served by a resource that is busy until `free`; nothing to do takes no turn."""
    return np.where(service > 0, np.maximum(free, ready) + service, free)


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
