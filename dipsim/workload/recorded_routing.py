"""Recorded routing: the tensors of a trace of a mixture of experts, written and read back.

For each layer i with a mixture the file has `layers.{i}.router_logits` [T, E] (float16 or float32), or
`layers.{i}.experts` [T, k] (uint8, int16 or int32), the chosen experts from the most to the least wanted, and perhaps
`layers.{i}.expert_weights` [T, k] (float16 or float32). Where it has logits and experts, they agree. A row of experts
that are all E stands for a token of a prompt that the layer did not compute, as engines leave out the last layer of all
but a prompt's last token. All layers with a mixture but the last may also have `layers.{i}.next_layer` [T, E] (float16
or float32), the logits that the next one's router would make of this one's input.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.arrays import Float32s, Mask
from dipsim.basics.errors import InputError
from dipsim.workload.routing import NOT_ROUTED, Routing
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import NEXT_LAYER, check_next_layer

FLOATS, INTS = ("F16", "F32"), ("U8", "I16", "I32")
AGAIN = "import or record it again"


def check_routing(file: Any, shape: ModelShape, path: Path) -> int:
    """Check that every tensor is there with its shape and dtype; return the number of tokens."""
    mixture, present = shape.experts, set(file.keys())
    tokens: int | None = None
    for index in np.flatnonzero(shape.is_mixture):
        names = {
            "router_logits": (mixture.num_experts, FLOATS),
            "experts": (mixture.num_experts_per_tok, INTS),
            "expert_weights": (mixture.num_experts_per_tok, FLOATS),
            NEXT_LAYER: (mixture.num_experts, FLOATS),
        }
        found = [name for name in names if f"layers.{index}.{name}" in present]
        if not {"router_logits", "experts"} & set(found):
            raise InputError(f"{path}: layers.{index}: has neither router_logits nor experts; {AGAIN}")
        if "expert_weights" in found and "experts" not in found:
            raise InputError(f"{path}: layers.{index}.expert_weights: has no experts beside it; {AGAIN}")
        for name in found:
            size, kinds = names[name]
            view = file.get_slice(f"layers.{index}.{name}")
            have = view.get_shape()
            tokens = have[0] if tokens is None and have else tokens
            if have != [tokens, size] or not tokens:
                raise InputError(
                    f"{path}: layers.{index}.{name}: has shape {have}; [{tokens or 'tokens'}, {size}] is expected"
                )
            if view.get_dtype() not in kinds:
                raise InputError(
                    f"{path}: layers.{index}.{name}: dtype {view.get_dtype()} is not one of {', '.join(kinds)}"
                )
    check_next_layer(present, np.flatnonzero(shape.is_mixture).tolist(), path)
    assert tokens is not None  # a mixture has a layer
    return tokens


def read_routing(file: Any, index: int, tokens: int | None, shape: ModelShape, path: Path) -> Routing:
    """One layer's routing. Raises InputError for values that no router gives."""
    read: dict[str, NDArray[Any] | None] = {}
    for name in ("router_logits", "experts", "expert_weights", NEXT_LAYER):
        key = f"layers.{index}.{name}"
        read[name] = file.get_slice(key)[:tokens] if key in file.keys() else None  # noqa: SIM118
    logits, ids, weights, next_layer = read.values()
    return checked_routing(logits, ids, weights, index, shape, path, next_layer)


