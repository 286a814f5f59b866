"""Steps whose demand depends on the clock: caches, guesses and other streams are met when a step begins."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.clock.clocked import Clocked, Speculation
from dipsim.clock.guesses import Buffer, Guess
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.stepwise import Reads, Site, Stepwise, check_order, stepwise, together
from dipsim.sparsity.prefetcher import Known, guesses
from dipsim.timing.device import Device
from dipsim.timing.engine import NOTHING, Asked, Demand, Engine, Request, requests
from dipsim.timing.server import Job, after
from dipsim.timing.service import compute_seconds, dram_seconds, dram_traffic, service_times
from dipsim.timing.timeline import Resource, Timeline, Timing
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Trace


@dataclass(frozen=True)
class _Moved:
    """What one step with a mask moves and computes (see `service.Moved`)."""

    setting: Setting
    shape: ModelShape
    admits: bool
    dram_hits: float
    flash_misses: float
    flash_read_bytes: float
    flops: float
    ranked: float
    piece_bytes: float
    dram_static: float = 0.0
    flash_static: float = 0.0
    is_attention: bool = False


@dataclass(frozen=True)
class Cycle:
    """The tokens of the trace that are computed together, and how many of them are accepted."""

    tokens: range
    accepted: int = 1


def cycles(counted: Sequence[int], begins: Ints, speculation: Speculation | None) -> list[Cycle]:
    """Every counted token by itself; or each with the drafts after it, as many as are verified together.

    The drafts that turn out wrong are taken to use what the right tokens use.
    """
    if speculation is None:
        return [Cycle(range(token, token + 1)) for token in counted]
    random, found, follows = np.random.default_rng(speculation.seed), [], set(counted)
    place = 0
    while place < len(counted):
        token = counted[place]
        last = token
        while last - token < speculation.draft and last + 1 in follows and begins[last + 1] == begins[token]:
            last += 1
        drafts = last - token
        right = random.random(drafts) < speculation.acceptance
        accepted = 1 + (drafts if right.all() else int(np.argmin(right)))
        found.append(Cycle(range(token, last + 1), accepted))
        place += accepted
    return found


def check_clock(plan: FetchPlan, options: Clocked) -> None:
    """Raise InputError if a plan, which need not be filled in, cannot be made on the clock."""
    check_order(plan.setting, plan.groups)
    if options.speculation is not None:
        starts = (*plan.sequence_starts, plan.rows)
        if max(end - begin for begin, end in pairwise(starts)) < 2:
            raise InputError("speculate: the trace has one token to decode, and drafts need more; use a longer trace")
    _streams(plan.rows, options.streams)


class LiveSteps:
    """The steps of a plan that is made on the clock; its rows are `cycles`, dealt out to streams."""

    def __init__(self, plan: Stepwise, device: Device, timing: Timing, options: Clocked) -> None:
        self.plan, self.device, self.timing, self.options = plan, device, timing, options
        self.rows = cycles(plan.counted, plan.begins, options.speculation)
        self.streams = _streams(len(self.rows), options.streams)
        self._stream = {row: stream for stream, rows in enumerate(self.streams) for row in rows}
        self._calm = _without_traffic(device) if options.contention else device
        self._batch_time = lru_cache(maxsize=4096)(self._batch_seconds)
        self._masked = lru_cache(maxsize=4096)(self._masked_seconds)
        self._coming: dict[int, list[tuple[Mask, Job]]] = {}  # by position: what others began to read or fill in
        self._reading: tuple[int, Mask] | None = None  # what the step in hand is about to read
        self._last: dict[tuple[int, int], Mask] = {}  # by stream and position
        self._uses = {position: _used_before(site, plan.builder.counted) for position, site in plan.sites.items()}
        self.buffer: Buffer | None = None
        self.reach(0)
        self._prepare_static()

    def _prepare_static(self) -> None:
        """Work out what does not depend on masks."""
        plan, speculation = self.plan, self.options.speculation
        still = plan.without_masks()
        service, (traffic, _) = service_times(still, self._calm), dram_traffic(still, self._calm)
        heads = np.searchsorted(plan.counted, [cycle.tokens[0] for cycle in self.rows])
        drafts = np.array([len(cycle.tokens) - 1 for cycle in self.rows])
        self._slower = 1 + drafts * (speculation.verify if speculation else 0.0)
        compute = service.compute[heads] * self._slower[:, None]
        compute[:, 0] += drafts * (speculation.draft_time if speculation else 0.0)
        nothing = np.zeros_like(compute)
        self._ahead = requests(
            (service.flash_static[heads], service.dram_static[heads], nothing),
            (still.flash_static[heads], traffic[heads], nothing),
        )
        self._compute = requests((nothing, nothing, compute), (nothing, nothing, nothing))
        self.prefill = Request(service.prefill.tolist(), NOTHING.bytes)
        self._admits, self.positions = still.admits, len(still.step)

    def attach(self, engine: Engine) -> None:
        """Get to know the engine that these steps run on."""
        self.engine, prefetch = engine, self.options.prefetch
        if prefetch is not None:
            self.buffer = Buffer(prefetch, engine.servers[Resource.FLASH], len(self.rows), self._guess_ended)
            self._random = np.random.default_rng(prefetch.seed)

    def reach(self, row: int) -> None:
        """Before a row begins, what is not counted before it passes through the caches."""
        self.plan.reach(self.rows[row].tokens[0])

    def ahead(self, row: int, step: int) -> Request:
        """Weights that every token reads, and the KV cache."""
        return self._ahead[row][step]

    def demand(self, row: int, step: int) -> Demand:
        """What a step wants is looked up in its cache, in the buffer of guesses, and among what is under way."""
        site = self.plan.sites.get(step)
        if site is None:
            return Demand(self._compute[row][step], self._interrupts(0))
        plan, tokens = self.plan, self.rows[row].tokens
        masks = plan.choose(tokens, step)
        wanted = together(masks)
        resident = site.resident.copy() if site.caches.group.uses_all else None
        hits = site.present(masks, tokens)
        waits = [job for units, job in self._under_way(step) if (units & wanted).any()]
        arrived, late = self.buffer.meet(row, step, wanted & ~hits) if self.buffer else (None, [])
        found = hits if arrived is None else hits | arrived
        missing = wanted & ~found
        reads = plan.fetch(step, missing)
        used = wanted
        if resident is not None:
            used, found = wanted | resident | reads.brings, found | resident
        plan.enter(tokens[0], step, used, found, reads)
        self._reading = (step, missing) if reads.total else None
        request = self._request(row, site, masks, used, found, reads, arrived)
        self._note_use(row, step, masks, wanted)
        if self.options.prefetch is not None:
            self._guess(row, step, wanted)
        return Demand(request, self._interrupts(reads.total if self.timing == "pipelined" else 0), [*waits, *late])

    def asked(self, row: int, fetch: Asked) -> list[Asked]:
        """A step's fetch was asked for: until it ends, and is filled in, other steps wait for what it brings.

        Returns what the step waits for besides: with contention, storage writes what it reads to DRAM.
        """
        if self._reading is None:
            return []
        (step, missing), self._reading = self._reading, None
        self._coming.setdefault(step, []).append((missing, fetch.job))
        if not self.options.contention:
            return []
        size = float(np.count_nonzero(missing)) * self.plan.sites[step].unit_bytes
        after(fetch.job.done, lambda _: self._fill(row, step, missing, size))
        copies = self.device.dram.flash_copies
        return [self._move(row, step, copies * fetch.bytes, self.device.dram.bandwidth, "copies")] if copies else []

    def finish(self) -> FetchPlan:
        """The plan that was made."""
        plan = self.plan.finish()
        heads = np.searchsorted(self.plan.counted, [cycle.tokens[0] for cycle in self.rows])
        if self.options.speculation is not None:
            plan = replace(plan.of_rows(heads), accepted=np.array([cycle.accepted for cycle in self.rows]))
        if self.buffer is None:
            return plan
        self.buffer.close()
        return replace(plan, guessed=self.buffer.books)

    def _request(
        self, row: int, site: Site, masks: Mask, used: Mask, found: Mask, reads: Reads, arrived: Mask | None
    ) -> Request:
        """What a step asks of each resource besides what is known before its token starts."""
        use, have = int(np.count_nonzero(used)), int(np.count_nonzero(found & used))
        brought = 0 if arrived is None else int(np.count_nonzero(arrived))
        dram, compute, traffic = self._masked(site.position, use, have, reads.size, brought)
        if len(masks) > 1:
            one = np.count_nonzero(masks) / len(masks)
            compute = max(compute, float(self._slower[row]) * self._masked(site.position, one, one, 0.0, 0)[1])
        flash = self._batch_time(tuple(reads.count.tolist()), tuple(reads.bytes.tolist()))
        count = max(1.0, reads.total)
        return Request((flash, dram, compute), (reads.size, traffic, 0.0), count, reads.size / count)

    def _masked_seconds(
        self, step: int, use: float, have: float, read: float, brought: int
    ) -> tuple[float, float, float]:
        """Seconds of DRAM and compute of a step, and its bytes over the DRAM bus.

        It uses so many units and has some of them in DRAM, of which guesses brought some; `read` bytes are read.
        """
        plan, device, site = self.plan, self._calm, self.plan.sites[step]
        unit = site.unit_bytes
        moved = _Moved(
            *(plan.setting, plan.shape, self._admits, have * unit, (use - have) * unit),
            flash_read_bytes=max(read, (use - have) * unit),
            flops=use * (2.0 * unit * 8 / plan.shape.bits.mlp),
            ranked=float(site.caches.columns * (unit > 0)),
            piece_bytes=plan.piece_bytes(site),
        )
        compute = float(compute_seconds(moved, device))
        if device.dram.fill and self._admits:
            compute += brought * unit / device.dram.fill
        return float(dram_seconds(moved, device)[1]), compute, float(dram_traffic(moved, device)[1])

    def _batch_seconds(self, count: tuple[float, ...], size: tuple[float, ...]) -> float:
        return float(self.device.flash.batch_time(count, size)) if any(count) else 0.0

    def _interrupts(self, reads: float) -> float:
        """Seconds for which reads under way beside compute interrupt it: a step's own, and guesses since the last."""
        if self.device.compute is None or not self.device.compute.interrupt:
            return 0.0
        return (reads + (self.buffer.interrupting() if self.buffer else 0)) * self.device.compute.interrupt

    def _under_way(self, step: int) -> list[tuple[Mask, Job]]:
        """What was asked for at this position and has not arrived."""
        if coming := self._coming.get(step):
            coming[:] = [(units, job) for units, job in coming if job.end is None]
        return coming or []

    def _note_use(self, row: int, step: int, masks: Mask, wanted: Mask) -> None:
        self._uses[step] += masks.sum(axis=0)
        self._last[self._stream[row], step] = wanted

    def _guess(self, row: int, step: int, wanted: Mask) -> None:
        """Ask for what the prefetcher names, by what is known at this step."""
        prefetch, plan, buffer = self.options.prefetch, self.plan, self.buffer
        assert prefetch is not None
        assert buffer is not None
        target, wraps = self._target(step, prefetch.ahead)
        following = row + 1 if row + 1 in self._stream and self._stream[row + 1] == self._stream[row] else None
        if wraps and following is None:
            return
        for_row = following if wraps and following is not None else row
        site, there, tokens = plan.sites[step], plan.sites[target], self.rows[for_row].tokens
        coming = there.resident.copy()
        for units in (*buffer.named(for_row, target), *(units for units, _ in self._under_way(target))):
            coming |= units
        known = Known(
            group=there.caches.group,
            token=self.rows[row].tokens[0],
            layer=site.layer,
            target=there.layer,
            wraps=wraps,
            mask=wanted,
            last=self._last.get((self._stream[row], target), np.zeros_like(coming)),
            uses=self._uses[target],
            resident=coming,
            acts=site.acts.at(self.rows[row].tokens[-1]),
            actual=lambda: together(plan.choose(tokens, target)),
            random=self._random,
        )
        named = guesses(prefetch.prefetcher, known, prefetch.units)
        for begin in range(0, len(named), prefetch.batch):
            units = np.zeros_like(coming)
            units[named[begin : begin + prefetch.batch]] = True
            reads = plan.fetch(target, units)
            seconds = self._batch_time(tuple(reads.count.tolist()), tuple(reads.bytes.tolist()))
            buffer.read((row, step), (for_row, target), units, there.unit_bytes, reads, seconds)

    def _target(self, step: int, ahead: int) -> tuple[int, bool]:
        """The position of the same group so many layers later, and whether it is the next token's."""
        groups, order = len(self.plan.builder.caches), self.plan.order
        wraps, place = divmod(order.index(step) + ahead * groups, len(order))
        return order[place], wraps > 0

    def _guess_ended(self, guess: Guess) -> None:
        """A guess was read: it is written down, and with contention it crosses DRAM."""
        row, step = guess.by
        self.engine.note(Asked(guess.job, Resource.FLASH, row, step, guess.reads.size, "guess"))
        if self.options.contention and (copies := self.device.dram.flash_copies):
            self._move(row, step, copies * guess.reads.size, self.device.dram.bandwidth, "copies")

    def _fill(self, row: int, step: int, units: Mask, size: float) -> None:
        """What was read is taken into the cache; who wants it waits."""
        if self._admits:
            filling = self._move(row, step, size, self.device.dram.fill or self.device.dram.bandwidth, "fill")
            self._coming[step].append((units, filling.job))

    def _move(self, row: int, step: int, size: float, rate: float, flow: str) -> Asked:
        """Ask DRAM to move bytes beside demand."""
        job = self.engine.servers[Resource.DRAM].ask(size / rate, flow=flow)
        asked = Asked(job, Resource.DRAM, row, step, size, "fill")
        after(job.done, lambda _: self.engine.note(asked))
        return asked


