"""Perplexity of a loaded model under a policy, and the fetch plans of the same masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipsim.basics.arrays import Floats
from dipsim.basics.errors import InputError
from dipsim.live.closed_loop import LiveActivations, as_numpy, check_alone, sparsified
from dipsim.live.codes import nested_weights
from dipsim.live.experts import meets_layers_in_turn, rerouted
from dipsim.live.models import LoadedModel, hooked
from dipsim.planning.builder import PlanBuilder, make_builders
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.placer import Placer
from dipsim.planning.split import learn_splits
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

    All settings must be of one policy; they share one pass. Raises InputError if a setting cannot work, and for several
    settings of a policy whose masks depend on what is in memory.
    """
    sequences, length = ids.shape
    starts = tuple(range(0, sequences * length, length))
    builders = make_builders(loaded.shape, settings, sequences * length, starts)
    check_alone(builders)
    step = 1 if meets_layers_in_turn(builders[0]) else length
    with torch.inference_mode(), _decided(loaded, builders, limits):
        losses = nll(loaded, ids, step)
    return losses, [builder.finish() for builder in builders]


def _decided(
    loaded: LoadedModel, builders: Sequence[PlanBuilder], limits: Sequence[dict[str, float]]
) -> AbstractContextManager[Any]:
    """Inside, the plans' policy decides what each layer computes with: its experts, or the columns of its MLP."""
    learn_splits(builders, loaded.shape)
    if loaded.routers:
        return rerouted(loaded.routers, builders)
    placer = Placer(builders, loaded.shape)
    for layer in range(loaded.shape.num_hidden_layers):
        placer.place(layer)
    levels = nested_weights(loaded, builders[0].setting.policy) if builders[0].precision is not None else []
    return sparsified(loaded.mlps, builders, limits, levels)


def nll(loaded: LoadedModel, ids: Tensor, step: int | None = None) -> Floats:
    """Negative log-likelihood [S, T - 1] of every token but a sequence's first, in nats.

    The model sees `step` tokens of each sequence at a time, with a KV cache of those before; by default all at once.
    """
    hidden = torch.cat(list(_hidden_states(loaded.model.base_model, ids, step or ids.shape[1])), dim=1)
    head = loaded.model.get_output_embeddings()
    losses = []
    for states, targets in zip(hidden, ids, strict=True):  # one sequence's logits at a time
        logits = head(states[:-1])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses.append(torch.nn.functional.cross_entropy(logits, targets[1:], reduction="none"))
    return torch.stack(losses).double().cpu().numpy()


def _hidden_states(model: Any, ids: Tensor, step: int) -> Iterator[Tensor]:
    """The last hidden states of tokens [S, T], `step` of each sequence at a time."""
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"  # in older transformers
    past = None
    for part in torch.split(ids, step, dim=1):
        out = model(input_ids=part, use_cache=step < ids.shape[1], **{name: past})
        past = out.get(name)
        yield out.last_hidden_state


def quality(losses: Floats, dense: Floats) -> Quality:
    """Perplexity exp(mean loss), and its standard error from the differences to the dense model's losses."""
    perplexity = float(np.exp(losses.mean()))
    difference = (losses - dense).ravel()
    return Quality(perplexity, float(perplexity * difference.std(ddof=1) / np.sqrt(difference.size)))


def calibrate(loaded: LoadedModel, ids: Tensor, policy: Policy) -> list[dict[str, float]]:
    """Per layer, the limits of the policy's threshold groups, from the dense model's activations on tokens [S, T].

    Raises InputError for a threshold of experts.
    """
    groups = [group for group in checked_groups(policy, loaded.shape) if group.threshold]
    if not groups:
        return []
    if loaded.routers:
        raise InputError(
            f"policy {policy.label}: group {groups[0].name}: experts are chosen without a threshold; give a k"
        )
    limits: list[dict[str, float]] = [{} for _ in loaded.mlps]

    def watch(layer: int, _: torch.nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        acts = LiveActivations(loaded.mlps[layer], inputs[0], layer)
        for group in groups:
            limits[layer][group.name] = score_threshold(as_numpy(policy.scores(group, acts)), group.k)

    watches = ((mlp.module, partial(watch, layer)) for layer, mlp in enumerate(loaded.mlps))
    with torch.inference_mode(), hooked(watches):
        loaded.model.base_model(input_ids=ids, use_cache=False)
    return limits
