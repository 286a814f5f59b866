"""The closed loop: a model whose MLPs compute only with what the policy's masks let through.

The masks change the activations, the cache sees the changed masks, and its hits go into the same FetchPlan as those of
a recorded trace. With teacher forcing a layer's caches depend on that layer alone, so whole sequences pass through a
layer at once: matrix products and attention are parallel over tokens, only the choice of a cache-aware policy and the
caches step from token to token. That equals decoding token by token with a KV cache (`tests/live/test_closed_loop.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipsim.basics.arrays import Mask, Numbers
from dipsim.basics.errors import InputError
from dipsim.gpu.tensors import tensor_masks, tensor_scores
from dipsim.live.leveled import Leveled
from dipsim.live.swiglu import Mlp
from dipsim.memory.cache import ColumnCache, find_residents, run_tokens
from dipsim.planning.builder import LayerCaches, PlanBuilder
from dipsim.planning.masks import choose_and_run
from dipsim.planning.precision import Precision
from dipsim.sparsity.levels import worth_levels
from dipsim.sparsity.policy import Group, Policy
from dipsim.sparsity.selection import blind_masks


class LiveActivations:
    """What a policy's `scores` sees, as torch tensors [..., d or m]: computed from what earlier groups let through.

    With `weights`, those of each matrix at each level of precision, `levels` has what is known of each group so far:
    [N] of what every token has, [..., N] once it was chosen.
    """

    def __init__(self, mlp: Mlp, x: Tensor, layer: int, weights: Mapping[str, Leveled] | None = None) -> None:
        self.mlp_input, self.layer = x, layer
        self.levels: dict[str, Tensor] = {}
        self._mlp, self._weights = mlp, weights or {}
        self._inputs: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}

    def prune(self, group: Group, mask: Tensor) -> None:
        """Let only the masked inputs into the group's matrices."""
        for matrix in group.matrices:
            self._inputs[matrix] = self.mlp_input * mask

    def at(self, group: Group, levels: Tensor) -> None:
        """Compute with weights of these levels in the group's matrices, [N] or [..., N], from now on."""
        self.levels[group.name] = levels
        for matrix in set(group.matrices) - {"down_proj"}:
            weights = self._weights[matrix]
            product = weights.by_column if group.axis == "input" else weights.by_row
            self._found[matrix] = product(self.mlp_input, levels)
        self._found.pop("gate", None)
        self._found.pop("glu", None)

    def _once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self._found:
            self._found[name] = compute()
        return self._found[name]

    def _project(self, matrix: str) -> Tensor:
        return self._once(matrix, lambda: self._mlp.project(matrix, self._inputs.get(matrix, self.mlp_input)))

    @property
    def gate_proj(self) -> Tensor:
        """The gate before its activation function, [..., m]."""
        return self._project("gate_proj")

    @property
    def up_proj(self) -> Tensor:
        """The up projection, [..., m]."""
        return self._project("up_proj")

    @property
    def gate(self) -> Tensor:
        """The gate after its activation function, [..., m]."""
        return self._once("gate", lambda: self._mlp.activation(self.gate_proj))

    @property
    def glu(self) -> Tensor:
        """The product gate * up, [..., m]."""
        return self._once("glu", lambda: self.gate * self.up_proj)


def forward(
    mlp: Mlp,
    x: Tensor,
    layer: int,
    policy: Policy,
    groups: Sequence[Group],
    masks: Callable[[Group, Tensor], Tensor],
) -> Tensor:
    """An MLP's output [..., d] for x [..., d], of what `masks` lets through: masks [..., N] from scores [..., N].

    A group's scores see what earlier groups left: in DIP the glu that is ranked comes from the pruned gate and up.
    """
    acts = LiveActivations(mlp, x, layer)
    kept: Tensor | None = None
    for group in groups:
        columns = mlp.weight("gate_proj").shape[1 if group.axis == "input" else 0]
        expected = (*x.shape[:-1], columns)  # without computing what the policy did not ask for
        mask = masks(group, tensor_scores(policy, group, acts, expected).detach())
        if group.axis == "input":
            acts.prune(group, mask)
        else:
            kept = mask if kept is None else kept & mask
    return mlp.project("down_proj", acts.glu if kept is None else acts.glu * kept)


