"""The discrete-event engine: tokens, cache fills, guesses and their reads meet on Flash, DRAM and compute.

One clock serves the whole run. A token is a process that takes one step after the other; each step asks for a fetch, a
DRAM read and a computation. What they take alone is in closed form (`service.py`); what they take together is up to the
servers (`server.py`). `recurrence.py` says what the three timing modes mean, and finds the same times without events
where nothing overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Container, Generator, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import simpy

from dipsim.basics.arrays import Floats
from dipsim.planning.fetch_plan import FetchPlan
from dipsim.timing.device import Device
from dipsim.timing.server import TICKS, Job, Server
from dipsim.timing.service import dram_traffic, service_times
from dipsim.timing.timeline import PREFILL, RESOURCES, Kind, Resource, Span, Timeline, Timing

STAGES: dict[Timing, tuple[tuple[Resource, ...], ...]] = {  # which resources serve a step side by side, in which order
    "serial": ((Resource.FLASH,), (Resource.DRAM,), (Resource.COMPUTE,)),
    "concurrent": ((Resource.FLASH, Resource.DRAM), (Resource.COMPUTE,)),
    "pipelined": (tuple(Resource),),
}
WAITED = ("demand", "interrupt")  # by tokens
KEPT = 32  # tokens whose requests are kept: more than there are streams, and the next of each
Process = Generator[simpy.Event, Any, None]


class Request(NamedTuple):
    """What a step asks of each resource, in the order of `Resource`.

    `reads` of `read_bytes` each make up its fetch, by default as many as keep all lanes busy.
    """

    seconds: Sequence[float]
    bytes: Sequence[float]
    reads: float = math.inf
    read_bytes: float = 0.0


class Demand(NamedTuple):
    """What a step needs once its mask is known.

    It waits for what others began (`under_way`), too. Compute is interrupted for `after` seconds after it.
    """

    request: Request
    after: float = 0.0
    under_way: Sequence[tuple[Job, int]] = ()


class Asked(NamedTuple):
    """A job, for which step of which token it is, and what it moves."""

    job: Job
    resource: int
    token: int
    step: int
    bytes: float
    kind: Kind = "demand"


class Steps(Protocol):
    """What the steps of tokens ask for. A step's demand is asked for when it begins, so it may depend on the clock."""

    prefill: Request

    def reach(self, token: int) -> None:
        """A token is about to begin."""

    def ahead(self, token: int, step: int) -> Request:
        """What a step asks for that is known before its token starts."""

    def demand(self, token: int, step: int) -> Demand:
        """What a step asks for besides."""

    def asked(self, token: int, step: int, requests: Sequence[Asked]) -> list[Asked]:
        """A step has made the requests of the stage that fetches, if any; returns what else it waits for."""


