"""How experts lie in Flash, and what reading one of them brings.

An expert is read by itself, in its tensors or bundled in one piece. Its neighbour in the file is another read: engines
that stream experts do not merge them.
"""

from __future__ import annotations

from dipsim.basics.arrays import Floats
from dipsim.basics.errors import InputError
from dipsim.memory.eviction.rule import EvictionRule
from dipsim.planning.fetch_plan import Setting
from dipsim.workload.shape import ModelShape

LAYOUTS = ("columns", "bundled")


def check_experts(setting: Setting, rule: type[EvictionRule]) -> None:
    """Raise InputError for options that make no sense with experts."""
    if setting.layout not in LAYOUTS:
        raise InputError(f"layout: {setting.layout} lays columns out; experts lie as {' or '.join(LAYOUTS)}")
    if rule.bypass:
        raise InputError(f"eviction: {rule.name} takes columns of one size; use belady for the best of all caches")
    if setting.start == "filled":
        raise InputError("start: filled: holds the columns of lowest index; use warm or cold with experts")


def expert_pieces(shape: ModelShape, setting: Setting) -> int:
    """In how many reads one expert comes."""
    return 1 if setting.layout == "bundled" else shape.experts.expert_tensors


def piece_read_bytes(shape: ModelShape, setting: Setting, copy: float = 1.0) -> Floats:
    """Bytes of each read of an expert in each layer, [L], of the `copy` of so many parts of the exact one: whole pages.

    A piece that begins anywhere in a page takes a page more, on average; exactly that if it is whole pages long.
    """
    size, page = copy * shape.expert_bytes / expert_pieces(shape, setting), setting.page
    if page == 1:
        return size
    if setting.layout == "bundled" or shape.experts.aligned:
        return -(-size // page) * page
    return (size + page) * (size > 0)