def forward_at_levels(
    mlp: Mlp,
    x: Tensor,
    layer: int,
    policy: Policy,
    groups: Sequence[Group],
    weights: Mapping[str, Leveled],
    base: Mapping[str, Tensor],
    choose: Callable[[Group, Tensor], Tensor],
) -> Tensor:
    """An MLP's output [..., d] for x [..., d], at the levels [..., N] that `choose` makes of scores [..., N].

    All groups begin at the `base` [N]: a first pass, which choices go by. Each choice then sees what was chosen before
    it.
    """
    acts = LiveActivations(mlp, x, layer, weights)
    for group in groups:
        acts.at(group, base[group.name])
    for group in groups:
        expected = (*x.shape[:-1], len(base[group.name]))
        acts.at(group, choose(group, tensor_scores(policy, group, acts, expected)))
    of_down = [acts.levels[group.name] for group in groups if "down_proj" in group.matrices]
    return weights["down_proj"].by_column(acts.glu, of_down[0]) if of_down else mlp.project("down_proj", acts.glu)


def base_levels(precision: Precision, layer: int, device: torch.device) -> dict[str, Tensor]:
    """The levels [N] that every token has of each group."""
    return {group.name: torch.from_numpy(precision.base[group.name, layer]).to(device) for group in precision.groups}


def levels_worth(precision: Precision, group: Group, layer: int, scores: Tensor) -> Tensor:
    """The levels [..., N] of a group that are worth reading for scores [..., N]."""
    tables = precision.tables(group, layer, as_numpy(scores[:0]).dtype)
    chosen: Tensor = worth_levels(scores.detach(), *(torch.from_numpy(table).to(scores.device) for table in tables))
    return chosen


def as_numpy(values: Tensor) -> Numbers:
    """An array that shares memory where it can. float64 stays, everything else becomes float32."""
    values = values.detach()
    return (values if values.dtype == torch.float64 else values.float()).cpu().numpy()


class SparseMlp:
    """Replaces one MLP's forward by the policy's, and records what each plan's caches hit and miss.

    All plans must be of one policy. There can be only one plan if the masks depend on what is in memory. Called with
    hidden states [S, T, d] of S sequences; called again, it goes on where the sequences were.
    """

    def __init__(
        self,
        mlp: Mlp,
        layer: int,
        builders: Sequence[PlanBuilder],
        limits: dict[str, float],
        weights: Mapping[str, Leveled],
    ) -> None:
        self.mlp, self.layer, self.builders, self.limits, self.weights = mlp, layer, builders, limits, weights
        self.policy, self.groups = builders[0].setting.policy, builders[0].groups
        self.masks: dict[str, list[Mask]] = {group.name: [] for group in self.groups}
        self.residents: dict[str, list[Mask]] = {group.name: [] for group in self.groups}
        self.caches: dict[str, list[ColumnCache]] = {}  # of a cache-aware policy, one a sequence
        self.position = 0
        self.requests: dict[str, NDArray[np.uint8]] | None = None  # levels [S * T, N] by group, if they are to be kept

    def __call__(self, x: Tensor) -> Tensor:
        if self.builders[0].precision is not None:
            return self._at_levels(x, self.builders[0].precision)
        out = forward(self.mlp, x, self.layer, self.policy, self.groups, self._choose)
        self.position += x.shape[1]
        return out

    def _at_levels(self, x: Tensor, precision: Precision) -> Tensor:
        """The output for whole sequences [S, T, d], whose levels are entered into the plan at once."""
        base = base_levels(precision, self.layer, x.device)
        return forward_at_levels(
            self.mlp, x, self.layer, self.policy, self.groups, self.weights, base, self._choose_levels
        )

    def _choose_levels(self, group: Group, values: Tensor) -> Tensor:
        """The levels [S, T, N] that tokens have of a group, from scores [S, T, N]."""
        builder, mine = self.builders[0], self._caches(group)
        assert builder.precision is not None
        requested = levels_worth(builder.precision, group, self.layer, values.flatten(0, 1)).cpu().numpy()
        if self.requests is not None:
            self.requests[group.name] = requested
        brought = builder.fetch_levels(mine, self.layer, requested)
        builder.record_levels(mine, self.layer, brought)
        return torch.from_numpy(brought.levels).to(values.device).view(values.shape)

    def _choose(self, group: Group, values: Tensor) -> Tensor:
        """What is used of a group, masks [S, T, N], from scores [S, T, N]."""
        limit = self.limits.get(group.name)
        if self.builders[0].sees_memory:
            masks, residents = self._choose_aware(group, as_numpy(values), limit)
            self.residents[group.name].append(residents)
            used = self._used(group, masks, residents)
        elif values.is_cuda:
            masks = used = tensor_masks(group, values, limit).cpu().numpy()
        else:
            masks = used = blind_masks(group, as_numpy(values), limit)
        self.masks[group.name].append(masks)
        return torch.from_numpy(used).to(values.device)

    def _choose_aware(self, group: Group, values: Numbers, limit: float | None) -> tuple[Mask, Mask]:
        """Masks and residents [S, T, N] from scores [S, T, N], each token seeing who is resident."""
        builder, mine = self.builders[0], self._caches(group)
        begin_with = builder.begin_with(mine, self.layer)
        if group.price is not None:
            masks = builder.priced_masks(mine, self.layer, values.reshape(-1, values.shape[-1])).reshape(values.shape)
            return masks, np.broadcast_to(builder.placement(mine, self.layer).resident, values.shape)
        caches = self.caches.setdefault(group.name, [mine.cache(self.layer, begin_with) for _ in values])
        masks, residents = np.zeros(values.shape, dtype=bool), np.zeros(values.shape, dtype=bool)
        for index, cache in enumerate(caches):
            here = {"masks": masks[index], "residents": residents[index]}
            if self.policy.cache_aware:
                choose_and_run(mine, cache, values[index], **here, position=self.position)
            else:
                masks[index] = blind_masks(group, values[index], limit)
                run_tokens(cache, masks[index], residents=residents[index])
        return masks, residents

    def _used(self, group: Group, masks: Mask, residents: Mask) -> Mask:
        """What is used [S, T, N] of a group, by what is wanted and resident [S, T, N]."""
        if not group.uses_all:
            return masks
        flat = (each.reshape(-1, each.shape[-1]) for each in (masks, residents))
        return self.builders[0].fetch(self._caches(group), self.layer, *flat)[1].reshape(masks.shape)

    def _caches(self, group: Group) -> LayerCaches:
        return self.builders[0].caches[self.groups.index(group)]

    def record(self) -> None:
        """Enter all masks and residents into the plans, sequence after sequence."""
        for builder in self.builders:
            for caches in builder.caches if builder.precision is None else ():
                masks = _in_a_row(self.masks[caches.group.name])
                builder.record_masks(caches, self.layer, masks, self._residents(builder, caches, masks))

    def _residents(self, builder: PlanBuilder, caches: LayerCaches, masks: Mask) -> Mask:
        if builder.sees_memory:
            return _in_a_row(self.residents[caches.group.name])
        capacity, begin_with = caches.capacities[self.layer], builder.begin_with(caches, self.layer)
        return find_residents(masks, capacity, caches.eviction, builder.sequence_starts, begin_with)


