"""The reads of a fetch plan as they lie in a file: for each token the batches of its steps, as offsets and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dipsim.basics.arrays import Ints
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.machine.disk import LARGEST
from dipsim.planning.builder import LayerCaches, PlanBuilder
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.planner import CpuPlanner
from dipsim.planning.split import learn_splits
from dipsim.storage.placement import Fetch
from dipsim.storage.runs import unpack
from dipsim.workload.trace import Trace


class Batch(NamedTuple):
    """Reads that are submitted together: offsets and sizes in bytes."""

    offsets: list[int]
    sizes: list[int]


@dataclass(frozen=True)
class Reads:
    """What T tokens read: of each the batches, one after the other. `size` is how far into a file they reach."""

    plan: FetchPlan
    batches: list[list[Batch]]
    size: int


def reads_of(trace: Trace, setting: Setting, tokens: int, shown: int, page: int, progress: Progress = silent) -> Reads:
    """Plan a setting over the first `tokens` tokens, and place the reads of the last `shown` that are counted.

    What is streamed is read in whole pages of `page` bytes as well. Raises InputError if fewer tokens are counted, and
    for a mixture of experts.
    """
    if trace.shape.mixture is not None:
        raise InputError(f"{trace.name}: is a mixture of experts, and a replay reads columns; replay a dense model")
    starts = tuple(start for start in trace.sequence_starts if start < tokens)
    builder = PlanBuilder(trace.shape, setting, tokens, starts)
    counted = np.flatnonzero(builder.counted)
    if shown > len(counted):
        raise InputError(f"tokens: {shown} to read, and the run counts {len(counted)} of its {tokens}; ask for fewer")
    masked: dict[int, list[Batch]] = {}  # by position, one a token
    end = 0

    def watch(caches: LayerCaches, layer: int, fetch: Fetch) -> None:
        nonlocal end
        position = builder.position(caches, layer)
        masked[position], end = _spans(fetch, counted[-shown:], end)

    builder.watch = watch
    learn_splits([builder], trace.shape, trace, progress=progress)
    CpuPlanner().fill(trace, [builder], range(trace.shape.num_hidden_layers), progress)
    plan = builder.finish()
    steps: list[list[Batch]] = []  # what each of the tokens reads there
    for position in range(len(plan.layer)):
        if plan.static_reads[position]:  # the same for every token
            streamed, end = _stream(float(plan.flash_static[-1, position]), int(plan.static_reads[position]), end, page)
            steps.append([streamed] * shown)
        steps.append(masked.get(position, []))
    batches = [[step[token] for step in steps if step and step[token].offsets] for token in range(shown)]
    return Reads(plan, batches, end)


def _spans(fetch: Fetch, tokens: Ints, base: int) -> tuple[list[Batch], int]:
    """The reads of some tokens, in a region of the file that begins at `base`; and where that ends."""
    place = fetch.placement
    page, hot = int(place.page), int(place.pages.end[place.hot - 1]) if place.hot else 0
    piece = (place.pages.count - hot) * page  # bytes of the region of each piece
    whole = int(place.whole_bytes)
    found = []
    for row, reads in zip(unpack(fetch.words[tokens], place.pages.count), fetch.reads[tokens].sum(axis=1), strict=True):
        edges = np.flatnonzero(np.diff(row[hot:].astype(np.int8), prepend=0, append=0))
        begin, size = edges[::2] * page, (edges[1::2] - edges[::2]) * page
        if len(begin) and reads == len(begin) * place.pieces:
            pairs = [(base + k * piece + b, s) for k in range(place.pieces) for b, s in zip(begin, size, strict=True)]
        else:  # one read of everything
            pairs = [(base + k * (whole // int(reads)), whole // int(reads)) for k in range(int(reads))]
        found.append(_parts(pairs))
    return found, base + max(place.pieces * piece, whole)


def _stream(size: float, reads: int, base: int, page: int) -> tuple[Batch, int]:
    """Reads of `size` bytes in all, that every token makes."""
    each = -(-int(np.ceil(size / reads)) // page) * page
    return _parts([(base + k * each, each) for k in range(reads)]), base + reads * each


def _parts(pairs: list[tuple[int, int]]) -> Batch:
    """Reads of at most LARGEST bytes."""
    parts = [
        (int(offset + done), int(min(LARGEST, size - done)))
        for offset, size in pairs
        for done in range(0, int(size), LARGEST)
    ]
    return Batch([offset for offset, _ in parts], [size for _, size in parts])
