"""One view of the routers of all mixtures of experts whose tokens choose by softmax and top-k.

It knows Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE, and whatever else has a block of a `gate` and `experts` that computes
the same. What a gate computes is compared by value, because classes and names differ between families and versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dipsim.basics.errors import InputError

TINY = 1e-30  # for a token that uses no expert


@dataclass(frozen=True)
class Router:
    """The router of one decoder layer. Its module gives logits [n, E], and of the k experts of a token weights and ids.

    The weights [n, k] are softmax probabilities among all experts, which are `normalised` to sum to 1 or left as they
    are.
    """

    module: nn.Module
    layer: int
    normalised: bool

    def logits(self, x: Tensor) -> Tensor:
        """The logits [n, E] that the module makes of any x [..., d], as it makes them of its own. No hook sees it."""
        logits: Tensor = self.module.forward(x)[0]
        return logits

    def reroute(self, logits: Tensor, own: Tensor, masks: Tensor, fewer: bool) -> tuple[Tensor, Tensor]:
        """Weights and ids [n, K] of the experts in masks [n, E], the likeliest first; K is the most that a token uses.

        The weights are made of the same logits [n, E] as the router's `own` [n, k]. Where they are not normalised, and
        a token is to use `fewer` than k, they are scaled to sum to what its own do. A place that is left empty repeats
        an expert with weight 0, which all implementations of the experts can compute.
        """
        places = max(1, int(masks.sum(dim=-1).max()))
        ids = logits.float().masked_fill(~masks, -torch.inf).topk(places, dim=-1).indices
        filled = masks.gather(-1, ids)
        weights = _probabilities(logits).gather(-1, ids) * filled
        if self.normalised:
            weights /= weights.sum(dim=-1, keepdim=True).clamp(min=TINY)
        elif fewer:
            weights *= own.float().sum(dim=-1, keepdim=True) / weights.sum(dim=-1, keepdim=True).clamp(min=TINY)
        return weights.to(own.dtype), torch.where(filled, ids, ids[:, :1])


def find_routers(model: Any) -> list[Router]:
    """The routers of the layers that are mixtures of experts, in order; none if no layer is.

    Raises InputError if a router chooses in another way than by softmax and top-k.
    """
    routers = []
    for layer, block in enumerate(getattr(each, "mlp", None) for each in getattr(model.base_model, "layers", ())):
        gate = getattr(block, "gate", None)
        if gate is None or not hasattr(block, "experts"):
            continue
        normalised = _normalised(gate)
        if normalised is None:
            raise InputError(
                f"{type(model).__name__}: layer {layer}: its router does not choose by softmax and top-k; use a "
                "mixture of the Mixtral, Qwen2-MoE, Qwen3-MoE or OLMoE family, and transformers 5.24 or newer"
            )
        routers.append(Router(gate, layer, normalised))
    return routers


def _probabilities(logits: Tensor) -> Tensor:
    """Softmax over the experts, in float32 as in the models."""
    return logits.softmax(dim=-1, dtype=torch.float32)


def _normalised(gate: Any) -> bool | None:
    """Whether a gate's weights sum to 1; None if it computes something else than a `Router`.

    The first token is 0: all experts are then equal, and k of E weigh 1 together or k / E.
    """
    weight = getattr(gate, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    experts, size = weight.shape
    ramp = torch.linspace(-1, 1, 2 * size, dtype=weight.dtype, device=weight.device).view(2, size)
    with torch.inference_mode():
        try:
            found = gate(torch.cat([torch.zeros_like(ramp[:1]), ramp]))
        except TypeError:  # it wants more than a token
            return None
        if not isinstance(found, tuple) or [getattr(each, "ndim", 0) for each in found] != [2, 2, 2]:
            return None
        logits, weights, ids = found
        if logits.shape != (3, experts) or ids.dtype != torch.int64:
            return None
        if not torch.equal(logits.gather(-1, ids).sort().values, logits.topk(ids.shape[-1]).values.sort().values):
            return None
        likely = _probabilities(logits).gather(-1, ids)
        for normalised, expected in ((True, likely / likely.sum(dim=-1, keepdim=True)), (False, likely)):
            if torch.allclose(weights.float(), expected, rtol=1e-2):
                return normalised
    return None
