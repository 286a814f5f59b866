"""A timeline: when everything happened, as flat records. The engine makes it, or the recurrence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

from dipsim.basics.arrays import Floats

Timing = Literal["serial", "concurrent", "pipelined"]
TIMINGS: tuple[Timing, ...] = ("serial", "concurrent", "pipelined")


class Resource(IntEnum):
    """What serves a token's requests. The values index the arrays that have an axis of resources."""

    FLASH = 0
    DRAM = 1
    COMPUTE = 2

    @property
    def label(self) -> str:
        """Its name in tables and files."""
        return self.name.lower()


RESOURCES = tuple(resource.label for resource in Resource)
WAIT = len(Resource)  # the index of time spent in queues, behind those of the resources
BREAKDOWN = (*RESOURCES, "wait")
PREFILL = -1  # stands for the step that encodes the prompt


Kind = Literal["demand", "fill", "guess", "interrupt"]


class Span(NamedTuple):
    """One request: made at `request_s`, served from `start_s` to `end_s` (seconds), for so many bytes.

    `step` is the position in the plan, or PREFILL. A token waits for what is of the kind `demand`, and while reads
    `interrupt` compute; a `fill` takes what was read into a cache, and a `guess` is read ahead of a mask.
    """

    resource: str
    token: int
    step: int
    request_s: float
    start_s: float
    end_s: float
    bytes: float
    kind: Kind = "demand"


@dataclass(frozen=True)
class Timeline:
    """When everything happened, in seconds.

    `start_s` and `latency_s` are [T]. `ttft_s` is the time to encode the prompt. `parts_s` [T, 4] breaks each latency
    down by what the token waited for, in the order of BREAKDOWN: of the requests that a step waits for, the last to
    end counts, its service for its resource and its time in the queue as wait. `busy_s` [T, 3] is the service of each
    resource, and `waited_s` [T, 3] how much longer than alone the token's requests to each of them took together, and
    for how long it waited besides for what others had asked for. `streams` are
    the tokens of each stream; by default there is one, of all. Further tiers and units of compute have their names in
    `resources`, behind the three, and their places in the arrays.
    """

    timing: str
    spans: list[Span]
    start_s: Floats
    latency_s: Floats
    ttft_s: float
    parts_s: Floats
    busy_s: Floats
    waited_s: Floats
    streams: tuple[range, ...] = ()
    resources: tuple[str, ...] = RESOURCES

    @property
    def breakdown(self) -> tuple[str, ...]:
        """The names of the parts."""
        return (*self.resources, "wait")

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first token's start to the last one's end, without those that encode prompts."""
        streams = self.streams or (range(len(self.latency_s)),)
        return float(max(self.latency_s[list(tokens)].sum() for tokens in streams))
