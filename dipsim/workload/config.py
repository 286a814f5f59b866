"""The sizes of a model from its Hugging Face `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


def sizes(config: dict[str, Any], where: object) -> dict[str, Any]:
    """The fields of a `ModelShape`. Raises InputError for a model that is not supported."""
    fields = {key: config[key] for key in SIZES if key in config}
    if fields.get("num_key_value_heads") is None:
        fields["num_key_value_heads"] = config.get("num_attention_heads")
    fields["name"] = Path(str(config.get("_name_or_path") or config.get("model_type", ""))).name
    return fields
