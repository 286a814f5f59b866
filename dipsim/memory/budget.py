"""Divides the DRAM: static parts first, then matrices that are read whole, then equal caches, or one of experts.

The equations are in docs/background/equations.md, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipsim.basics.errors import InputError
from dipsim.basics.units import show
from dipsim.sparsity.policy import Group, whole_matrices
from dipsim.workload.shape import ModelShape


@dataclass(frozen=True)
class Budget:
    """How the DRAM is divided. Everything named `*_bytes` is for the whole model."""

    total_bytes: float
    lm_head_bytes: float
    attention_bytes: float
    kv_cache_bytes: float
    policy_bytes: float  # what the policy itself needs (a predictor), always resident
    streamed_static_bytes: float  # of lm_head and attention, read from Flash for every token
    whole_resident_bytes: float  # matrices that the policy reads whole: resident part
    whole_streamed_bytes: float  # and the part read from Flash for every token
    cache_bytes: float
    capacities: tuple[int | tuple[int, ...], ...]  # columns of each group in every layer, or in each; experts likewise
    unused_bytes: float
    buffer_bytes: float  # for guesses

    def in_layers(self, layers: int) -> list[tuple[int, ...]]:
        """The capacity of each group in each of so many layers."""
        return [each if isinstance(each, tuple) else (each,) * layers for each in self.capacities]

    @property
    def used_bytes(self) -> float:
        """What is assigned. Caches may never fill their part."""
        return self.total_bytes - self.unused_bytes

    @property
    def static_bytes(self) -> float:
        """What every token reads besides the MLP, resident or streamed."""
        return self.lm_head_bytes + self.attention_bytes + self.kv_cache_bytes + self.policy_bytes

    @property
    def static_resident_share(self) -> float:
        """The share of lm_head and attention that is in DRAM."""
        return 1 - self.streamed_static_bytes / (self.lm_head_bytes + self.attention_bytes)

    @property
    def whole_resident_share(self) -> float:
        """The share of the matrices read whole that is in DRAM."""
        whole = self.whole_resident_bytes + self.whole_streamed_bytes
        return self.whole_resident_bytes / whole if whole else 1.0


def allocate(
    shape: ModelShape,
    groups: Sequence[Group],
    dram_bytes: float,
    length: int,
    *,
    policy_bytes: float = 0.0,
    caching: bool = True,
    stream_static: bool = False,
    streams: int = 1,
    buffer_bytes: float = 0.0,
) -> Budget:
    """Divide `dram_bytes` for sequences of `length` positions, `streams` at a time.

    The dynamic part is split equally over the masked matrices of all layers; a capacity never exceeds the number of
    columns. Experts get all of it together, in bytes. Without `caching` nothing is cached, but matrices read whole
    still stay in DRAM. Raises InputError if the static bytes do not fit, unless `stream_static` lets lm_head and
    attention overflow to Flash, each in proportion. The KV cache and the policy's own bytes must always fit.
    """
    kv_cache = streams * shape.kv_cache_bytes(length)
    static = shape.static_bytes(length, streams) + policy_bytes
    positions = f"{length} positions" if streams == 1 else f"{streams} streams of {length} positions"
    overflow = max(0.0, static - dram_bytes)
    if overflow and not stream_static:
        raise InputError(
            f"dram: {show(dram_bytes, 'size')} is less than the {show(static, 'size')} that lm_head, attention and the "
            f"KV cache of {positions} need; give more, fewer tokens, or set stream_static: true"
        )
    if kv_cache + policy_bytes > dram_bytes:
        raise InputError(
            f"dram: {show(dram_bytes, 'size')} does not hold the KV cache of {positions} "
            f"({show(kv_cache, 'size')}); give more, or fewer tokens"
        )
    if buffer_bytes > max(0.0, dram_bytes - static):
        raise InputError(
            f"prefetch: buffer: {show(buffer_bytes, 'size')} do not fit into the {show(dram_bytes, 'size')} of DRAM "
            f"beside {show(static, 'size')} that every token reads; give less, or more DRAM"
        )
    dynamic = max(0.0, dram_bytes - static - buffer_bytes)
    whole = len(whole_matrices(groups)) * shape.num_hidden_layers * shape.mlp_matrix_bytes
    whole += float(shape.whole_mlp_bytes.sum())
    whole_resident = min(whole, dynamic)
    room = dynamic - whole_resident if caching else 0.0
    if shape.mixture is not None:
        experts = float(shape.expert_bytes.sum())  # one of each layer
        copies = sum(groups[0].copies) if groups else 1.0
        cache = min(room, copies * shape.mixture.num_experts * experts)
        capacities = tuple(int(cache // experts) for _ in groups)
    else:
        capacities = columns_held(shape, groups, room)
        cache = sum(
            capacity * column_bytes(shape, group) * len(group.matrices) * shape.num_hidden_layers
            for capacity, group in zip(capacities, groups, strict=True)
        )
    return Budget(
        total_bytes=dram_bytes,
        lm_head_bytes=shape.lm_head_bytes,
        attention_bytes=shape.attention_bytes,
        kv_cache_bytes=kv_cache,
        policy_bytes=policy_bytes,
        streamed_static_bytes=overflow,
        whole_resident_bytes=whole_resident,
        whole_streamed_bytes=whole - whole_resident,
        cache_bytes=cache,
        capacities=capacities,
        unused_bytes=dynamic - whole_resident - cache,
        buffer_bytes=buffer_bytes,
    )


def columns_held(shape: ModelShape, groups: Sequence[Group], size: float) -> tuple[int, ...]:
    """The columns of each group that `size` bytes hold in each layer, where all masked matrices share them evenly."""
    masked = sum(len(group.matrices) for group in groups) * shape.num_hidden_layers
    share = size / masked if masked else 0.0
    return tuple(min(shape.axis_size(group.axis), int(share // column_bytes(shape, group))) for group in groups)


def largest_unit(shape: ModelShape, group: Group) -> float:
    """Bytes of the largest unit of a group, a column of all its matrices or an expert, in any layer."""
    if group.axis == "expert":
        return float(shape.expert_bytes.max())
    return len(group.matrices) * column_bytes(shape, group)


def column_bytes(shape: ModelShape, group: Group) -> float:
    """Bytes of one column of one matrix of a group."""
    return shape.unit_length(group.matrices[0], group.axis) * shape.bits.mlp / 8