def checked_routing(
    logits: NDArray[Any] | None,
    ids: NDArray[Any] | None,
    weights: NDArray[Any] | None,
    index: int,
    shape: ModelShape,
    where: object,
    next_layer: NDArray[Any] | None = None,
) -> Routing:
    """A layer's routing of recorded arrays.

    Raises InputError, naming layer and token, for an expert out of range or twice, for logits (the next layer's too) or
    weights that are not finite, weights that are negative or all 0, and logits and experts that disagree.
    """
    mixture = shape.experts
    wrong = f"{where}: layers.{index}"
    routed: Mask | bool = True
    if logits is not None:
        logits = _finite(logits, f"{wrong}.router_logits")
    if next_layer is not None:
        next_layer = _finite(next_layer, f"{wrong}.{NEXT_LAYER}")
    if ids is not None:
        ids = ids.astype(np.int64)
        ids[(ids == mixture.num_experts).all(axis=1)] = NOT_ROUTED
        routed = ~(ids == NOT_ROUTED).all(axis=1)
        if (bad := ((ids < 0) | (ids >= mixture.num_experts)).any(axis=1) & routed).any():
            token = bad.argmax()
            raise InputError(
                f"{wrong}.experts: token {token}: {ids[token].tolist()}: experts are 0 to {mixture.num_experts - 1}; "
                f"{AGAIN}"
            )
        rising = np.sort(ids, axis=1)
        if (bad := (rising[:, 1:] == rising[:, :-1]).any(axis=1) & routed).any():
            token = bad.argmax()
            twice = f"token {token}: {ids[token].tolist()}: an expert is there twice"
            raise InputError(f"{wrong}.experts: {twice}; {AGAIN}")
    if weights is not None:
        weights = weights.astype(np.float32, copy=False)
        sums = weights.sum(axis=1)
        if (bad := ~((weights >= 0).all(axis=1) & np.isfinite(sums) & (sums > 0)) & routed).any():
            raise InputError(f"{wrong}.expert_weights: token {bad.argmax()}: must be 0 or more, and not all 0; {AGAIN}")
        weights.setflags(write=False)
    if logits is not None and ids is not None:
        outside = np.ones(logits.shape, dtype=bool)
        np.put_along_axis(outside, ids, False, axis=1)
        least = np.take_along_axis(logits, ids, axis=1).min(axis=1)
        if (bad := np.where(outside, logits, -np.inf).max(axis=1) > least).any():
            raise InputError(
                f"{wrong}: token {bad.argmax()}: experts {ids[bad.argmax()].tolist()} are not those of the largest "
                f"router_logits; {AGAIN}"
            )
    return Routing(
        mixture.num_experts, mixture.num_experts_per_tok, logits, ids, weights, index, where, next_layer=next_layer
    )


def _finite(logits: NDArray[Any], wrong: str) -> Float32s:
    """Logits [T, E] as float32, read-only. Raises InputError, beginning with `wrong`, for NaN or infinite ones."""
    logits = logits.astype(np.float32, copy=False)
    if (bad := ~np.isfinite(logits).all(axis=1)).any():
        raise InputError(f"{wrong}: token {bad.argmax()}: NaN or infinite; {AGAIN}")
    logits.setflags(write=False)
    return logits


def routing_tensors(layers: Iterable[Routing], shape: ModelShape, path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file, from the routing of each layer that has a mixture.

    Raises InputError for values that no router gives, for `next_layer` in only some of the layers before the last, and
    unless there are as many layers.
    """
    where = np.flatnonzero(shape.is_mixture)
    tensors: dict[str, NDArray[Any]] = {}
    recorded = 0
    for recorded, routing in enumerate(layers, start=1):
        if recorded > len(where):
            break
        index = int(where[recorded - 1])
        given = (routing.recorded_logits, routing.ids, routing.recorded_weights)
        checked_routing(*given, index, shape, path, routing.next_layer)
        kept = {
            "router_logits": routing.recorded_logits,
            "expert_weights": routing.recorded_weights,
            NEXT_LAYER: routing.next_layer,
        }
        for name, values in kept.items():
            if values is not None:
                tensors[f"layers.{index}.{name}"] = np.ascontiguousarray(values, dtype=np.float32)
        if routing.ids is not None:
            kind = np.uint8 if shape.experts.num_experts < 256 else np.int16
            ids = np.where(routing.ids == NOT_ROUTED, shape.experts.num_experts, routing.ids)
            tensors[f"layers.{index}.experts"] = np.ascontiguousarray(ids, dtype=kind)
    if recorded != len(where):
        raise InputError(f"{path}: the routing of {recorded} layers for a model with {len(where)} mixtures")
    check_next_layer(tensors, where.tolist(), path)
    return tensors