def _streams(rows: int, streams: int) -> list[range]:
    """The rows of each stream, as equal stretches. Raises InputError if there are fewer rows than streams."""
    if rows < streams:
        raise InputError(f"streams: {streams} streams of {rows} tokens; use a longer trace, or fewer streams")
    ends = [round(rows * stream / streams) for stream in range(streams + 1)]
    return [range(begin, end) for begin, end in pairwise(ends)]


def _used_before(site: Site, counted: Mask) -> Ints:
    """By how many tokens that are not counted each unit of a site was used, [N], where it is known."""
    if site.masks is None:
        return np.zeros(site.caches.columns, dtype=np.int64)
    return np.asarray(site.masks[~counted].sum(axis=0))


def _without_traffic(device: Device) -> Device:
    """The device as if what it reads crossed DRAM and entered caches by itself."""
    return device.model_copy(update={"dram": device.dram.model_copy(update={"flash_copies": 0, "fill": None})})


def run_on_clock(
    trace: Trace,
    setting: Setting,
    device: Device,
    timing: Timing,
    options: Clocked,
    tokens: int | None = None,
    *,
    traced: Callable[[int], Container[int] | None] = lambda _: (),
    progress: Progress = silent,
) -> tuple[FetchPlan, Timeline]:
    """Make the plan of a setting on the clock of a device, and its timeline. Both are deterministic.

    Spans are kept of the rows that `traced` names when it is told their number, by default of none. Raises InputError
    if the setting cannot be planned so.
    """
    plan = stepwise(trace, setting, tokens, shared=options.streams > 1, progress=progress)
    steps = LiveSteps(plan, device, timing, options)
    limit = options.prefetch.lanes if options.prefetch else 1
    fair, rows = options.turns == "round-robin", len(steps.rows)
    engine = Engine(device, timing, rows, steps.positions, traced(rows), fair=fair, limit=limit)
    steps.attach(engine)
    starts = [row for row, cycle in enumerate(steps.rows) if plan.begins_sequence(cycle.tokens[0])]
    timeline = engine.run(steps, steps.streams, starts if options.streams == 1 else [])
    return steps.finish(), timeline
