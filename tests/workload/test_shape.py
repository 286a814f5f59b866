import pytest

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.workload.shape import ModelShape

PHI3_MEDIUM = {
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "vocab_size": 32064,
}


def test_phi3_medium_has_the_bytes_of_the_worked_example():
    """reference: 5.505 GB of MLP, 1.311 GB of attention, 0.164 GB of lm_head, 0.210 GB of KV cache at 2048."""
    shape = ModelShape(**PHI3_MEDIUM)
    assert shape.mlp_bytes == 3 * 40 * 5120 * 17920 * 0.5
    assert [round(x / 1e9, 3) for x in (shape.mlp_bytes, shape.attention_bytes, shape.lm_head_bytes)] == [
        5.505,
        1.311,
        0.164,
    ]
    assert round(shape.kv_cache_bytes(2048) / 1e9, 3) == 0.210


def test_from_a_hugging_face_config():
    config = PHI3_MEDIUM | {"model_type": "phi3", "torch_dtype": "bfloat16"}
    assert ModelShape.from_config(config) == ModelShape(name="phi3", **PHI3_MEDIUM)
    del config["num_key_value_heads"]
    assert ModelShape.from_config(config).num_key_value_heads == 40
    del config["hidden_size"]
    with pytest.raises(InputError, match="hidden_size: is required"):
        ModelShape.from_config(config)


def test_heads_wider_than_their_share_of_the_hidden_size():
    """Qwen3-0.6B: 16 heads of 128 on a hidden size of 1024."""
    config = PHI3_MEDIUM | {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    shape = ModelShape(**config)
    assert (shape.attention_layer_bytes == (2 * 1024 * 2048 + 2 * 1024 * 1024) / 2).all()
    assert shape.kv_position_bytes == 2 * 8 * 128


@pytest.mark.parametrize(
    "change", [{"hidden_size": 0}, {"num_hidden_layers": -1}, {"num_key_value_heads": 3}, {"hidden": 1}]
)
def test_impossible_shapes_are_refused(change):
    with pytest.raises(InputError):
        parse(ModelShape, PHI3_MEDIUM | change, "shape")
