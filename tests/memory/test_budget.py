"""How DRAM is divided, in bytes worked out on paper. `tests/hand.py` has the sizes."""

import pytest
from hand import SHAPE
from tiny_mixture import SHAPE as MIXTURE

from dipsim.basics.errors import InputError
from dipsim.memory.budget import allocate, column_bytes, columns_held, largest_unit
from dipsim.sparsity.plugins import load_policy
from dipsim.sparsity.policy import Group

NEURON = Group("neuron", ("down_proj",), "neuron", 3)  # 2 B a column, of one matrix
INPUT = Group("input", ("gate_proj", "up_proj"), "input", 2)  # 4 B a column, of each of two
KV, HEAD, ATTENTION = 32, 80, 96  # B: of each position, of lm_head, of two layers of attention


def test_parts_in_turn():
    """Matrices read whole come before the cache, and a cache has whole columns."""
    found = allocate(SHAPE, [NEURON], 176 + 3 * KV + 7 + 64 + 15, 3, policy_bytes=7)
    assert (found.lm_head_bytes, found.attention_bytes, found.kv_cache_bytes) == (HEAD, ATTENTION, 3 * KV)
    assert (found.static_bytes, found.total_bytes) == (176 + 96 + 7, 358)
    assert (found.whole_resident_bytes, found.whole_streamed_bytes, found.whole_resident_share) == (64, 0, 1)
    assert (found.capacities, found.cache_bytes) == ((3,), 12)  # 7.5 B in each of two layers
    assert (found.unused_bytes, found.used_bytes) == (3, 355)
    assert (found.streamed_static_bytes, found.static_resident_share) == (0, 1)


def test_groups_share_by_matrices():
    """90 B for three masked matrices of two layers are 15 B each: 7 columns of 2 B, 3 of 4 B."""
    found = allocate(SHAPE, [INPUT, NEURON], 176 + KV + 90, 1)
    assert found.capacities == columns_held(SHAPE, [INPUT, NEURON], 90) == (3, 7)
    assert (found.cache_bytes, found.unused_bytes) == (2 * (3 * 4 * 2 + 7 * 2), 14)
    assert found.whole_resident_share == 1
    assert columns_held(SHAPE, [INPUT, NEURON], 1000) == (4, 8)
    assert columns_held(SHAPE, [], 1000) == ()
    assert [column_bytes(SHAPE, group) for group in (INPUT, NEURON)] == [4, 2]
    assert [largest_unit(SHAPE, group) for group in (INPUT, NEURON)] == [8, 2]


def test_matrices_read_whole_in_part():
    found = allocate(SHAPE, [NEURON], 176 + KV + 16, 1)
    assert (found.whole_resident_bytes, found.whole_streamed_bytes, found.whole_resident_share) == (16, 48, 0.25)
    assert (found.cache_bytes, found.capacities, found.unused_bytes) == (0, (0,), 0)


def test_without_caching_only_what_is_whole_stays():
    found = allocate(SHAPE, [NEURON], 176 + KV + 64 + 20, 1, caching=False)
    assert (found.whole_resident_bytes, found.cache_bytes, found.capacities, found.unused_bytes) == (64, 0, (0,), 20)


def test_streams_have_a_kv_cache_each():
    found = allocate(SHAPE, [NEURON], 1000, 3, streams=2)
    assert (found.kv_cache_bytes, found.static_bytes) == (2 * 3 * KV, 176 + 6 * KV)
    with pytest.raises(InputError, match="KV cache of 2 streams of 3 positions need"):
        allocate(SHAPE, [NEURON], 100, 3, streams=2)


def test_what_overflows_and_what_must_not():
    assert allocate(SHAPE, [NEURON], 176 + KV, 1).streamed_static_bytes == 0
    with pytest.raises(InputError, match="KV cache of 1 positions need"):
        allocate(SHAPE, [NEURON], 176 + KV - 1, 1)
    found = allocate(SHAPE, [NEURON], 44 + KV + 5, 1, policy_bytes=5, stream_static=True)
    assert (found.streamed_static_bytes, found.static_resident_share) == (132, 0.25)
    assert (found.cache_bytes, found.whole_streamed_bytes, found.unused_bytes) == (0, 64, 0)
    assert allocate(SHAPE, [NEURON], KV + 5, 1, policy_bytes=5, stream_static=True).static_resident_share == 0
    with pytest.raises(InputError, match="dram: 36 B does not hold the KV cache of 1 positions"):
        allocate(SHAPE, [NEURON], KV + 4, 1, policy_bytes=5, stream_static=True)


def test_a_buffer_is_taken_from_the_caches():
    found = allocate(SHAPE, [NEURON], 176 + KV + 64 + 20, 1, buffer_bytes=8)
    assert (found.buffer_bytes, found.cache_bytes, found.unused_bytes) == (8, 12, 0)
    assert allocate(SHAPE, [NEURON], 176 + KV + 8, 1, buffer_bytes=8).cache_bytes == 0
    with pytest.raises(InputError, match="prefetch: buffer: 9 B do not fit into the 216 B of DRAM beside 208 B"):
        allocate(SHAPE, [NEURON], 176 + KV + 8, 1, buffer_bytes=9)


def test_experts_have_all_of_it_in_bytes():
    groups = load_policy("experts").groups(MIXTURE)
    static, whole = MIXTURE.static_bytes(5), float(MIXTURE.whole_mlp_bytes.sum())
    one = float(MIXTURE.expert_bytes.sum())
    found = allocate(MIXTURE, groups, static + whole + 2.5 * one, 5)
    assert (found.cache_bytes, found.capacities, found.unused_bytes) == (2.5 * one, (2,), 0)
    assert (found.whole_resident_bytes, found.whole_streamed_bytes) == (whole, 0)
    every = MIXTURE.mixture.num_experts
    most = allocate(MIXTURE, groups, static + whole + (every + 1) * one, 5)
    assert (most.cache_bytes, most.capacities, most.unused_bytes) == (every * one, (every,), one)
    assert largest_unit(MIXTURE, groups[0]) == MIXTURE.expert_bytes.max()
    matrices = 9 * MIXTURE.mlp_matrix_bytes  # which nothing prunes, in three layers
    none = allocate(MIXTURE, (), static + whole + matrices + (every + 1) * one, 5)
    assert (none.capacities, none.cache_bytes) == ((), every * one)
