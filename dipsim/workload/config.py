"""The sizes of a model from its Hugging Face `config.json`.

A dense model needs no table. A mixture of experts names its sizes in its family's own way, and so does attention that
shares or compresses its heads: a function a family.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dipsim.basics.errors import InputError, quoted
from dipsim.basics.files import read_text

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
ACTIVATIONS = (None, "silu", "swish", "swiglu")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # one size under the names of all families
LARGEST = 10**9  # of a size
LAYERS = 10**4  # no model has as many
PER_TOKEN = ("num_experts_per_tok", "experts_per_token", "top_k_experts")


def read_config(path: Path) -> dict[str, Any]:
    """Read a Hugging Face `config.json`. Raises InputError if it is none."""
    text = read_text(path)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON; a Hugging Face config.json is expected") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: is not a JSON object; a Hugging Face config.json is expected")
    return config


def sizes(config: dict[str, Any], where: object) -> dict[str, Any]:
    """The fields of a `ModelShape`. A `text_config` inside is that of a model with more than text.

    Raises InputError for a mixture of experts of a family that is not in MIXTURES, for a dense model with another
    activation function than silu, and for a size that a family needs and the config lacks.
    """
    text = config.get("text_config")
    whole = config | text if isinstance(text, dict) else config
    fields = {key: whole[key] for key in SIZES if key in whole}
    if fields.get("num_key_value_heads") is None:
        fields["num_key_value_heads"] = whole.get("num_attention_heads")
    fields["name"] = Path(str(config.get("_name_or_path") or config.get("model_type", ""))).name
    family = MIXTURES.get(str(whole.get("model_type"))) if whole.get("enable_moe_block", True) else None
    if family is not None:
        return fields | family(_Sizes(whole, where))
    _check_dense(whole, where)
    return fields


def _check_dense(config: dict[str, Any], where: object) -> None:
    """Raise InputError unless this is a dense model whose activations dipsim can compute."""
    for key, value in config.items():
        several = isinstance(value, list) or (isinstance(value, int) and value > 1)
        if "expert" in key and several:
            raise InputError(
                f"{where}: model_type {quoted(config.get('model_type'))}: its mixture of experts ({key} "
                f"{quoted(value)}) is not supported; supported: {', '.join(MIXTURES)}"
            )
    for key in ("hidden_activation", "hidden_act"):
        if config.get(key) not in ACTIVATIONS:
            raise InputError(
                f"{where}: {key}: {quoted(config[key])} is not supported in a dense model, whose activations are "
                "needed; use a model with silu"
            )


class _Sizes:
    """The whole numbers of a config, each checked when it is asked for."""

    def __init__(self, config: dict[str, Any], where: object) -> None:
        self.config = config
        self.where = where

    def __call__(self, *keys: str, default: int | None = None) -> int:
        """The value of the first of these keys that is there and not null, or the default."""
        for key in keys:
            value = self.config.get(key)
            if value is None:
                continue
            most = LAYERS if key == "num_hidden_layers" else LARGEST
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise InputError(f"{self.where}: {key}: must be a whole number from 0 to {most} (got {quoted(value)})")
            return value
        if default is None:
            raise InputError(f"{self.where}: {' or '.join(keys)}: is required but missing")
        return default

    def listed(self, key: str) -> list[Any]:
        """The list under a key; an empty one if there is none."""
        value = self.config.get(key) or []
        if not isinstance(value, list):
            raise InputError(f"{self.where}: {key}: must be a list (got {quoted(value)})")
        return value

    def mixture(self, size: str = "moe_intermediate_size", **more: Any) -> dict[str, Any]:
        """The fields of a model whose experts have as many neurons as the key `size` says."""
        mixture = {"num_experts": self(*EXPERTS), "num_experts_per_tok": self(*PER_TOKEN)}
        return {"mixture": mixture | {"moe_intermediate_size": self(size)} | more}


def _whole_experts(size: _Sizes) -> dict[str, Any]:
    """Mixtral, OLMoE: every MLP is a mixture, and its experts are of intermediate_size."""
    return size.mixture("intermediate_size")


def _gpt_oss(size: _Sizes) -> dict[str, Any]:
    """gpt-oss: as those, with gate and up in one tensor."""
    return size.mixture("intermediate_size", expert_tensors=2)


def _qwen(size: _Sizes) -> dict[str, Any]:
    """Qwen2-MoE and Qwen3-MoE: perhaps a shared expert, and dense layers by list or by step."""
    dense, step = size.listed("mlp_only_layers"), size("decoder_sparse_step", default=1) or 1
    layers = range(size("num_hidden_layers"))
    return size.mixture(
        shared_intermediate_size=size("shared_expert_intermediate_size", default=0),
        dense_layers=tuple(layer for layer in layers if layer in dense or (layer + 1) % step),
    )


def _deepseek(size: _Sizes) -> dict[str, Any]:
    """DeepSeek-V2 and V3: shared experts, dense layers first, and attention whose keys and values are compressed."""
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    kept, rotated = size("kv_lora_rank"), size("qk_rope_head_dim")
    plain, value = size("qk_nope_head_dim"), size("v_head_dim")
    query, rank = heads * (plain + rotated), size("q_lora_rank", default=0)
    weights = rank * (hidden + query) if rank else hidden * query
    weights += hidden * (kept + rotated) + kept * heads * (plain + value) + heads * value * hidden
    first, step = size("first_k_dense_replace", default=0), size("moe_layer_freq", default=1) or 1
    return {
        "attention_size": weights,
        "kv_size": kept + rotated,
        "head_dim": (plain + rotated + value) // 2,  # a score takes one of the two, a sum the other
        **size.mixture(
            shared_intermediate_size=size("n_shared_experts", default=0) * size("moe_intermediate_size"),
            dense_layers=tuple(i for i in range(size("num_hidden_layers")) if i < first or i % step),
        ),
    }


def _gemma4(size: _Sizes) -> dict[str, Any]:
    """Gemma 4: a dense MLP beside the experts, and two kinds of attention, of which the mean is taken."""
    layers, hidden, heads = size("num_hidden_layers"), size("hidden_size"), size("num_attention_heads")
    kinds = size.listed("layer_types") or [
        "sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(layers)
    ]
    shared = len(kinds) - size("num_kv_shared_layers", default=0)  # the first layer that has no keys of its own
    one = bool(size.config.get("attention_k_eq_v"))  # the values of full attention are its keys
    weights = kept = 0
    for layer, kind in enumerate(kinds):
        full = kind == "full_attention"
        head = size("global_head_dim", default=512) if full else size("head_dim")
        own = layer < shared
        groups = ("num_global_key_value_heads",) if full and one else ()
        key = own * head * size(*groups, "num_key_value_heads")
        weights += hidden * (2 * heads * head + key * (1 if full and one else 2))
        kept += 2 * key
    return {
        "attention_size": round(weights / max(1, len(kinds))),
        "kv_size": round(kept / max(1, len(kinds))),
        **size.mixture(shared_intermediate_size=size("intermediate_size"), expert_tensors=2),
    }


MIXTURES: dict[str, Callable[[_Sizes], dict[str, Any]]] = {
    "mixtral": _whole_experts,
    "olmoe": _whole_experts,
    "gpt_oss": _gpt_oss,
    "qwen2_moe": _qwen,
    "qwen3_moe": _qwen,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gemma4": _gemma4,
    "gemma4_text": _gemma4,
}
