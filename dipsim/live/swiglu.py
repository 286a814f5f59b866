"""One view of the MLPs of all model families, whatever they call or fuse them.

It knows Llama, Mistral, Qwen2, Qwen3, SmolLM2 (`gate_proj`, `up_proj`) and Phi-3 (`gate_up_proj`, the gate in the first
half). MLPs with another activation than silu are refused. Mixtures of experts are known by their routers
(`routers.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dipsim.basics.errors import InputError
from dipsim.workload.shape import ModelShape

# Linear layers in the order they run, and the matrices whose rows each one's weight stacks.
_LAYOUTS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"gate_proj": ("gate_proj",), "up_proj": ("up_proj",), "down_proj": ("down_proj",)},
    {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)},
)


@dataclass(frozen=True)
class Mlp:
    """One decoder layer's SwiGLU MLP: down_proj(activation(gate_proj(x)) * up_proj(x)).

    `layout` names the module's linear layers in the order they run, and the matrices whose rows each weight stacks.
    Weights and biases are views: writing to them changes the model.
    """

    module: nn.Module
    activation: Callable[[Tensor], Tensor]
    layout: dict[str, tuple[str, ...]]

    @property
    def linears(self) -> list[tuple[nn.Module, tuple[str, ...]]]:
        """The linear layers as they are now (an adapter may have wrapped them), each with its matrices."""
        return [(getattr(self.module, attribute), names) for attribute, names in self.layout.items()]

    def weight(self, matrix: str) -> Tensor:
        """`gate_proj` or `up_proj` [m, d], or `down_proj` [d, m]. Raises KeyError for any other name."""
        linear, place, count = self._find(matrix)
        weight: Tensor = linear.weight
        return weight.chunk(count)[place]

    def bias(self, matrix: str) -> Tensor | None:
        """[m] or [d], or None where the matrix has none. Raises KeyError for an unknown name."""
        linear, place, count = self._find(matrix)
        return None if linear.bias is None else linear.bias.chunk(count)[place]

    def project(self, matrix: str, x: Tensor) -> Tensor:
        """`matrix` applied to x [..., d or m], adapters included."""
        linear, place, count = self._find(matrix)
        product: Tensor = linear(x)
        return product.chunk(count, dim=-1)[place]

    def glu(self, x: Tensor) -> Tensor:
        """The product gate * up of any x [..., d]: float32 [..., m], adapters included. No hook sees it."""
        products: dict[str, Tensor] = {}
        for linear, names in self.linears[:-1]:
            product: Tensor = linear.forward(x)
            products |= zip(names, product.float().chunk(len(names), dim=-1), strict=True)
        return self.activation(products["gate_proj"]) * products["up_proj"]

    def _find(self, matrix: str) -> tuple[Any, int, int]:
        for linear, names in self.linears:
            if matrix in names:
                return linear, names.index(matrix), len(names)
        raise KeyError(matrix)


def find_mlps(model: Any) -> list[Mlp]:
    """The MLP of every decoder layer, in order. Raises InputError if the model is not a SwiGLU decoder."""
    mlps = [_adapt(getattr(layer, "mlp", None)) for layer in getattr(model.base_model, "layers", ())]
    found = [mlp for mlp in mlps if mlp is not None]
    if not found or len(found) < len(mlps):
        raise InputError(
            f"{type(model).__name__}: not a SwiGLU decoder (gate_proj and up_proj, or gate_up_proj, then down_proj, "
            "with silu, in every layer); use a model of the Llama, Mistral, Qwen or Phi-3 family"
        )
    return found


def check_dense(shape: ModelShape, task: str) -> None:
    """Raise InputError if the model is a mixture of experts, for a task on the columns of MLPs."""
    if shape.mixture is not None:
        raise InputError(f"{shape.name or 'the model'}: is a mixture of experts; {task} needs a model with dense MLPs")


def _adapt(module: Any) -> Mlp | None:
    """The adapter of one MLP module, or None if it computes something else."""
    activation = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
    probe = torch.linspace(-4, 4, 33)  # compared by value: classes and names of silu differ between versions
    if activation is None or not torch.allclose(activation(probe), nn.functional.silu(probe)):
        return None
    for layout in _LAYOUTS:
        if all(isinstance(getattr(module, attribute, None), nn.Linear) for attribute in layout):
            return Mlp(module, activation, layout)
    return None
