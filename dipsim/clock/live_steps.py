"""Steps whose demand depends on the clock: caches, guesses and other streams are met when a step begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.clock.clocked import Clocked
from dipsim.clock.costs import Costs, Found
from dipsim.clock.cycles import cycles, streams
from dipsim.clock.guesses import Buffer, Guess
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.steps import Reads, Site, Stepwise, together
from dipsim.planning.stepwise import stepwise
from dipsim.sparsity.prefetcher import Known, guesses
from dipsim.timing.device import Device
from dipsim.timing.engine import Asked, Demand, Engine, Request
from dipsim.timing.recurrence import encoding_time
from dipsim.timing.server import SPARE, Job, after
from dipsim.timing.timeline import Resource, Timeline, Timing
from dipsim.workload.trace import Trace


class LiveSteps:
    """The steps of a plan that is made on the clock; its rows are cycles, dealt out to streams."""

    def __init__(self, plan: Stepwise, device: Device, timing: Timing, options: Clocked) -> None:
        self.plan, self.device, self.timing, self.options = plan, device, timing, options
        self.rows = cycles(plan.counted, plan.begins, options.speculation)
        self.streams = streams(len(self.rows), options.streams)
        self._stream = {row: stream for stream, rows in enumerate(self.streams) for row in rows}
        self._coming: dict[int, list[tuple[Mask, Job, int]]] = {}  # by position: what others began to read or fill in
        self._computed: dict[tuple[int, int], tuple[int, float]] = {}  # units times tokens, and units, of each step
        self._met: tuple[Mask, Mask] | None = None  # what the step in hand wants and misses
        self._last: dict[tuple[int, int], Mask] = {}  # by stream and position
        self._uses = {position: _used_before(site, plan.builder.counted) for position, site in plan.sites.items()}
        self.buffer: Buffer | None = None
        self.reach(0)
        self.costs = Costs(plan, device, self.rows, options.speculation, options.contention)
        self.prefill = self.costs.prefill
        self._above, self._behind = len(device.above), bool(device.behind)
        names = [tier.name for tier in device.behind]
        self._sources = {
            int(Resource.FLASH),
            *(self.costs.resources.index(name) for name in names),
        }  # of what is missed
        self._from_tiers = np.zeros((len(self.rows), len(device.tiers), 2))  # reads and bytes

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
        return self.costs.ahead[row][step]

    def demand(self, row: int, step: int) -> Demand:
        """What a step wants is looked up in its cache, in the buffer of guesses, and among what is under way."""
        site = self.plan.sites.get(step)
        if site is None:
            return Demand(self.costs.static[row][step], self._interrupts(self.costs.static_reads[row][step]))
        plan, tokens = self.plan, self.rows[row].tokens
        masks = plan.choose(tokens, step)
        wanted = together(masks)
        before = site.resident.copy() if site.caches.group.uses_all else None
        held = [site.held(tier).copy() for tier in range(len(site.further))]
        hits = site.present(masks, tokens)
        waits = [(job, resource) for units, job, resource in self._under_way(step) if (units & hits).any()]
        above = _taken(held[: self._above], wanted)
        here = np.bitwise_or.reduce([hits, *above]) if above else hits
        arrived, late = self.buffer.meet(row, step, wanted & ~here) if self.buffer else (None, [])
        here = here if arrived is None else here | arrived
        missing = wanted & ~here
        behind = _taken([*held[self._above :], np.ones_like(wanted)], missing) if self._behind else [missing]
        reads, *slower = [plan.fetch(step, units) for units in behind]
        used = wanted
        if before is not None:
            used, here = wanted | before | reads.brings, here | before
        uses: Ints = wanted.astype(np.int64) if len(masks) == 1 else masks.sum(axis=0)
        self._met = (wanted, missing)
        found = Found(
            used=int(np.count_nonzero(used)),
            here=int(np.count_nonzero(here & used)),
            brought=0 if arrived is None else int(np.count_nonzero(arrived)),
            above=tuple(int(np.count_nonzero(units)) for units in above),
            behind=tuple((each.total, each.size) for each in slower),
            read=reads.size,
        )
        plan.enter(tokens[0], step, found.used, found.here, Reads.together([reads, *slower]), uses)
        wants = np.count_nonzero(masks, axis=1).tolist() if len(masks) > 1 else ()
        request = self.costs.request(row, site, found, reads, wants)
        if held:
            self._tiers(row, site, found)
        if len(masks) > 1:
            self._computed[row, step] = int(np.count_nonzero(masks)), found.used
        self._uses[step] += uses
        self._last[self._stream[row], step] = wanted
        begun = [(job, int(Resource.FLASH)) for job in late]
        return Demand(request, self._interrupts(reads.total), [*waits, *begun])

    def asked(self, row: int, step: int, requests: Sequence[Asked]) -> list[Asked]:
        """A step asked for its fetch: until that ends, and is filled in, other steps wait for what it brings.

        Guesses are asked for behind it. Returns what the step waits for besides: with contention, storage writes what
        it reads to DRAM.
        """
        if self._met is None:
            return []
        (wanted, missing), self._met = self._met, None
        if self.options.prefetch is not None:
            self._guess(row, step, wanted)
        fetches = [each for each in requests if each.resource in self._sources]
        self._coming.setdefault(step, []).extend((missing, each.job, each.resource) for each in fetches)
        if not self.options.contention or not fetches:
            return []
        size = float(np.count_nonzero(missing)) * self.plan.sites[step].unit_bytes

        left = [each.job for each in fetches]

        def ended(_: object) -> None:
            left.pop()
            if not left:
                self._fill(row, step, missing, size)

        for each in fetches:
            after(each.job.done, ended)
        copied = self.device.dram.flash_copies * sum(each.bytes for each in fetches)
        return [self._move(row, step, copied, self.device.dram.bandwidth, "copies")] if copied else []

    def finish(self) -> FetchPlan:
        """The plan that was made."""
        plan = self.plan.finish()
        if self.options.speculation is not None:
            plan = replace(plan.of_rows(self.costs.heads), accepted=np.array([cycle.accepted for cycle in self.rows]))
            flops = plan.flops * np.array([len(cycle.tokens) for cycle in self.rows])[:, None]
            flops[:, list(self.plan.order)] = plan.flops[:, list(self.plan.order)]
            for (row, step), (computed, used) in self._computed.items():  # each token computes with its own units
                flops[row, step] = plan.flops[row, step] * computed / max(used, 1)
            plan = replace(plan, flops=flops)
        if self._from_tiers.size:
            plan = replace(plan, tier_reads=self._from_tiers[..., 0], tier_bytes=self._from_tiers[..., 1])
        if self.buffer is None:
            return plan
        self.buffer.close()
        return replace(plan, guessed=self.buffer.books)

    def _interrupts(self, reads: float) -> float:
        """Seconds for which reads beside compute interrupt it: those of guesses since the last step, and the step's own
        where they run beside it.
        """
        if self.device.compute is None or not self.device.compute.interrupt:
            return 0.0
        beside = reads if self.timing == "pipelined" else 0.0
        return (beside + (self.buffer.interrupting() if self.buffer else 0.0)) * self.device.compute.interrupt

    def _under_way(self, step: int) -> list[tuple[Mask, Job, int]]:
        """What was asked for at this position and has not arrived, and which resource brings it."""
        if coming := self._coming.get(step):
            coming[:] = [each for each in coming if each[1].end is None]
        return coming or []

    def _guess(self, row: int, step: int, wanted: Mask) -> None:
        """Ask for what the prefetcher names, by what is known at this step."""
        prefetch, plan, buffer = self.options.prefetch, self.plan, self.buffer
        assert prefetch is not None
        assert buffer is not None
        target, wraps = self._targets[step]
        for_row = row + wraps
        if self._stream.get(for_row) != self._stream[row]:  # nothing comes after this row
            return
        site, there, tokens = plan.sites[step], plan.sites[target], self.rows[for_row].tokens
        coming = there.resident | ~there.held(self._above) if self._behind else there.resident
        known = Known(
            group=there.caches.group,
            token=self.rows[row].tokens[0],
            layer=site.layer,
            target=there.layer,
            ahead=prefetch.ahead,
            wraps=wraps,
            mask=wanted,
            last=self._last[key] if (key := (self._stream[row], target)) in self._last else np.zeros_like(coming),
            uses=self._uses[target],
            resident=coming,
            see=lambda: site.acts.at(self.rows[row].tokens[-1]),
            actual=lambda: self._look_ahead(target, tokens),
            random=self._random,
        )
        named = guesses(prefetch.prefetcher, known, prefetch.units)
        for begin in range(0, len(named), prefetch.batch):
            units = np.zeros_like(coming)
            units[named[begin : begin + prefetch.batch]] = True
            reads = plan.fetch(target, units)
            seconds = self.costs.batch_seconds(reads)
            buffer.read(row, (for_row, target), units, there.unit_bytes, reads, seconds)

    def _look_ahead(self, target: int, tokens: range) -> Mask:
        """What tokens will want at a position, for an oracle. Raises InputError if the prefetcher is none."""
        prefetch = self.options.prefetch
        if prefetch is not None and not prefetch.prefetcher.oracle:
            raise InputError(
                f"prefetch: {prefetch.prefetcher.label}: looks at what will be wanted; only an oracle may, which says "
                "`oracle = True` in its class"
            )
        return together(self.plan.choose(tokens, target))

    @cached_property
    def _targets(self) -> dict[int, tuple[int, bool]]:
        """By position, that of the same group so many layers later, and whether it is the next token's."""
        order, ahead = self.plan.order, self.options.prefetch.ahead if self.options.prefetch else 1
        later = [divmod(place + ahead * len(self.plan.builder.caches), len(order)) for place in range(len(order))]
        return {step: (order[place], wraps > 0) for step, (wraps, place) in zip(order, later, strict=True)}

    def _guess_ended(self, guess: Guess) -> None:
        """A guess was read: it is written down, and crosses DRAM as often as any read."""
        row, step = guess.target
        self.engine.note(Asked(guess.job, Resource.FLASH, row, step, guess.reads.size, "guess"))
        if copies := self.device.dram.flash_copies:
            self._note_later(self._move(row, step, copies * guess.reads.size, self.device.dram.bandwidth, "copies"))

    def _tiers(self, row: int, site: Site, found: Found) -> None:
        """Write down what other tiers gave; Flash keeps what comes from behind it, when it has nothing else to do."""
        above = [(0.0, count * site.unit_bytes) for count in found.above]
        self._from_tiers[row] += np.array([*above, *found.behind])
        if new := sum(size for _, size in found.behind):
            seconds = new / self.device.flash.peak_bandwidth
            job = self.engine.servers[Resource.FLASH].ask(
                seconds, full=math.inf, size=new, priority=SPARE, flow="write"
            )
            self._note_later(Asked(job, Resource.FLASH, row, site.position, new, "fill"))

    def _fill(self, row: int, step: int, units: Mask, size: float) -> None:
        """What was read is taken into the cache; who wants it waits."""
        if self.costs.admits:
            filling = self._move(row, step, size, self.device.dram.fill or self.device.dram.bandwidth, "fill")
            self._note_later(filling)
            self._coming[step].append((units, filling.job, filling.resource))

    def _move(self, row: int, step: int, size: float, rate: float, flow: str) -> Asked:
        """Ask DRAM to move bytes beside demand."""
        job = self.engine.servers[Resource.DRAM].ask(size / rate, flow=flow)
        return Asked(job, Resource.DRAM, row, step, size, "fill")

    def _note_later(self, asked: Asked) -> None:
        after(asked.job.done, lambda _: self.engine.note(asked))


