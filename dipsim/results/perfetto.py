"""Writes timelines as Chrome Trace Event JSON, in microseconds; ui.perfetto.dev and chrome://tracing open it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dipsim.results.result import Result
from dipsim.timing.timeline import PREFILL, RESOURCES


def write_events(results: Sequence[Result], path: Path) -> None:
    """Write one process a run, one thread a resource, one complete event a request."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for index, event in enumerate(_events(results)):
            file.write((",\n" if index else "") + json.dumps(event, separators=(",", ":")))
        file.write("\n]}\n")


def _events(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for pid, result in enumerate(results):
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": result.policy}}
        for tid, resource in enumerate(RESOURCES):
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": resource}}
        plan = result.plan
        for span in result.timeline.spans:
            args: dict[str, Any] = {"token": span.token, "bytes": span.bytes}
            if span.step == PREFILL:
                name = "prompt"
            else:
                name = plan.step[span.step]
                args["layer"] = int(plan.layer[span.step])
            yield {
                "ph": "X",
                "name": name,
                "cat": span.resource,
                "pid": pid,
                "tid": RESOURCES.index(span.resource),
                "ts": span.start_s * 1e6,
                "dur": (span.end_s - span.start_s) * 1e6,
                "args": args | {"waited_us": (span.start_s - span.request_s) * 1e6},
            }