class Engine:
    """A clock, the servers, and the processes of a run; it writes down when everything happened.

    There are `tokens` tokens of `positions` steps each. Spans are kept of the tokens in `traced`, by default of all.
    Demand on Flash and compute is served in order of arrival or, if `fair`, of all streams at a time. Guesses have
    `limit` lanes of Flash at most. Further resources of the device follow the three, and serve steps beside the one in
    whose place they stand: tiers above DRAM beside it, those behind Flash beside Flash, units instead of compute.
    """

    def __init__(
        self,
        device: Device,
        timing: Timing,
        tokens: int,
        positions: int,
        traced: Container[int] | None = None,
        *,
        fair: bool = False,
        limit: int = 1,
    ) -> None:
        self.timing, self.positions, self.traced = timing, positions, traced
        self.env = simpy.Environment()
        flash = device.flash
        rate = lru_cache(maxsize=None)(flash.throughput)
        further = further_resources(device)
        self.servers = (
            Server(self.env, flash.most_under_way, fair=fair, rate=rate, limit=limit),
            Server(self.env, fair=True),
            *(Server(self.env, fair=fair) for _ in ("compute", *further)),
        )
        self.names = (*RESOURCES, *further)
        places = (*Resource, *further.values())
        self.stages = [[index for index, place in enumerate(places) if place in stage] for stage in STAGES[timing]]
        self.nothing = Request((0.0,) * len(places), (0.0,) * len(places))
        self.spans: list[Span] = []
        self.start, self.latency, self.ttft = [0] * tokens, [0] * tokens, 0
        self.parts = [[0] * (len(places) + 1) for _ in range(tokens)]
        self.busy = [[0.0] * len(places) for _ in range(tokens)]
        self.waited = [[0] * len(places) for _ in range(tokens)]

    def run(self, steps: Steps, streams: Sequence[Sequence[int]], starts: Container[int] = ()) -> Timeline:
        """Run the tokens of each stream one after the other, the streams side by side.

        A prompt is encoded before each of the tokens `starts`.
        """
        self.steps = steps
        streaming = [self.env.process(self._stream(index, tokens, starts)) for index, tokens in enumerate(streams)]
        self.env.run(self.env.all_of(streaming))
        return Timeline(
            timing=self.timing,
            spans=sorted(self.spans, key=lambda span: span.end_s),
            start_s=_seconds(self.start),
            latency_s=_seconds(self.latency),
            ttft_s=self.ttft / TICKS,
            parts_s=np.array([_seconds(parts) for parts in self.parts]),
            busy_s=np.array(self.busy) / TICKS,
            waited_s=np.array([_seconds(waited) for waited in self.waited]),
            resources=self.names,
            streams=tuple(range(tokens[0], tokens[-1] + 1) for tokens in streams) if len(streams) > 1 else (),
        )

    @property
    def _now(self) -> int:
        return int(self.env.now)

    def _stream(self, stream: int, tokens: Sequence[int], starts: Container[int]) -> Process:
        """Encode prompts and decode tokens, one after the other."""
        early: list[Asked] = []
        for token, after in zip(tokens, (*tokens[1:], None), strict=True):
            self.steps.reach(token)
            if token in starts:
                begin = self._now
                for stage in self.stages:
                    yield from self._join(self._ask(stream, token, PREFILL, self.steps.prefill, stage))
                self.ttft = self._now - begin
            following = None if after is None or after in starts else after
            self.start[token] = begin = self._now
            yield from self._decode(stream, token, following, early)
            self.latency[token] = self._now - begin

    def _decode(self, stream: int, token: int, following: int | None, early: list[Asked]) -> Process:
        """One step after the other. What is known ahead of a step is requested when the step before it begins."""
        ahead = self.timing == "pipelined"
        if ahead and not early:
            early += self._ask(stream, token, 0, self.steps.ahead(token, 0))
        for step in range(self.positions):
            demand = self.steps.demand(token, step)
            known = self.nothing if ahead else self.steps.ahead(token, step)
            for stage in self.stages:
                asked = self._ask(stream, token, step, demand.request, stage, known)
                if Resource.FLASH in stage:
                    asked += self.steps.asked(token, step, asked)
                asked = early + asked
                early.clear()
                others = demand.under_way if Resource.FLASH in stage else ()
                if ahead:
                    next_token, next_step = (token, step + 1) if step + 1 < self.positions else (following, 0)
                    if next_token is not None:
                        early += self._ask(stream, next_token, next_step, self.steps.ahead(next_token, next_step))
                if asked or others:
                    yield from self._join(asked, token, others)
            if demand.after:
                interrupted = Request((0.0, 0.0, demand.after), self.nothing.bytes)
                asked = self._ask(stream, token, step, interrupted, [Resource.COMPUTE])
                yield from self._join([each._replace(kind="interrupt") for each in asked], token)

    def _ask(
        self,
        stream: int,
        token: int,
        step: int,
        request: Request,
        stage: Iterable[int] | None = None,
        known: Request | None = None,
    ) -> list[Asked]:
        """Ask the resources of a stage, by default all, for a request and what was known before."""
        asked, known = [], known or self.nothing
        for resource in range(len(self.names)) if stage is None else stage:
            if seconds := request.seconds[resource] + known.seconds[resource]:
                moved = request.bytes[resource] + known.bytes[resource]
                full, size = (request.reads, request.read_bytes or moved) if resource == Resource.FLASH else (1, 0)
                job = self.servers[resource].ask(seconds, full=full, size=size, flow=stream)
                asked.append(Asked(job, resource, token, step, moved))
        return asked

    def _join(
        self, asked: Sequence[Asked], token: int | None = None, others: Sequence[tuple[Job, int]] = ()
    ) -> Process:
        """Wait for all of what was asked for, here or by `others`; book the time of a token to what ended last."""
        begin = self._now
        served = [(each.job, each.resource) for each in asked]
        for job, _ in served:
            if job.end is None:
                yield job.done
        for each in asked:
            self.note(each)
        own = self._now
        for job, resource in others:
            if job.end is None:
                before = self._now
                yield job.done
                if token is not None:  # for what others began, and longer than for what it asked for itself
                    self.waited[token][resource] += self._now - max(before, own)
        if token is not None and (served or others):
            last, resource = max((*served, *others), key=_end)
            start = max(_end((last, resource)) - last.alone, begin)
            self.parts[token][resource] += self._now - start
            self.parts[token][-1] += start - begin

    def note(self, asked: Asked) -> None:
        """Write down what has ended."""
        job, token = asked.job, asked.token
        if asked.step != PREFILL:
            self.busy[token][asked.resource] += job.held
            if asked.kind in WAITED:
                self.waited[token][asked.resource] += job.waited
        if self.traced is None or token in self.traced:
            assert job.begin is not None
            assert job.end is not None
            times = (job.asked / TICKS, job.begin / TICKS, job.end / TICKS)
            self.spans.append(Span(self.names[asked.resource], token, asked.step, *times, asked.bytes, asked.kind))


