"""Timeline: when everything happened, as flat records; made by the engine, or in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dipsim.work import RESOURCES, Floats

PARTS = (*RESOURCES, "wait")
PREFILL = -1  # stands for the step of encoding the prompt


class Span(NamedTuple):
    """One request: made at `request_s`, served from `start_s` to `end_s` (seconds)."""

    resource: str
    token: int
    step: int  # position in the plan, or PREFILL
    request_s: float
    start_s: float
    end_s: float
    bytes: float


@dataclass(frozen=True)
class Timeline:
    """When everything happened. `start_s`, `latency_s` [T]; `ttft_s` the time to encode the prompt.

    `parts_s` [T, 4] splits each latency by what the token was held up by: of the requests that a step waits for, the
    last to end counts, its service for its resource, its time in the queue as wait. `busy_s` [T, 3]: service of each
    resource for each token.
    """

    timing: str
    spans: list[Span]
    start_s: Floats
    latency_s: Floats
    ttft_s: float
    parts_s: Floats
    busy_s: Floats
