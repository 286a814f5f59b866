"""Writes timelines as Chrome Trace Event JSON, in microseconds; ui.perfetto.dev and chrome://tracing open it.

A run is a process. Its tracks are its tokens, then what each resource did and for whom, then who waited for it. What
overlaps on a track is on several tracks of one name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dipsim.results.result import Result
from dipsim.timing.timeline import PREFILL, Span

SHOWN = {"flash": "Flash", "dram": "DRAM"}
ROUNDING = 1e-9  # seconds by which two that follow each other may seem to overlap
ORDER = ("tokens", "demand", "interrupt", "guess", "fill", "waiting")


class Event(NamedTuple):
    """What happened on a track of one kind from `begin` to `end`, in seconds."""

    track: str
    kind: str
    name: str
    begin: float
    end: float
    args: dict[str, Any]


def write_events(results: Sequence[Result], path: Path) -> None:
    """Write one process a run, and a complete event for each request and each token."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for index, event in enumerate(_written(results)):
            file.write((",\n" if index else "") + json.dumps(event, separators=(",", ":")))
        file.write("\n]}\n")


def _written(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for pid, result in enumerate(results):
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": result.policy}}
        events = sorted(_events(result), key=lambda event: (ORDER.index(event.kind), event.track, event.begin))
        free: dict[tuple[str, int], float] = {}  # when each track is free again
        tids: dict[tuple[str, int], int] = {}
        for event in events:
            tight = event.begin + ROUNDING
            row = next(row for row in range(len(events)) if free.get((event.track, row), 0.0) <= tight)
            track = (event.track, row)
            free[track] = event.end
            if track not in tids:
                tids[track] = len(tids)
                named = {"pid": pid, "tid": tids[track]}
                yield {"ph": "M", "name": "thread_name", **named, "args": {"name": event.track}}
                yield {"ph": "M", "name": "thread_sort_index", **named, "args": {"sort_index": tids[track]}}
            times = {"ts": event.begin * 1e6, "dur": (event.end - event.begin) * 1e6}
            yield {"ph": "X", "name": event.name, "cat": event.kind, "pid": pid, "tid": tids[track], **times} | {
                "args": event.args
            }


def _events(result: Result) -> Iterator[Event]:
    """Every token that has spans, every request, and every wait for a turn."""
    plan, timeline = result.plan, result.timeline
    for token in sorted({span.token for span in timeline.spans}):
        begin = float(timeline.start_s[token])
        stream = next((index for index, rows in enumerate(timeline.streams) if token in rows), None)
        track = "tokens" if stream is None else f"tokens of stream {stream}"
        yield Event(track, "tokens", f"token {token}", begin, begin + float(timeline.latency_s[token]), {})
    for span in timeline.spans:
        if not span.bytes and span.resource in SHOWN:
            continue
        what, resource = _what(result, span), SHOWN.get(span.resource, span.resource)
        args = {"token": span.token, "bytes": span.bytes}
        if span.step != PREFILL:
            args["layer"] = int(plan.layer[span.step])
        yield Event(f"{resource}: {span.kind}", span.kind, f"{what} {span.kind}", span.start_s, span.end_s, args)
        if span.start_s > span.request_s and span.kind == "demand":
            track = f"waiting for {resource}"
            yield Event(track, "waiting", f"{what} waiting", span.request_s, span.start_s, args)


def _what(result: Result, span: Span) -> str:
    """Which step of which token a request is for."""
    if span.step == PREFILL:
        return f"token {span.token} prompt"
    layer, step = int(result.plan.layer[span.step]), result.plan.step[span.step]
    return f"token {span.token} {step}" if step == "lm_head" else f"token {span.token} layer {layer} {step}"
