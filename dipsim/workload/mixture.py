"""A mixture of experts: the sizes of its router's choice and of its experts, from bits or as measured."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from dipsim.basics.fields import Count, Natural, Strict

Bytes = tuple[Natural, ...]


class Mixture(Strict):
    """The MLPs of a model that are mixtures: each token uses `num_experts_per_tok` of `num_experts` SwiGLU experts.

    An expert has `moe_intermediate_size` neurons. `shared_intermediate_size` are those of the shared experts together,
    which every token uses (0). The MLPs of `dense_layers` are no mixtures (none). `expert_bytes` and `dense_bytes`, a
    number a layer, are measured sizes: of one expert, and of all else that a token reads of a layer. Without them,
    sizes follow from the bits of the model. An expert lies in `expert_tensors` tensors, 3 (the default), or 2 where
    gate and up are one. `aligned` says whether they begin on pages of Flash (the default). Those of a GGUF file do not.
    """

    num_experts: Annotated[Count, Field(le=2**15)]
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    shared_intermediate_size: Natural = 0
    dense_layers: tuple[Natural, ...] = ()
    expert_bytes: Bytes | None = None
    dense_bytes: Bytes | None = None
    expert_tensors: Annotated[int, Field(strict=True, ge=2, le=3)] = 3
    aligned: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok: {self.num_experts_per_tok} of {self.num_experts} experts; give no more than "
                "there are"
            )
        if list(self.dense_layers) != sorted(set(self.dense_layers)):
            raise ValueError("dense_layers: must rise, each layer once")
        return self

    def fits(self, layers: int) -> None:
        """Raise ValueError unless this is a mixture of a model of so many layers."""
        if self.dense_layers and self.dense_layers[-1] >= layers:
            raise ValueError(f"mixture.dense_layers: {self.dense_layers[-1]} is not one of the {layers} layers")
        if len(self.dense_layers) == layers:
            raise ValueError("mixture.dense_layers: no layer is left for a mixture")
        for name in ("expert_bytes", "dense_bytes"):
            sizes = getattr(self, name)
            if sizes is not None and len(sizes) != layers:
                raise ValueError(f"mixture.{name}: {len(sizes)} sizes for {layers} layers; give one a layer")
        missing = [
            layer for layer, size in enumerate(self.expert_bytes or ()) if size == 0 and layer not in self.dense_layers
        ]
        if missing:
            raise ValueError(f"mixture.expert_bytes: missing for layer {missing[0]}; give the bytes of one expert")
