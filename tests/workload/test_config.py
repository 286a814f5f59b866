"""Sizes as published, and the parameter counts that they must add up to."""

import json

import pytest

from dipsim.basics.errors import InputError
from dipsim.workload.config import MIXTURES, read_config
from dipsim.workload.shape import BitWidths, ModelShape

BYTES = BitWidths(embedding=8, lm_head=8, attention=8, mlp=8)  # a byte a parameter

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "vocab_size": 32000,
}
QWEN2_MOE = {
    "model_type": "qwen2_moe",
    "_name_or_path": "Qwen/Qwen1.5-MoE-A2.7B",
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "shared_expert_intermediate_size": 5632,
    "vocab_size": 151936,
}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
}
OLMOE = {
    "model_type": "olmoe",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "vocab_size": 50304,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "vocab_size": 201088,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
DEEPSEEK_V2_LITE = DEEPSEEK_V3 | {
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "vocab_size": 102400,
}
GEMMA4 = {
    "model_type": "gemma4",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "gemma4_text",
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "layer_types": [*5 * ["sliding_attention"], "full_attention"] * 5,
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_global_key_value_heads": 2,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "num_kv_shared_layers": 0,
        "top_k_experts": 8,
        "vocab_size": 262144,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
}
DENSE = {
    "model_type": "anything",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 32,
}


@pytest.mark.parametrize(
    ("config", "total", "active", "tied"),
    [
        pytest.param(MIXTRAL, 46.7e9, 12.9e9, False, id="Mixtral-8x7B"),
        pytest.param(QWEN2_MOE, 14.3e9, 2.7e9, False, id="Qwen1.5-MoE-A2.7B"),
        pytest.param(QWEN3_MOE, 30.5e9, 3.3e9, False, id="Qwen3-30B-A3B"),
        pytest.param(OLMOE, 6.92e9, 1.28e9, False, id="OLMoE-1B-7B"),
        pytest.param(GPT_OSS, 20.9e9, 3.6e9, True, id="gpt-oss-20b"),
        pytest.param(DEEPSEEK_V3, 671e9, 37e9, False, id="DeepSeek-V3"),
        pytest.param(DEEPSEEK_V2_LITE, 15.7e9, 2.4e9, True, id="DeepSeek-V2-Lite"),
        pytest.param(GEMMA4, 25.2e9, 3.8e9, True, id="Gemma-4-26B-A4B"),
    ],
)
def test_the_weights_add_up_to_the_published_parameters(config, total, active, tied):
    """`tied`: the embedding is the lm_head, or its publisher leaves it out of the active parameters."""
    shape = ModelShape.from_config(config, bits=BYTES)
    embedding = 0 if config is GEMMA4 else shape.lm_head_bytes
    assert shape.mlp_bytes + shape.attention_bytes + shape.lm_head_bytes + embedding == pytest.approx(total, rel=0.01)
    used = shape.working_set_bytes + shape.whole_mlp_bytes.sum() + shape.attention_bytes + shape.lm_head_bytes
    assert used + (0 if tied else embedding) == pytest.approx(active, rel=0.06)


def test_keys_of_every_family():
    qwen = ModelShape.from_config(QWEN3_MOE)
    assert (qwen.experts.num_experts, qwen.experts.num_experts_per_tok) == (128, 8)
    assert (qwen.experts.moe_intermediate_size, qwen.intermediate_size) == (768, 6144)
    assert (qwen.experts.shared_intermediate_size, qwen.experts.dense_layers) == (0, ())
    assert (qwen.name, qwen.query_size) == ("qwen3_moe", 4096)
    renamed = {key: value for key, value in QWEN3_MOE.items() if key != "num_experts"} | {"num_local_experts": 128}
    assert ModelShape.from_config(renamed) == qwen
    assert ModelShape.from_config(QWEN2_MOE).name == "Qwen1.5-MoE-A2.7B"
    assert ModelShape.from_config(QWEN2_MOE).experts.shared_intermediate_size == 5632
    assert ModelShape.from_config(MIXTRAL).experts.moe_intermediate_size == 14336
    gpt_oss = ModelShape.from_config(GPT_OSS).experts
    assert (gpt_oss.num_experts_per_tok, gpt_oss.moe_intermediate_size, gpt_oss.expert_tensors) == (4, 2880, 2)


@pytest.mark.parametrize(
    ("change", "dense"),
    [
        ({"decoder_sparse_step": 2}, (0, 2, 4)),
        ({"mlp_only_layers": [1, 4]}, (1, 4)),
        ({"mlp_only_layers": [1], "decoder_sparse_step": 3}, (0, 1, 3, 4)),
        ({"mlp_only_layers": None}, ()),
    ],
)
def test_dense_layers_of_qwen(change, dense):
    assert ModelShape.from_config(QWEN3_MOE | {"num_hidden_layers": 6} | change).experts.dense_layers == dense


def test_deepseek_compresses_its_keys_and_values():
    """V3: queries through 1536 values, keys and values through 512, of which and of 64 rotated ones are kept."""
    shape = ModelShape.from_config(DEEPSEEK_V3)
    query = 7168 * 1536 + 1536 * 128 * 192
    assert shape.attention_size == query + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    assert shape.kv_position_bytes == 576
    assert shape.query_size == 128 * 160  # 192 values a score and 128 a sum
    assert (shape.experts.shared_intermediate_size, shape.experts.dense_layers) == (2048, (0, 1, 2))
    lite = ModelShape.from_config(DEEPSEEK_V2_LITE)
    assert lite.attention_size == 2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048
    sparse = ModelShape.from_config(DEEPSEEK_V2_LITE | {"moe_layer_freq": 2, "num_hidden_layers": 5})
    assert sparse.experts.dense_layers == (0, 1, 3)


def test_gemma_has_two_kinds_of_attention_and_a_dense_mlp_beside_the_experts():
    shape = ModelShape.from_config(GEMMA4)
    sliding, full = 2816 * (2 * 16 * 256 + 2 * 8 * 256), 2816 * (2 * 16 * 512 + 2 * 512)
    assert shape.attention_size == round((25 * sliding + 5 * full) / 30)
    assert shape.kv_size == round((25 * 2 * 8 * 256 + 5 * 2 * 2 * 512) / 30)
    assert (shape.name, shape.experts.shared_intermediate_size, shape.experts.expert_tensors) == ("gemma4", 2112, 2)
    text = {key: value for key, value in GEMMA4["text_config"].items() if key != "layer_types"}
    assert ModelShape.from_config(text).sizes == shape.sizes  # the usual pattern, and no config around it
    apart = ModelShape.from_config(text | {"attention_k_eq_v": False, "num_kv_shared_layers": 6})
    assert apart.kv_size == round((20 * 2 * 8 * 256 + 4 * 2 * 8 * 512) / 30)


def test_a_dense_model_of_any_name_is_read_as_ever():
    shape = ModelShape.from_config(DENSE | {"num_experts": 1, "num_local_experts": None, "hidden_act": "silu"})
    assert (shape.mixture, shape.num_key_value_heads, shape.attention_size) == (None, 4, None)
    assert ModelShape.from_config({"model_type": "outer", "text_config": DENSE}).name == "outer"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DENSE | {"hidden_act": "gelu"}, "config.json: hidden_act: 'gelu' is not supported in a dense model"),
        (GEMMA4 | {"text_config": GEMMA4["text_config"] | {"enable_moe_block": False, "num_experts": None,
                                                           "top_k_experts": None}},
         "hidden_activation: 'gelu_pytorch_tanh' is not supported"),
        (DENSE | {"moe_num_experts": 16}, r"model_type 'anything': its mixture of experts \(moe_num_experts 16\) is"),
        (DENSE | {"num_experts": [8, 8]}, "supported: mixtral, olmoe, gpt_oss"),
        (MIXTRAL | {"num_local_experts": None}, "num_experts or num_local_experts or n_routed_experts: is required"),
        (QWEN3_MOE | {"moe_intermediate_size": "768"}, r"moe_intermediate_size: must be a whole number .*'768'"),
        (QWEN3_MOE | {"mlp_only_layers": 3}, "mlp_only_layers: must be a list"),
        (QWEN3_MOE | {"decoder_sparse_step": 49}, "no layer is left for a mixture"),
        (OLMOE | {"num_experts_per_tok": 65}, "num_experts_per_tok: 65 of 64 experts"),
        (DEEPSEEK_V3 | {"kv_lora_rank": None}, "kv_lora_rank: is required but missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(config, message):
    with pytest.raises(InputError, match=message) as error:
        ModelShape.from_config(config)
    assert "\n" not in str(error.value)


def test_every_family_is_tried_here():
    tried = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, GPT_OSS, DEEPSEEK_V3, DEEPSEEK_V2_LITE, GEMMA4)
    assert {config["model_type"] for config in tried} | {"gemma4_text"} == set(MIXTURES)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "is not a JSON object")])
def test_files_that_are_no_config(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(path)
    path.write_text(json.dumps(DENSE))
    assert read_config(path) == DENSE


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: must be a whole number from 0 to 10000 (got 1000000000)"),
        ({"hidden_size": 10**400}, "hidden_size: "),
        ({"num_experts": 10**10}, "num_experts: must be a whole number from 0 to 1000000000 (got 10000000000)"),
        ({"mlp_only_layers": "x" * 5000}, "mlp_only_layers: must be a list (got 'xxx"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(tmp_path, changes, complaint):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN3_MOE | changes))
    with pytest.raises(InputError) as error:
        ModelShape.from_config(read_config(path), path)
    assert str(error.value).startswith(f"{path}: ")
    assert complaint in str(error.value)
    assert len(str(error.value)) < 600
