"""Perplexity of a loaded model under a policy, and the fetch plans of the same masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipsim.basics.arrays import Floats
from dipsim.live.closed_loop import LiveActivations, as_numpy, sparsified
from dipsim.live.models import LoadedModel
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.placer import Placer
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.ranking import score_threshold
from dipsim.sparsity.selection import checked_groups


@dataclass(frozen=True)
class Quality:
    """Perplexity of a setting; `standard_error` is paired with the dense model over tokens (0 for dense itself)."""

    perplexity: float
    standard_error: float


def measure(
    loaded: LoadedModel, ids: Tensor, settings: Sequence[Setting], limits: Sequence[dict[str, float]] = ()
) -> tuple[Floats, list[FetchPlan]]:
    """Negative log-likelihoods [S, T - 1] of tokens [S, T], and the plan of each setting.

    All settings must be of one policy; they share one pass. Raises InputError if a setting cannot work.
    """
    sequences, length = ids.shape
    starts = tuple(range(0, sequences * length, length))
    builders = [PlanBuilder(loaded.shape, setting, sequences * length, starts) for setting in settings]
    placer = Placer(builders, loaded.shape)
    for layer in range(loaded.shape.num_hidden_layers):
        placer.place(layer)
    with torch.inference_mode(), sparsified(loaded.mlps, builders, limits):
        losses = nll(loaded, ids)
    return losses, [builder.finish() for builder in builders]


def nll(loaded: LoadedModel, ids: Tensor) -> Floats:
    """Negative log-likelihood [S, T - 1] of every token but a sequence's first, in nats."""
    hidden = loaded.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    head = loaded.model.get_output_embeddings()
    losses = []
    for states, targets in zip(hidden, ids, strict=True):  # one sequence's logits at a time
        logits = head(states[:-1])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses.append(torch.nn.functional.cross_entropy(logits, targets[1:], reduction="none"))
    return torch.stack(losses).double().cpu().numpy()


def quality(losses: Floats, dense: Floats) -> Quality:
    """Perplexity exp(mean loss), and its standard error from the differences to the dense model's losses."""
    perplexity = float(np.exp(losses.mean()))
    difference = (losses - dense).ravel()
    return Quality(perplexity, float(perplexity * difference.std(ddof=1) / np.sqrt(difference.size)))


def calibrate(loaded: LoadedModel, ids: Tensor, policy: Policy) -> list[dict[str, float]]:
    """Per layer, the limits of the policy's threshold groups, from the dense model's activations on tokens [S, T]."""
    groups = [group for group in checked_groups(policy, loaded.shape) if group.threshold]
    if not groups:
        return []
    limits: list[dict[str, float]] = [{} for _ in loaded.mlps]

    def watch(layer: int) -> Callable[[torch.nn.Module, tuple[Tensor]], None]:
        def hook(_: torch.nn.Module, inputs: tuple[Tensor]) -> None:
            acts = LiveActivations(loaded.mlps[layer], inputs[0], layer)
            for group in groups:
                limits[layer][group.name] = score_threshold(as_numpy(policy.scores(group, acts)), group.k)

        return hook

    handles = [mlp.module.register_forward_pre_hook(watch(layer)) for layer, mlp in enumerate(loaded.mlps)]
    try:
        with torch.inference_mode():
            loaded.model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return limits
