"""Guesses on the clock: they are read ahead into a buffer, found there, waited for, dropped or wasted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from dipsim.basics.arrays import Mask
from dipsim.clock.clocked import Prefetch
from dipsim.planning.fetch_plan import Guessed
from dipsim.planning.steps import Reads
from dipsim.timing.server import DEMAND, IDLE, SPARE, Job, Server, after

PRIORITY = {"eager": DEMAND, "spare": SPARE, "idle": IDLE}


@dataclass(eq=False)
class Guess:
    """Units [N] that are read together, `count` of them, guessed at a row for a (row, step).

    They take so many `bytes` of the buffer.
    """

    by: int
    target: tuple[int, int]
    units: Mask
    count: int
    bytes: float
    reads: Reads
    job: Job


class Buffer:
    """The guesses of a run of so many rows, and the bytes that they take. `ended` is called with each that was read."""

    def __init__(self, options: Prefetch, flash: Server, rows: int, ended: Callable[[Guess], object]) -> None:
        self.options, self.flash, self.room = options, flash, options.buffer
        self.books = Guessed.none(rows)
        self._ended = ended
        self._for: dict[tuple[int, int], list[Guess]] = {}  # by the row and position that they are for
        self._outdated: list[tuple[int, Guess]] = []  # read although their step has begun
        self._interrupting = 0.0
        self._refused = False  # whether a guess waits for room

    def read(
        self, by: int, target: tuple[int, int], units: Mask, unit_bytes: float, reads: Reads, seconds: float
    ) -> None:
        """At a row, ask for units [N] that the (row, step) `target` may want; alone that takes so many seconds."""
        count = int(np.count_nonzero(units))
        size = count * unit_bytes
        job = self.flash.ask(
            seconds,
            full=reads.total,
            width=min(reads.total, self.options.lanes),
            size=reads.size / reads.total,
            priority=PRIORITY[self.options.when],
            keeps=True,
            enter=lambda: self._enter(size),
        )
        guess = Guess(by, target, units, count, size, reads, job)
        self._for.setdefault(target, []).append(guess)
        after(job.done, lambda _: self._read(guess))

    def meet(self, row: int, step: int, missing: Mask) -> tuple[Mask, list[Job]]:
        """A step misses units [N]: which of them were guessed and begun, and the reads under way that it waits for.

        Nothing that was guessed for the step stays in the buffer. What has not begun is dropped, unless it is to be
        read all the same and the step does not want it.
        """
        found, waits, books = np.zeros_like(missing), [], self.books
        mine = self._for.pop((row, step), [])
        for guess in [guess for guess in mine if guess.job.begin is None]:  # before room is given back to them
            mine.remove(guess)
            if self.options.drop_late or (guess.units & missing).any():
                self.flash.cancel(guess.job)
                books.dropped[row] += guess.count
            else:
                self._outdated.append((row, guess))
                after(guess.job.done, partial(self._free_later, guess))
        for guess in mine:
            wanted = guess.units & missing
            useful = int(np.count_nonzero(wanted))
            books.wasted[row] += guess.count - useful
            found |= wanted
            if guess.job.end is not None:
                books.useful[row] += useful
                self._free(guess)
                continue
            books.late[row] += useful
            after(guess.job.done, partial(self._free_later, guess))
            if useful:
                waits.append(guess.job)
        return found, waits

    def interrupting(self) -> float:
        """The reads of guesses that ended since this was last asked."""
        count, self._interrupting = self._interrupting, 0.0
        return count

    def close(self) -> None:
        """At the end of the run, what is left was wasted, or never read."""
        left = [(row, guess) for (row, _), guesses in self._for.items() for guess in guesses]
        for row, guess in [*left, *self._outdated]:
            kind = self.books.dropped if guess.job.begin is None else self.books.wasted
            kind[row] += guess.count

    def _enter(self, size: float) -> bool:
        """Take room in the buffer, if there is so much."""
        if size > self.room:
            self._refused = True
            return False
        self.room -= size
        return True

    def _free(self, guess: Guess) -> None:
        """Give its room back to guesses that may wait for it."""
        self.room += guess.bytes
        if self._refused:
            self._refused = False
            self.flash.look()

    def _free_later(self, guess: Guess, _: object) -> None:
        self._free(guess)

    def _read(self, guess: Guess) -> None:
        """Write down a guess that was read."""
        self.books.reads[guess.by] += guess.reads.total
        self.books.bytes[guess.by] += guess.reads.size
        self._interrupting += guess.reads.total
        self._ended(guess)