def _taken(holding: Sequence[Mask], wanted: Mask) -> list[Mask]:
    """Which of the units wanted [N] come from each of several tiers that hold [N]: the first that has it."""
    found = []
    for held in holding:
        found.append(wanted & held)
        wanted = wanted & ~held
    return found


def _used_before(site: Site, counted: Mask) -> Ints:
    """By how many tokens that are not counted each unit of a site was used, [N], where it is known."""
    if site.masks is None:
        return np.zeros(site.caches.columns, dtype=np.int64)
    return np.asarray(site.masks[~counted].sum(axis=0))


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
    caching = (*device.above, *device.behind[:-1])
    further = [(tier.capacity or 0.0, tier.eviction, tier in device.behind) for tier in caching]
    if device.behind:
        further.insert(len(device.above), (device.flash.capacity or 0.0, device.behind[0].eviction, True))
    plan = stepwise(trace, setting, tokens, shared=options.streams > 1, further=further, progress=progress)
    steps = LiveSteps(plan, device, timing, options)
    limit = options.prefetch.lanes if options.prefetch else 1
    fair, rows = options.turns == "round-robin", len(steps.rows)
    engine = Engine(device, timing, rows, len(steps.costs.steps), traced(rows), fair=fair, limit=limit)
    steps.attach(engine)
    starts = [row for row, cycle in enumerate(steps.rows) if plan.begins_sequence(cycle.tokens[0])]
    timeline = engine.run(steps, steps.streams, starts if options.streams == 1 else [])
    if options.streams > 1:  # whose prompts are encoded before the clock starts
        timeline = replace(timeline, ttft_s=encoding_time(steps.prefill.seconds, timing))
    return steps.finish(), timeline
