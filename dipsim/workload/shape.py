"""The sizes of a SwiGLU decoder, and the bytes of its parts (docs/background/equations.md, sections 3 and 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, PlainSerializer, model_validator

from dipsim.basics.arrays import Floats, Mask
from dipsim.basics.errors import InputError
from dipsim.basics.fields import Count, Strict, parse
from dipsim.workload.config import LAYERS, sizes
from dipsim.workload.mixture import Mixture

MATRICES = ("gate_proj", "up_proj", "down_proj")


_MEASURED = {"mlp": "expert_bytes", "attention": "dense_bytes"}  # sizes of a mixture that do not follow from bits


def _whole(bits: float) -> Any:
    """Written as 4 rather than 4.0, so that equal bits are equal texts in headers, tables and keys."""
    return int(bits) if bits == int(bits) else bits


Bits = Annotated[float, Field(strict=True, gt=0, le=64), PlainSerializer(_whole)]


class BitWidths(Strict):
    """Bits per value of each part, scales and all: 4.5 where 32 values of 4 bits share a scale of 16.

    The defaults are those of the paper's simulator.
    """

    embedding: Bits = 8
    lm_head: Bits = 8
    attention: Bits = 4
    mlp: Bits = 4
    kv_cache: Bits = 8


class ModelShape(Strict):
    """The sizes of a model, under the names of a Hugging Face `config.json`.

    Sizes are counts of values. Everything named `*_bytes` is in bytes. `head_dim` is hidden_size /
    num_attention_heads by default. Attention that shares or compresses its heads in another way than
    `num_key_value_heads` says how many weights a layer has (`attention_size`) and how many values it keeps of a
    position (`kv_size`). A `mixture` replaces the MLPs; `intermediate_size` is then that of the layers without one.
    """

    name: str = ""
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Annotated[Count, Field(le=LAYERS)]
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count | None = None
    vocab_size: Count
    attention_size: Count | None = None
    kv_size: Count | None = None
    mixture: Mixture | None = None
    bits: BitWidths = Field(default_factory=BitWidths)

    @model_validator(mode="after")
    def _mixture_fits(self) -> Self:
        if self.mixture is not None:
            self.mixture.fits(self.num_hidden_layers)
        return self

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
        """The shape without its name and bits: equal where two models have the same sizes."""
        return self.model_copy(update={"name": "", "bits": BitWidths()})

    def with_bits(self, changes: Mapping[str, float]) -> ModelShape:
        """The shape with other bits of some parts. Raises InputError for a part whose bytes were measured."""
        for part, name in _MEASURED.items():
            if part in changes and self.mixture is not None and getattr(self.mixture, name) is not None:
                raise InputError(
                    f"bits: {part}: the trace of {self.name or 'the model'} has measured sizes ({name}), which no bits "
                    "change; leave it out"
                )
        return self.model_copy(update={"bits": self.bits.model_copy(update=dict(changes))})

    @classmethod
    def from_config(cls, config: dict[str, Any], where: object = "config.json", **changes: Any) -> ModelShape:
        """Make a shape of a Hugging Face `config.json`. Raises InputError if it cannot be used."""
        return parse(cls, sizes(config, where) | changes, where)

    @property
    def experts(self) -> Mixture:
        """The mixture. Raises InputError if the model has none."""
        if self.mixture is None:
            raise InputError(f"{self.name or 'the model'} has no experts; use a policy for dense MLPs, such as dip")
        return self.mixture

    @property
    def mlp_matrix_bytes(self) -> float:
        """One matrix of one MLP: d m values."""
        return self.hidden_size * self.intermediate_size * self.bits.mlp / 8

    @property
    def mlp_bytes(self) -> float:
        """The MLPs of all layers: their three matrices, or all experts and what is read whole."""
        if self.mixture is None:
            return 3 * self.num_hidden_layers * self.mlp_matrix_bytes
        return float(self.mixture.num_experts * self.expert_bytes.sum() + self.whole_mlp_bytes.sum())

    @property
    def is_mixture(self) -> Mask:
        """Which layers have a mixture, [L]."""
        layers = np.full(self.num_hidden_layers, self.mixture is not None)
        if self.mixture is not None:
            layers[list(self.mixture.dense_layers)] = False
        return layers

    @property
    def expert_bytes(self) -> Floats:
        """One expert of each layer, [L]; 0 where there is none. Raises InputError if the model has no experts."""
        mixture = self.experts
        if mixture.expert_bytes is not None:
            return np.asarray(np.where(self.is_mixture, np.array(mixture.expert_bytes, dtype=np.float64), 0.0))
        return np.asarray(3 * self.hidden_size * mixture.moe_intermediate_size * self.bits.mlp / 8 * self.is_mixture)

    @property
    def whole_mlp_bytes(self) -> Floats:
        """What every token reads of the MLPs of a model with experts, [L]: shared experts, and layers without any.

        It is 0 where `dense_bytes` holds it.
        """
        mixture = self.mixture
        if mixture is None or mixture.dense_bytes is not None:
            return np.zeros(self.num_hidden_layers)
        neurons = np.where(self.is_mixture, mixture.shared_intermediate_size, self.intermediate_size)
        return np.asarray(3 * self.hidden_size * neurons * self.bits.mlp / 8)

    @property
    def working_set_bytes(self) -> float:
        """The experts that one token uses by itself, in all layers. Raises InputError if the model has none."""
        return float(self.experts.num_experts_per_tok * self.expert_bytes.sum())

    @property
    def query_size(self) -> int:
        """Values of a token's query and of its attention output: num_attention_heads x head_dim."""
        return self.num_attention_heads * self.head_dim if self.head_dim else self.hidden_size

    @property
    def attention_layer_bytes(self) -> Floats:
        """Query, key, value and output projections of each layer, [L], with the router where there is one.

        `dense_bytes` replaces them.
        """
        if self.mixture is not None and self.mixture.dense_bytes is not None:
            return np.array(self.mixture.dense_bytes, dtype=np.float64)
        query, key = self.query_size, self.query_size * self.num_key_value_heads / self.num_attention_heads
        weights = self.attention_size or 2 * self.hidden_size * (query + key)
        routers = self.is_mixture * self.hidden_size * (self.mixture.num_experts if self.mixture else 0)
        return np.asarray((weights + routers) * self.bits.attention / 8)

    @property
    def attention_bytes(self) -> float:
        """The attention projections of all layers, as above."""
        return float(self.attention_layer_bytes.sum())

    @property
    def lm_head_bytes(self) -> float:
        """The output projection: d V values."""
        return self.hidden_size * self.vocab_size * self.bits.lm_head / 8

    @property
    def kv_position_bytes(self) -> float:
        """Key and value of one position in one layer."""
        values = self.kv_size or 2 * self.query_size * self.num_key_value_heads / self.num_attention_heads
        return values * self.bits.kv_cache / 8

    def kv_cache_bytes(self, length: int) -> float:
        """All layers' keys and values of a sequence of `length` positions."""
        return self.num_hidden_layers * self.kv_position_bytes * length

    def static_bytes(self, length: int, streams: int = 1) -> float:
        """What every policy needs in DRAM: lm_head, attention, and the KV caches of `streams` times `length` positions.

        The embedding is left out, because a token reads one row of it.
        """
        return self.lm_head_bytes + self.attention_bytes + streams * self.kv_cache_bytes(length)

    def layer_memory(self, tokens: int) -> float:
        """What a layer's activations or router logits of so many tokens take in this process, in bytes: float32, and
        what is drawn of each neuron.
        """
        if self.mixture is not None:
            return 4.0 * tokens * self.mixture.num_experts
        return 4.0 * tokens * (self.hidden_size + 2 * self.intermediate_size) + 32.0 * self.intermediate_size

    def unit_length(self, matrix: str, axis: str) -> int:
        """Values in the piece of `matrix` that one kept column along `axis` ("input" or "neuron") needs.

        Along the axis "expert" it is the matrix of one expert. Raises InputError for a matrix or an axis that the MLPs
        do not have.
        """
        if axis == "expert" and matrix in MATRICES:
            return self.hidden_size * self.experts.moe_intermediate_size
        if matrix in ("gate_proj", "up_proj") and axis in ("input", "neuron"):
            return self.intermediate_size if axis == "input" else self.hidden_size
        if matrix == "down_proj" and axis == "neuron":
            return self.hidden_size
        known = f"matrices: {', '.join(MATRICES)}; axes: input, neuron, expert"
        raise InputError(f"{matrix!r} cannot be read by {axis!r}; {known}")

    def axis_size(self, axis: str) -> int:
        """Number of columns along an axis: hidden_size inputs, intermediate_size neurons or num_experts experts."""
        if axis == "expert":
            return self.experts.num_experts
        return self.hidden_size if axis == "input" else self.intermediate_size
