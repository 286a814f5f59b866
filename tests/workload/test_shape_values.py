"""Bytes of a model whose parts all have bits of their own, worked out on paper."""

import pytest
from hand import SHAPE

from dipsim.basics.errors import InputError


def test_each_part_at_its_own_bits():
    """48 weights of attention at 8 bits, 32 of a matrix at 4, 40 of lm_head at 16, 4 values of a position at 32."""
    assert SHAPE.attention_layer_bytes.tolist() == [48, 48]
    assert SHAPE.attention_bytes == 96
    assert (SHAPE.mlp_matrix_bytes, SHAPE.mlp_bytes) == (16, 96)
    assert SHAPE.lm_head_bytes == 80
    assert (SHAPE.kv_position_bytes, SHAPE.kv_cache_bytes(3)) == (16, 96)
    assert (SHAPE.static_bytes(3), SHAPE.static_bytes(3, 2)) == (272, 368)
    bits = SHAPE.bits.model_copy(update={"attention": 3})
    assert SHAPE.model_copy(update={"bits": bits}).attention_bytes == 36


def test_columns():
    assert [SHAPE.unit_length("up_proj", "input"), SHAPE.unit_length("up_proj", "neuron")] == [8, 4]
    assert SHAPE.unit_length("down_proj", "neuron") == 4
    assert [SHAPE.axis_size("input"), SHAPE.axis_size("neuron")] == [4, 8]
    with pytest.raises(InputError, match="'down_proj' cannot be read by 'input'"):
        SHAPE.unit_length("down_proj", "input")


def test_attention_of_another_kind():
    other = SHAPE.model_copy(update={"attention_size": 100, "kv_size": 3})
    assert (other.attention_bytes, other.kv_position_bytes) == (200, 12)
    assert SHAPE.model_copy(update={"head_dim": 5}).query_size == 10
