"""What depends on the clock: prefetch, several streams, drafts that are verified together, and contention for DRAM.

Where there is nothing of the kind, fetch plans and the recurrence say the same as the engine, and sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from dipsim.basics.fields import Natural, Strict
from dipsim.basics.units import Time
from dipsim.sparsity.prefetcher import Prefetcher

When = Literal["never", "idle", "spare", "eager"]
Turns = Literal["first-come", "round-robin"]


@dataclass(frozen=True)
class Prefetch:
    """Which guesses are read, and when.

    `units` of them, at most, are named at each layer for the layer `ahead` layers later. They are read `batch` at a
    time: while Flash serves no demand (`idle`), whenever a lane is free (`spare`), or in order of arrival like demand
    (`eager`). `lanes` of Flash are theirs at most. They wait in a buffer of `buffer` bytes. With `drop_late`, a guess
    that has not begun when its layer does is never read.
    """

    prefetcher: Prefetcher
    units: int
    buffer: float
    when: When = "idle"
    ahead: int = 1
    batch: int = 1
    lanes: int = 1
    drop_late: bool = True
    seed: int = 0


class Speculation(Strict):
    """Drafts: `draft` tokens are guessed by a smaller model and verified together with the token before them.

    Each is accepted with the probability `acceptance`, until one is not. Drafting takes `draft_time` seconds a token.
    Verifying n drafts takes compute 1 + n `verify` times as long as one token, and no shorter than all that they use
    takes. `seed` is that of which are accepted.
    """

    draft: Natural
    acceptance: Annotated[float, Field(ge=0, le=1)]
    verify: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    draft_time: Time = 0.0
    seed: Natural = 0


@dataclass(frozen=True)
class Clocked:
    """All of it. By default nothing depends on the clock."""

    prefetch: Prefetch | None = None
    streams: int = 1
    turns: Turns = "first-come"
    speculation: Speculation | None = None
    contention: bool = False