def run(plan: FetchPlan, device: Device, timing: Timing, traced: Container[int] | None = None) -> Timeline:
    """Simulate a plan on a device. The result is a deterministic function of the arguments.

    Spans are kept of the tokens in `traced`, by default of all.
    """
    engine = Engine(device, timing, plan.rows, len(plan.step), traced)
    return engine.run(Planned(plan, device, timing), [range(plan.rows)], plan.sequence_starts)


class Planned:
    """The steps of a plan, whatever the clock says."""

    def __init__(self, plan: FetchPlan, device: Device, timing: Timing) -> None:
        service = service_times(plan, device)
        static_bytes, masked_bytes = dram_traffic(plan, device)
        none = np.zeros_like(service.compute)
        self.prefill = Request(service.prefill.tolist(), service.prefill_bytes.tolist())
        self._ahead = Requests(
            (service.flash_static, service.dram_static, none), (plan.flash_static, static_bytes, none)
        )
        self._demand = Requests(
            (service.flash, service.dram, service.compute), (plan.flash_read_bytes, masked_bytes, none)
        )
        self._after = (service.interrupts if timing == "pipelined" else none).tolist()

    def reach(self, token: int) -> None:
        """Nothing happens before a token."""

    def asked(self, token: int, step: int, requests: Sequence[Asked]) -> list[Asked]:  # noqa: ARG002
        """Nothing follows from a fetch."""
        return []

    def ahead(self, token: int, step: int) -> Request:
        """What the plan says."""
        return self._ahead[token][step]

    def demand(self, token: int, step: int) -> Demand:
        """What the plan says."""
        return Demand(self._demand[token][step], self._after[token][step])


class Requests:
    """Requests [T, P] of arrays [T, P] each of seconds and of bytes, in the order of the resources.

    They are made a token at a time, when it is asked for: Python's garbage collector looks at all that are there.
    """

    def __init__(self, seconds: Sequence[Floats], sizes: Sequence[Floats]) -> None:
        self._seconds, self._sizes = np.stack(seconds, axis=-1), np.stack(sizes, axis=-1)
        self._made: dict[int, list[Request]] = {}

    def __getitem__(self, token: int) -> list[Request]:
        if token not in self._made:
            if len(self._made) >= KEPT:
                del self._made[next(iter(self._made))]
            pairs = zip(self._seconds[token].tolist(), self._sizes[token].tolist(), strict=True)
            self._made[token] = [Request(*request) for request in pairs]
        return self._made[token]


def further_resources(device: Device) -> dict[str, Resource]:
    """Tiers and units of compute besides the three resources, and in whose place each serves a step."""
    units = device.compute.units if device.compute else ()
    tiers = {tier.name: Resource.DRAM for tier in device.above} | {tier.name: Resource.FLASH for tier in device.behind}
    return tiers | dict.fromkeys(units, Resource.COMPUTE)


def _end(served: tuple[Job, int]) -> int:
    assert served[0].end is not None
    return served[0].end


def _seconds(times: Iterable[int]) -> Floats:
    """Seconds of ticks."""
    return np.array([time / TICKS for time in times])
