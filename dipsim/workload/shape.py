"""The sizes of a SwiGLU decoder, and the bytes of each of its parts (docs/background.md, section 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from dipsim.basics.errors import InputError
from dipsim.basics.fields import Count, Strict, parse

MATRICES = ("gate_proj", "up_proj", "down_proj")


class BitWidths(Strict):
    """Bits per value of each part. The defaults are those of the paper's simulator."""

    embedding: Count = 8
    lm_head: Count = 8
    attention: Count = 4
    mlp: Count = 4
    kv_cache: Count = 8


class ModelShape(Strict):
    """The sizes of a model, under the names of a Hugging Face `config.json`.

    Sizes are counts of values. Everything named `*_bytes` is in bytes. `head_dim` is hidden_size /
    num_attention_heads by default.
    """

    name: str = ""
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count | None = None
    vocab_size: Count
    bits: BitWidths = Field(default_factory=BitWidths)

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        return self

    @property
    def sizes(self) -> ModelShape:
        """The shape without its name: equal where two models have the same sizes."""
        return self.model_copy(update={"name": ""})

    @classmethod
    def from_config(cls, config: dict[str, Any], where: object = "config.json", **changes: Any) -> ModelShape:
        """Make a shape of a Hugging Face `config.json`. Raises InputError if a field is missing or not a size."""
        fields = {key: config[key] for key in cls.model_fields if key in config and key not in ("name", "bits")}
        if fields.get("num_key_value_heads") is None:
            fields["num_key_value_heads"] = config.get("num_attention_heads")
        fields["name"] = Path(str(config.get("_name_or_path") or config.get("model_type", ""))).name
        return parse(cls, fields | changes, where)

    @property
    def mlp_matrix_bytes(self) -> float:
        """One matrix of one MLP: d m values."""
        return self.hidden_size * self.intermediate_size * self.bits.mlp / 8

    @property
    def mlp_bytes(self) -> float:
        """The three MLP matrices of all layers."""
        return 3 * self.num_hidden_layers * self.mlp_matrix_bytes

    @property
    def query_size(self) -> int:
        """Values of a token's query and of its attention output: num_attention_heads x head_dim."""
        return self.num_attention_heads * self.head_dim if self.head_dim else self.hidden_size

    @property
    def attention_layer_bytes(self) -> float:
        """One layer's query, key, value and output projections."""
        query, key = self.query_size, self.query_size * self.num_key_value_heads / self.num_attention_heads
        return 2 * self.hidden_size * (query + key) * self.bits.attention / 8

    @property
    def attention_bytes(self) -> float:
        """The attention projections of all layers."""
        return self.num_hidden_layers * self.attention_layer_bytes

    @property
    def lm_head_bytes(self) -> float:
        """The output projection: d V values."""
        return self.hidden_size * self.vocab_size * self.bits.lm_head / 8

    @property
    def kv_position_bytes(self) -> float:
        """Key and value of one position in one layer."""
        return 2 * self.query_size * self.num_key_value_heads / self.num_attention_heads * self.bits.kv_cache / 8

    def kv_cache_bytes(self, length: int) -> float:
        """All layers' keys and values of a sequence of `length` positions."""
        return self.num_hidden_layers * self.kv_position_bytes * length

    def static_bytes(self, length: int) -> float:
        """What every policy needs in DRAM: lm_head, attention, and the KV cache of `length` positions.

        The embedding is left out, because a token reads one row of it.
        """
        return self.lm_head_bytes + self.attention_bytes + self.kv_cache_bytes(length)

    def unit_length(self, matrix: str, axis: str) -> int:
        """Values in the piece of `matrix` that one kept column along `axis` ("input" or "neuron") needs.

        Raises InputError for a matrix or an axis that no SwiGLU MLP has.
        """
        if matrix in ("gate_proj", "up_proj") and axis in ("input", "neuron"):
            return self.intermediate_size if axis == "input" else self.hidden_size
        if matrix == "down_proj" and axis == "neuron":
            return self.hidden_size
        raise InputError(f"{matrix!r} cannot be read by {axis!r}; matrices: {', '.join(MATRICES)}; axes: input, neuron")

    def axis_size(self, axis: str) -> int:
        """Number of columns along an axis: hidden_size inputs or intermediate_size neurons."""
        return self.hidden_size if axis == "input" else self.intermediate_size
