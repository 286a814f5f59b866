"""The closed loop of a mixture of experts: each token computes only with the experts that the policy lets it use.

The routers' logits come from what the policy did to earlier layers. They go through the planner's own steps, so the
plans are those of a trace of these logits. A policy that does not look at the cache decides over whole sequences at
once, and so does one whose caches serve a layer each. A cache over all layers meets them in turn for each token, so
the model is then run token by token with a KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dipsim.basics.arrays import Float32s, Mask
from dipsim.basics.errors import InputError
from dipsim.live.models import hooked
from dipsim.live.routers import Router
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.experts import ExpertPlans, Replay
from dipsim.planning.masks import LayerScores
from dipsim.sparsity.policy import Group, Policy
from dipsim.sparsity.selection import checked_scores
from dipsim.workload.routing import Routing
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import read_only


def meets_layers_in_turn(builder: PlanBuilder) -> bool:
    """Whether what a token uses depends on all layers of the token before."""
    return builder.sees_memory and builder.setting.scope == "model"


def check_copies(policy: Policy, groups: Sequence[Group]) -> None:
    """Raise InputError for a policy with copies of experts, of which a live model has the exact ones alone."""
    if any(len(group.copies) > 1 for group in groups):
        raise InputError(
            f"policy {policy.label}: perplexity with low-bit experts is not measured: a live model has no low copies; "
            "use run or sweep, or a policy without copies"
        )


@contextmanager
def rerouted(routers: Sequence[Router], builders: Sequence[PlanBuilder]) -> Iterator[None]:
    """Inside, tokens use the experts that the plans' policy lets them use. On leaving, the plans are filled in.

    All plans must be of one policy and of the same sequences, of equal length. Inside, the model must be run over these
    sequences once, and all at once unless the policy sees what is resident. Raises InputError for one that does where
    that never changes, and for copies of experts.
    """
    check_copies(builders[0].setting.policy, builders[0].groups)
    policy = _Aware(builders[0]) if builders[0].sees_memory else _Blind(builders)
    (group,) = builders[0].groups  # of experts there is one

    def reroute(router: Router, _: nn.Module, _inputs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits, own, _ids = output
        masks = policy.choose(router.layer, logits.float().cpu().numpy())
        used = torch.from_numpy(masks).to(logits.device)
        return logits, *router.reroute(logits, own, used, fewer=group.k < own.shape[-1])

    with hooked((router.module, partial(reroute, router)) for router in routers):
        yield
    policy.record()


def as_routing(shape: ModelShape, logits: Float32s, layer: int) -> Routing:
    """What a policy sees of a layer, from its router's logits [T, E]."""
    return Routing(shape.experts.num_experts, shape.experts.num_experts_per_tok, read_only(logits), layer=layer)


class _Blind:
    """A policy whose choice does not depend on what is resident. It is asked once for each layer."""

    def __init__(self, builders: Sequence[PlanBuilder]) -> None:
        self.shape = builders[0].shape
        (self.caches,) = builders[0].caches
        self.plans = ExpertPlans(builders)

    def choose(self, layer: int, logits: Float32s) -> Mask:
        """The experts of all tokens in a layer, [S * T, E], by its logits [S * T, E]."""
        scores = LayerScores(as_routing(self.shape, logits, layer))
        self.plans.collect(scores)
        return scores.masks_of(self.caches)

    def record(self) -> None:
        """Fill the plans in."""
        self.plans.fill()


class _Aware:
    """A policy whose choice depends on what is resident: S sequences side by side, each with its own caches.

    It is asked for each layer in turn. Asked again, it goes on where the sequences were. Scores see the tokens of their
    own sequence.
    """

    def __init__(self, builder: PlanBuilder) -> None:
        self.shape = builder.shape
        (self.caches,) = builder.caches
        self.replay = Replay([(builder, self.caches)])
        self.starts = builder.sequence_starts
        self.resident = [self.replay.begin() for _ in self.starts]
        size = (len(self.replay.layers), len(self.starts), builder.tokens // len(self.starts), self.caches.columns)
        self.logits = np.zeros(size, dtype=np.float32)
        self.seen = [0] * len(self.replay.layers)  # tokens of each sequence

    def choose(self, layer: int, logits: Float32s) -> Mask:
        """The experts of the next tokens in a layer, [S * t, E], by its logits [S * t, E]."""
        place = int(np.searchsorted(self.replay.layers, layer))
        now = logits.reshape(len(self.starts), -1, logits.shape[-1])
        masks = np.zeros(now.shape, dtype=bool)
        begin, end = self.seen[place], self.seen[place] + now.shape[1]
        self.logits[place, :, begin:end], self.seen[place] = now, end
        for index, start in enumerate(self.starts):
            acts = as_routing(self.shape, self.logits[place, index, :end], layer)
            scores = checked_scores(self.caches.policy, self.caches.group, acts)
            for token in range(begin, end):
                here = slice(token, token + 1)
                masks[index, token - begin] = self.replay.step(
                    self.resident[index], place, scores[here], acts.routed[here], start + token, token
                )
        return masks.reshape(logits.shape)

    def record(self) -> None:
        """Fill the plan in."""
        for caches in self.resident:
            self.replay.end(caches)
        self.replay.record()
