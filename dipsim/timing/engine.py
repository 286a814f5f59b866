"""The discrete-event engine: Flash, DRAM and compute as SimPy resources that serve one request at a time.

A step's fetch, DRAM read and computation are one request each, whose service time is in closed form (`service.py`). So
events stay few, and demand and prefetch still meet in the queues where they would in hardware. `recurrence.py` says
what the three timing modes mean, and finds the same times without events.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import simpy

from dipsim.basics.arrays import Floats
from dipsim.planning.fetch_plan import FetchPlan
from dipsim.timing.device import Device
from dipsim.timing.service import ServiceTimes, dram_traffic, service_times
from dipsim.timing.timeline import BREAKDOWN, PREFILL, RESOURCES, WAIT, Resource, Span, Timeline, Timing

STAGES: dict[Timing, tuple[tuple[Resource, ...], ...]] = {  # which resources serve a step side by side, in which order
    "serial": ((Resource.FLASH,), (Resource.DRAM,), (Resource.COMPUTE,)),
    "concurrent": ((Resource.FLASH, Resource.DRAM), (Resource.COMPUTE,)),
    "pipelined": (tuple(Resource),),
}
Process = Generator[simpy.Event, Any, None]


class Request(NamedTuple):
    """What a step asks of each resource, in the order of `Resource`."""

    seconds: Sequence[float]
    bytes: Sequence[float]


NOTHING = Request((0.0,) * len(Resource), (0.0,) * len(Resource))


class Server:
    """A resource that serves requests in order of arrival, one at a time, and records them."""

    def __init__(self, env: simpy.Environment, name: str, token: int, log: list[Span]) -> None:
        self.env, self.name, self.token, self.log = env, name, token, log
        self.turns = simpy.Resource(env, capacity=1)
        self.busy_s = 0.0

    def serve(self, step: int, seconds: float, size: float) -> Generator[simpy.Event, Any, Span]:
        """Wait for a turn, then take `seconds` for `size` bytes; return the span."""
        requested = self.env.now
        with self.turns.request() as turn:
            yield turn
            start = self.env.now
            yield self.env.timeout(seconds)
        self.busy_s += seconds
        self.log.append(Span(self.name, self.token, step, requested, start, self.env.now, size))
        return self.log[-1]


class _Stretch:
    """A prompt or a token, which nothing overlaps, on a clock of its own that starts at 0.

    Stretches laid end to end make the run. So the sum of thousands of tokens does not blur the steps of one.
    """

    def __init__(self, token: int, timing: Timing) -> None:
        self.stages = STAGES[timing]
        self.env = simpy.Environment()
        self.log: list[Span] = []
        self.servers = [Server(self.env, name, token, self.log) for name in RESOURCES]
        self.parts = [0.0] * len(BREAKDOWN)

    def run(
        self,
        steps: Iterable[int],
        demand: Iterable[Request],
        ahead: Iterable[Request] = (),
        after: Iterable[Request] = (),
    ) -> float:
        """Simulate these steps; return the seconds that they take."""
        self.env.process(self._steps(steps, demand, iter(ahead), iter(after)))
        self.env.run()
        return float(self.env.now)

    def _steps(
        self, steps: Iterable[int], demand: Iterable[Request], ahead: Iterator[Request], after: Iterator[Request]
    ) -> Process:
        """One step after the other. What is known ahead of a step is requested when the step before it begins.

        What a step interrupted comes after it.
        """
        early = self._ask(0, next(ahead, NOTHING))
        for step, request in zip(steps, demand, strict=True):
            for stage in self.stages:
                asked = early + self._ask(step, request, stage)
                early = self._ask(step + 1, next(ahead, NOTHING))
                if asked:
                    yield from self._join(asked)
            if interrupted := self._ask(step, next(after, NOTHING)):
                yield from self._join(interrupted)

    def _ask(self, step: int, request: Request, stage: Iterable[Resource] = tuple(Resource)) -> list[simpy.Process]:
        return [
            self.env.process(self.servers[resource].serve(step, request.seconds[resource], request.bytes[resource]))
            for resource in stage
            if request.seconds[resource] > 0
        ]

    def _join(self, asked: list[simpy.Process]) -> Process:
        """Wait for all requests, and book the time to the one that ended last."""
        begin = self.env.now
        yield self.env.all_of(asked) if len(asked) > 1 else asked[0]
        spans: list[Any] = [process.value for process in asked]
        last: Span = max(spans, key=lambda span: span.end_s)
        start = max(last.start_s, begin)
        self.parts[RESOURCES.index(last.resource)] += self.env.now - start
        self.parts[WAIT] += start - begin


def run(plan: FetchPlan, device: Device, timing: Timing, traced: Container[int] | None = None) -> Timeline:
    """Simulate a plan on a device. The result is a deterministic function of the arguments.

    Spans are kept of the tokens in `traced`, by default of all.
    """
    service = service_times(plan, device)
    demand, ahead, after = _requests(service, plan, device, prefetch=timing == "pipelined")
    prompt = [Request(service.prefill.tolist(), NOTHING.bytes)]
    spans: list[Span] = []
    starts, latency, parts, busy = [], [], [], []
    now = ttft = 0.0
    for token in range(plan.tokens):
        kept = traced is None or token in traced
        if token in plan.sequence_starts:
            encoding = _Stretch(token, timing)
            ttft = encoding.run([PREFILL], prompt)
            spans += _shifted(encoding.log, now) if kept else ()
            now += ttft
        decoding = _Stretch(token, timing)
        starts.append(now)
        latency.append(decoding.run(range(len(plan.step)), demand[token], ahead[token], after[token]))
        spans += _shifted(decoding.log, now) if kept else ()
        parts.append(decoding.parts)
        busy.append([server.busy_s for server in decoding.servers])
        now += latency[-1]
    return Timeline(timing, spans, np.array(starts), np.array(latency), ttft, np.array(parts), np.array(busy))


def _shifted(log: Iterable[Span], by: float) -> Iterator[Span]:
    for name, token, step, request, start, end, size in log:
        yield Span(name, token, step, request + by, start + by, end + by, size)


def _requests(
    service: ServiceTimes, plan: FetchPlan, device: Device, prefetch: bool
) -> tuple[list[list[Request]], list[list[Request]], list[list[Request]]]:
    """The requests of each step of each token, [T][P]: those that need the mask, and with `prefetch` those ahead of it,
    and those after it, of compute that reads interrupted.

    Without `prefetch` the first hold everything, and nothing is interrupted.
    """
    static_bytes, masked_bytes = dram_traffic(plan, device)
    none = np.zeros_like(service.compute)
    static_s = np.stack([service.flash_static, service.dram_static, none], axis=-1)  # [T, P, 3], as below
    masked_s = np.stack([service.flash, service.dram, service.compute], axis=-1)
    static_b = np.stack([plan.flash_static, static_bytes, none], axis=-1)
    masked_b = np.stack([plan.flash_read_bytes, masked_bytes, none], axis=-1)
    nothing: list[list[Request]] = [[] for _ in range(plan.tokens)]
    if prefetch:
        after = np.stack([none, none, service.interrupts], axis=-1)
        interrupted = _listed(after, 0 * after) if service.interrupts.any() else nothing
        return _listed(masked_s, masked_b), _listed(static_s, static_b), interrupted
    return _listed(masked_s + static_s, masked_b + static_b), nothing, nothing


def _listed(seconds: Floats, sizes: Floats) -> list[list[Request]]:
    """Requests [T][P] of arrays [T, P, 3]."""
    pairs = zip(seconds.tolist(), sizes.tolist(), strict=True)
    return [[Request(*request) for request in zip(*token, strict=True)] for token in pairs]