def _in_a_row(parts: Sequence[Mask]) -> Mask:
    """Masks [S * T, N] of parts [S, t, N] that follow each other."""
    whole = np.concatenate(parts, axis=1)
    return whole.reshape(-1, whole.shape[-1])


@contextmanager
def replaced(mlps: Sequence[Mlp], forwards: Sequence[Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside, `forwards` replace the forwards of the MLPs."""
    for mlp, replacement in zip(mlps, forwards, strict=True):
        mlp.module.forward = replacement
    try:
        yield
    finally:
        for mlp in mlps:
            del mlp.module.forward  # the class's own forward shows again


def check_alone(builders: Sequence[PlanBuilder]) -> None:
    """Raise InputError for several plans of a policy whose masks depend on what is in memory."""
    if builders[0].sees_memory and len(builders) > 1:
        policy = builders[0].setting.policy
        raise InputError(f"policy {policy.label}: its masks depend on the memory; evaluate one setting at a time")


@contextmanager
def sparsified(
    mlps: Sequence[Mlp],
    builders: Sequence[PlanBuilder],
    limits: Sequence[dict[str, float]] = (),
    weights: Sequence[Mapping[str, Leveled]] = (),
) -> Iterator[list[SparseMlp]]:
    """Inside, the model computes as the plans' policy lets it. On leaving, the plans are filled in.

    `limits` are the thresholds of each layer's groups, where the policy has any, and `weights` those of each layer's
    matrices at each level, where it has levels. Of a policy whose masks depend on what is in memory there can be only
    one plan.
    """
    sparse = [
        SparseMlp(mlp, i, builders, limits[i] if limits else {}, weights[i] if weights else {})
        for i, mlp in enumerate(mlps)
    ]
    with replaced(mlps, sparse):
        yield sparse
    for each in sparse:
        each.record()
