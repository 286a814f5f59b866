"""ModelShape: the sizes of a SwiGLU decoder and the bytes that each of its parts takes (reference section 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from dipsim.files import Count, InputError, Strict, parse

MATRICES = ("gate_proj", "up_proj", "down_proj")


class Bits(Strict):
    """Bits per value of every part; the defaults are those of the paper's simulator."""

    embedding: Count = 8
    lm_head: Count = 8
    attention: Count = 4
    mlp: Count = 4
    kv_cache: Count = 8


class ModelShape(Strict):
    """What has to be read to decode a token. All sizes are counts of values; all `*_bytes` are bytes."""

    name: str = ""
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count | None = None  # None: hidden_size / num_attention_heads
    vocab_size: Count
    bits: Bits = Field(default_factory=Bits)

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        return self

    @classmethod
    def from_config(cls, config: dict[str, Any], where: object = "config.json", **changes: Any) -> ModelShape:
        """From the fields of a Hugging Face `config.json`. Raises InputError if one is missing or not a size."""
        fields = {key: config[key] for key in cls.model_fields if key in config and key not in ("name", "bits")}
        if fields.get("num_key_value_heads") is None:
            fields["num_key_value_heads"] = config.get("num_attention_heads")
        fields["name"] = Path(str(config.get("_name_or_path") or config.get("model_type", ""))).name
        return parse(cls, fields | changes, where)

    @property
    def mlp_matrix_bytes(self) -> float:
        """One of the 3 L matrices of the MLPs: d m values."""
        return self.hidden_size * self.intermediate_size * self.bits.mlp / 8

    @property
    def mlp_bytes(self) -> float:
        return 3 * self.num_hidden_layers * self.mlp_matrix_bytes

    @property
    def query_size(self) -> int:
        """h head_dim: values of a token's query, and of its attention output."""
        return self.num_attention_heads * self.head_dim if self.head_dim else self.hidden_size

    @property
    def attention_layer_bytes(self) -> float:
        """Query and output [d, h head_dim], key and value [d, h_kv head_dim]; often h head_dim = d."""
        query, key = self.query_size, self.query_size * self.num_key_value_heads / self.num_attention_heads
        return 2 * self.hidden_size * (query + key) * self.bits.attention / 8

    @property
    def attention_bytes(self) -> float:
        return self.num_hidden_layers * self.attention_layer_bytes

    @property
    def lm_head_bytes(self) -> float:
        return self.hidden_size * self.vocab_size * self.bits.lm_head / 8

    @property
    def kv_position_bytes(self) -> float:
        """Key and value of one position in one layer."""
        return 2 * self.query_size * self.num_key_value_heads / self.num_attention_heads * self.bits.kv_cache / 8

    def kv_cache_bytes(self, length: int) -> float:
        """All layers' keys and values of a sequence of `length` positions."""
        return self.num_hidden_layers * self.kv_position_bytes * length

    def static_bytes(self, length: int) -> float:
        """What must be in DRAM whatever the policy: lm_head, attention, KV cache at the full sequence length.

        The embedding is one row a token and is left out, as in the reference.
        """
        return self.lm_head_bytes + self.attention_bytes + self.kv_cache_bytes(length)

    def unit_length(self, matrix: str, axis: str) -> int:
        """Values in the piece of `matrix` that one kept input ("input") or neuron ("neuron") needs.

        Raises InputError for a matrix or an axis that no SwiGLU MLP has.
        """
        if matrix in ("gate_proj", "up_proj") and axis in ("input", "neuron"):
            return self.intermediate_size if axis == "input" else self.hidden_size
        if matrix == "down_proj" and axis == "neuron":
            return self.hidden_size
        raise InputError(f"{matrix!r} cannot be read by {axis!r}; matrices: {', '.join(MATRICES)}; axes: input, neuron")

    def axis_size(self, axis: str) -> int:
        """Number of columns along an axis: d inputs or m neurons."""
        return self.hidden_size if axis == "input" else self.intermediate_size
