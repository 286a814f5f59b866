"""What this machine can hold, asked before something is begun that would not fit: no memory is filled to find out."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from dipsim.basics.errors import InputError
from dipsim.basics.units import show

_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def memory_bytes() -> float:
    """The memory that this process may use: the machine's, its container's or its own, whichever is least."""
    most = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # there is none, or its limit is the word max
        most = min(most, float(_CONTAINER.read_text(encoding="ascii")))
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    return most if own == resource.RLIM_INFINITY else min(most, float(own))


def check_memory(needed: float, what: str, fix: str) -> None:
    """Raise InputError if `what` needs more bytes of memory than there are. The estimate should be a low one."""
    if needed > (have := memory_bytes()):
        raise InputError(
            f"{what}: at least {show(needed, 'size')} of memory, and there are {show(have, 'size')}; {fix}"
        )
