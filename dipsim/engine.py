"""FetchPlan x Device -> Timeline: Flash, DRAM and compute as SimPy resources that serve one request at a time.

A step's fetch, DRAM read and computation are one request each, with their time in closed form (`work.py`), so that
events stay few and demand and prefetch still meet in the queues where they would in hardware. What the three timing
modes mean is said in `bounds.py`, which must agree with the clock here.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import simpy

from dipsim.bounds import Timing
from dipsim.device import Device
from dipsim.plan import FetchPlan
from dipsim.timeline import PARTS, PREFILL, Span, Timeline
from dipsim.work import RESOURCES, Floats, Work, dram_traffic, work

STAGES: dict[Timing, tuple[tuple[int, ...], ...]] = {  # which resources serve a step side by side, in which order
    "serial": ((0,), (1,), (2,)),
    "concurrent": ((0, 1), (2,)),
    "pipelined": ((0, 1, 2),),
}
Process = Generator[simpy.Event, Any, None]
Owed = Sequence[Sequence[float]]  # (seconds, bytes) for Flash, DRAM, compute; or nothing


class Server:
    """A resource that serves requests in order of arrival, one at a time, and keeps a record of them."""

    def __init__(self, env: simpy.Environment, name: str, token: int, log: list[Span]) -> None:
        self.env, self.name, self.token, self.log = env, name, token, log
        self.turns = simpy.Resource(env, capacity=1)
        self.busy_s = 0.0

    def serve(self, step: int, seconds: float, size: float) -> Generator[simpy.Event, Any, Span]:
        """Wait for a turn, then take `seconds`; returns the span."""
        requested = self.env.now
        with self.turns.request() as turn:
            yield turn
            start = self.env.now
            yield self.env.timeout(seconds)
        self.busy_s += seconds
        self.log.append(Span(self.name, self.token, step, requested, start, self.env.now, size))
        return self.log[-1]


class _Clock:
    """One stretch that nothing overlaps, a prompt or a token, on a clock of its own that starts at 0.

    Laid end to end these make the run, and the sum of thousands of tokens does not blur the steps of one.
    """

    def __init__(self, token: int, timing: Timing) -> None:
        self.stages = STAGES[timing]
        self.env = simpy.Environment()
        self.log: list[Span] = []
        self.servers = [Server(self.env, name, token, self.log) for name in RESOURCES]
        self.parts = [0.0] * len(PARTS)

    def run(self, steps: Iterable[int], demand: Sequence[Owed], ahead: Sequence[Owed] = ()) -> float:
        """Simulate these steps; the seconds that they take."""
        self.env.process(self._steps(steps, demand, iter(ahead)))
        self.env.run()
        return float(self.env.now)

    def _steps(self, steps: Iterable[int], demand: Sequence[Owed], ahead: Iterator[Owed]) -> Process:
        """One step after the other; what is known ahead of a step is requested when the step before it begins."""
        early = self._request(0, next(ahead, ()))
        for step, owed in zip(steps, demand, strict=True):
            for stage in self.stages:
                requests = early + self._request(step, owed, stage)
                early = self._request(step + 1, next(ahead, ()))
                if requests:
                    yield from self._join(requests)

    def _request(self, step: int, owed: Owed, stage: Sequence[int] = (0, 1, 2)) -> list[simpy.Process]:
        return [
            self.env.process(self.servers[resource].serve(step, *owed[resource]))
            for resource in stage
            if owed and owed[resource][0] > 0
        ]

    def _join(self, requests: list[simpy.Process]) -> Process:
        """Wait for all requests, and book the time to the one that ended last."""
        begin = self.env.now
        yield self.env.all_of(requests) if len(requests) > 1 else requests[0]
        spans: list[Any] = [request.value for request in requests]
        last: Span = max(spans, key=lambda span: span.end_s)
        start = max(last.start_s, begin)
        self.parts[PARTS.index(last.resource)] += self.env.now - start
        self.parts[-1] += start - begin


def run(plan: FetchPlan, device: Device, timing: Timing, traced: Container[int] | None = None) -> Timeline:
    """Simulate a plan on a device; a deterministic function of its arguments.

    Spans are kept of the tokens in `traced`, by default of all.
    """
    owed = work(plan, device)
    demand, ahead = _owed(owed, plan, device, prefetch=timing == "pipelined")
    prompt = [[(seconds, 0.0) for seconds in owed.prefill.tolist()]]
    spans: list[Span] = []
    starts, latency, parts, busy = [], [], [], []
    now = ttft = 0.0
    for token in range(plan.tokens):
        if token in plan.sequence_starts:
            clock = _Clock(token, timing)
            ttft = clock.run([PREFILL], prompt)
            if traced is None or token in traced:
                spans += _shifted(clock.log, now)
            now += ttft
        clock = _Clock(token, timing)
        starts.append(now)
        latency.append(clock.run(range(len(plan.step)), demand[token], ahead[token]))
        if traced is None or token in traced:
            spans += _shifted(clock.log, now)
        parts.append(clock.parts)
        busy.append([server.busy_s for server in clock.servers])
        now += latency[-1]
    return Timeline(timing, spans, np.array(starts), np.array(latency), ttft, np.array(parts), np.array(busy))


def _shifted(log: Iterable[Span], by: float) -> Iterator[Span]:
    for name, token, step, request, start, end, size in log:
        yield Span(name, token, step, request + by, start + by, end + by, size)


def _owed(owed: Work, plan: FetchPlan, device: Device, prefetch: bool) -> tuple[list[list[Owed]], list[list[Owed]]]:
    """What each step of each token asks of (Flash, DRAM, compute), as (seconds, bytes): with the mask, and ahead."""
    static_bytes, masked_bytes = dram_traffic(plan, device)
    static = _pairs(owed.flash_static, plan.flash_static, owed.dram_static, static_bytes)
    masked = _pairs(owed.flash, plan.flash_misses, owed.dram, masked_bytes)
    masked[..., 2, 0] = owed.compute
    demand: list[list[Owed]] = (masked if prefetch else masked + static).tolist()
    ahead: list[list[Owed]] = static.tolist() if prefetch else [[] for _ in demand]
    return demand, ahead


def _pairs(flash_s: Floats, flash_bytes: Floats, dram_s: Floats, dram_bytes: Floats) -> Floats:
    """[T, P, 3, 2]: (seconds, bytes) of each resource; nothing for compute."""
    nothing = np.zeros_like(flash_s)
    pairs = ((flash_s, flash_bytes), (dram_s, dram_bytes), (nothing, nothing))
    return np.stack([np.stack(pair, axis=-1) for pair in pairs], axis=-2)
