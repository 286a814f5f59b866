"""What serves requests on the clock: Flash, DRAM and compute, whose lanes the requests share.

A request that is alone takes the time that `service.py` gives it. Where requests meet, each is as fast as the lanes
that it holds. Time is counted in whole ticks, so the millionth token is as sharp as the first.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import simpy

TICKS = 2**80  # of a second: exact for the times that occur; integers do not overflow
DEMAND, SPARE, IDLE = range(3)  # who goes first

Rate = Callable[[float, float], float]  # bytes per second of a server, from its lanes in use and the bytes of a read


def ticks(seconds: float) -> int:
    """Seconds as ticks."""
    return round(seconds * TICKS)  # a power of two, so only what is below a tick is lost


def after(event: simpy.Event, call: Callable[[simpy.Event], None]) -> None:
    """Call when an event that is still to come has happened."""
    assert event.callbacks is not None
    event.callbacks.append(call)


@dataclass(slots=True, eq=False)
class Job:
    """A request to a server. Who waits for `done` waits for its end.

    It takes `alone` ticks with `full` lanes, of which some are `left`, and uses `width` lanes at most; `size` are the
    bytes of each read. Of lower `priority` values come first, then earlier requests. IDLE ones begin only while there
    is no DEMAND. One that `keeps` its lanes is not interrupted once it has begun; it begins when `enter`, if given,
    returns True. Jobs of one `flow` never overtake each other where a server is fair. `asked`, `begin` and `end` are in
    ticks; `begin` and `end` are None before. `done` happens only if somebody waits for it by then, so look at `end`
    before you wait.
    """

    done: simpy.Event
    alone: int
    left: float
    asked: int
    number: int
    full: float
    width: float
    size: float
    priority: int
    flow: Hashable
    keeps: bool
    enter: Callable[[], bool] | None
    begin: int | None = None
    end: int | None = None
    lanes: float = 0.0
    speed: float = 0.0
    held: float = 0.0  # ticks of the server's time that were its

    def __lt__(self, other: Job) -> bool:
        return (self.priority, self.number) < (other.priority, other.number)

    @property
    def waited(self) -> int:
        """Ticks that it took beyond those that it takes alone."""
        assert self.end is not None
        return self.end - self.asked - self.alone


class Server:
    """A resource with `lanes`, 1 by default, that is a number of requests, or parts of one, under way at a time.

    Requests get lanes by priority, then in order of arrival, each as many as it can use; those behind them wait. Where
    a server is `fair`, flows share its lanes evenly instead. Jobs that keep their lanes get `limit` of them at most,
    all together. `rate` says how its throughput depends on the lanes in use; by default each lane adds as much.
    """

    def __init__(
        self,
        env: simpy.Environment,
        lanes: float = 1,
        *,
        fair: bool = False,
        rate: Rate | None = None,
        limit: float = 1,
    ) -> None:
        self.env, self.lanes, self.fair, self.rate, self.limit = env, lanes, fair, rate, limit
        self.jobs: list[Job] = []  # in the order of who goes first
        self.guesses: list[Job] = []  # that keep their lanes, and have not begun
        self._then = 0  # when their progress was last written down
        self._timer = 0  # only the last one counts
        self._asked = 0

    def ask(
        self,
        seconds: float,
        *,
        full: float = 1,
        width: float | None = None,
        size: float = 0,
        priority: int = DEMAND,
        flow: Hashable = None,
        keeps: bool = False,
        enter: Callable[[], bool] | None = None,
    ) -> Job:
        """Ask for so many seconds of service (see `Job`); `width` is `full` if it is not given."""
        self._asked += 1
        alone = ticks(seconds)
        job = Job(
            done=self.env.event(),
            alone=alone,
            left=alone,
            asked=int(self.env.now),
            number=self._asked,
            full=min(full, self.lanes),
            width=min(full if width is None else width, self.lanes),
            size=size,
            priority=priority,
            flow=flow,
            keeps=keeps,
            enter=enter,
        )
        if keeps and priority == IDLE and any(each.priority == DEMAND and not each.keeps for each in self.jobs):
            insort(self.guesses, job)  # nothing changes until demand is served
            return job
        self._write_down()
        insort(self.guesses if keeps else self.jobs, job)
        self._share()
        return job

    def cancel(self, job: Job) -> None:
        """Take back a request that has not begun."""
        assert job.begin is None
        (self.guesses if job.keeps else self.jobs).remove(job)

    def look(self) -> None:
        """Look again whether a request may enter."""
        self._write_down()
        self._share()

    def _write_down(self) -> None:
        """Write down how far everyone has come."""
        now = int(self.env.now)
        if elapsed := now - self._then:
            self._then = now
            if len(self.jobs) == 1 and self.jobs[0].speed == 1 and self.jobs[0].lanes:
                self.jobs[0].left -= elapsed
                self.jobs[0].held += elapsed
            elif used := sum(job.lanes for job in self.jobs):
                for job in self.jobs:
                    if job.lanes:
                        job.left -= elapsed if job.speed == 1 else round(elapsed * job.speed)
                        job.held += elapsed if job.lanes == used else elapsed * (job.lanes / used)

    def _share(self) -> None:
        """Share the lanes, and set the timer to the next end."""
        self._timer += 1
        if not self.jobs and not self.guesses:
            return
        self._give_lanes()
        used = sum(job.lanes for job in self.jobs)
        soonest = None
        for job in self.jobs:
            if job.lanes:
                if job.begin is None:
                    job.begin = self._then
                job.speed = self._speed(job, used)
                left = job.left if job.speed == 1 else -int(-job.left // job.speed)
                soonest = left if soonest is None else min(soonest, left)
        if soonest is not None:
            after(self.env.timeout(max(0, soonest), self._timer), self._end)

    def _give_lanes(self) -> None:
        """Guesses that have begun keep their lanes; then come the first requests of all flows, guesses in between."""
        if len(self.jobs) == 1 and not self.guesses and not self.jobs[0].keeps:
            self.jobs[0].lanes = self.jobs[0].width
            return
        kept = sum(job.lanes for job in self.jobs if job.keeps)
        free, allowed = self.lanes - kept, self.limit - kept
        heads: dict[Hashable, Job] = {}
        for each in self.jobs:
            if not each.keeps and heads.setdefault(each.flow, each) is not each:
                each.lanes = 0  # it waits for the one before it
        idle = not any(job.priority == DEMAND for job in heads.values())
        even = [job for job in heads.values() if self.fair and job.priority == next(iter(heads.values())).priority]
        free = _give_evenly(sorted(even, key=lambda job: (job.width, job.number)), free)
        begun: list[Job] = []
        rest: list[Job | None] = [job for job in heads.values() if job not in even]
        for job in (*rest, None):
            while self.guesses and (job is None or self.guesses[0] < job):
                guess = self.guesses[0]
                if free < 1 or allowed < 1 or (guess.priority == IDLE and not idle):
                    break
                if guess.enter is not None and not guess.enter():
                    break
                guess.lanes = min(guess.width, free, allowed)
                free, allowed = free - guess.lanes, allowed - guess.lanes
                begun.append(self.guesses.pop(0))
            if job is not None:
                job.lanes = min(job.width, free)
                free -= job.lanes
        for guess in begun:
            insort(self.jobs, guess)

    def _speed(self, job: Job, used: float) -> float:
        """How fast a job is, of how fast it is alone with all the lanes that it can use."""
        if job.lanes == used == job.full:
            return 1.0
        if self.rate is None:
            return job.lanes / job.full
        return job.lanes / used * self.rate(used, job.size) / self.rate(job.full, job.size)

    def _end(self, timer: simpy.Event) -> None:
        """Whoever is done leaves; the others share anew."""
        if timer.value != self._timer:
            return
        self._write_down()
        for job in [job for job in self.jobs if job.lanes and job.left <= 0]:
            self.jobs.remove(job)
            job.end = self._then
            if job.done.callbacks:  # SimPy need not tell nobody
                job.done.succeed()
        self._share()


def _give_evenly(jobs: Sequence[Job], free: float) -> float:
    """Give all jobs the same, or what they can use, the narrowest first; return what is left."""
    for index, job in enumerate(jobs):
        job.lanes = min(job.width, free / (len(jobs) - index))
        free -= job.lanes
    return free
