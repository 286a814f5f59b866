"""The shape of a model whose routing was recorded: what the file says, and where the rest comes from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dipsim.basics import assets
from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.workload.config import SIZES, read_config
from dipsim.workload.importers.importer import Recording
from dipsim.workload.shape import BitWidths, ModelShape
from dipsim.workload.trace import Trace

GGUF = BitWidths(embedding=7, lm_head=7, attention=5, mlp=5, kv_cache=16)  # of a usual 4-bit file
Columns = dict[int, int]  # where a recording has a layer of the model


def open_shape(name_or_path: str) -> ModelShape:
    """The shape in a Hugging Face `config.json`, or of a trace by name or path.

    Raises InputError if there is none, or the model has no experts.
    """
    path = Path(name_or_path)
    shape = ModelShape.from_config(read_config(path), path) if path.suffix == ".json" else Trace.open(path).shape
    if shape.mixture is None:
        raise InputError(f"{name_or_path}: the model has no experts; give a mixture of experts")
    return shape


def fit_shape(
    recording: Recording, file: Path, shape: ModelShape | None, expert_bytes: float | None
) -> tuple[ModelShape, Columns, list[str]]:
    """The model's shape, where each of its layers with experts is in the recording, and what was assumed.

    Raises InputError if `shape` is not of the model recorded, and if nothing says the bytes of an expert.
    """
    assumed = []
    experts = recording.num_experts or (shape.experts.num_experts if shape else None)
    if experts is None:
        experts = int(recording.ids.max()) + 1
        assumed.append(f"{experts} experts, one more than the largest number in the file")
    if shape is None and (found := _shipped(recording, experts)) is not None:
        name, shape = found
        assumed.append(f"the sizes of the shipped {name}")
    if shape is not None:
        columns, fields, mixture = _columns(recording, shape) or {}, *_fields(shape)
        if not columns or shape.experts.num_experts != experts:
            _complain(recording, experts, shape, file)
    elif recording.expert_bytes is None and expert_bytes is None:
        raise InputError(f"{file}: missing expert bytes, which the file does not tell; give --shape or --expert-bytes")
    else:
        columns, fields, mixture = _unknown(recording)
        left = "lm_head and KV cache are" if recording.expert_bytes else "attention, lm_head and KV cache are"
        assumed.append(f"{left} left out, because the file does not tell their sizes (give --shape to add them)")
    mixture |= {"num_experts": experts, "num_experts_per_tok": recording.ids.shape[-1]}
    if recording.expert_bytes is not None:
        mixture |= {"expert_bytes": recording.expert_bytes, "dense_bytes": recording.dense_bytes}
        mixture |= {"expert_tensors": recording.expert_tensors, "aligned": False}
        fields.setdefault("bits", GGUF)
    if expert_bytes is not None:
        layers = range(fields["num_hidden_layers"])
        mixture["expert_bytes"] = tuple(max(1, round(expert_bytes)) if layer in columns else 0 for layer in layers)
        if shape is None:
            mixture.setdefault("dense_bytes", tuple(0 for _ in layers))
    elif recording.expert_bytes and (missing := [layer for layer in columns if not recording.expert_bytes[layer]]):
        raise InputError(
            f"{file}: layer {missing[0]}: missing expert bytes, which the header says are 0; give --expert-bytes"
        )
    fields.setdefault("bits", BitWidths())
    if mixture.get("expert_bytes") is None:
        assumed.append(f"experts of {fields['bits'].mlp} bits a weight (give --expert-bytes for others)")
    return parse(ModelShape, fields | {"mixture": mixture}, file), columns, assumed


def _fields(shape: ModelShape) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a shape and of its mixture. The bits are left out where nobody gave any."""
    fields = {name: getattr(shape, name) for name in ("name", *SIZES, "attention_size", "kv_size")}
    if "bits" in shape.model_fields_set:
        fields["bits"] = shape.bits
    return fields, shape.experts.model_dump()


def _unknown(recording: Recording) -> tuple[Columns, dict[str, Any], dict[str, Any]]:
    """Layers where the file says or assumes them, the fields of a shape whose sizes are 1, and its mixture's."""
    layers = recording.layers or tuple(range(recording.ids.shape[1]))
    count = recording.num_layers or layers[-1] + 1
    fields: dict[str, Any] = dict.fromkeys(SIZES, 1) | {"name": recording.model, "num_hidden_layers": count}
    dense = tuple(layer for layer in range(count) if layer not in layers)
    columns = {layer: column for column, layer in enumerate(layers)}
    return columns, fields, {"moe_intermediate_size": 1, "dense_layers": dense}


def _columns(recording: Recording, shape: ModelShape) -> Columns | None:
    """Where the recording has each layer of the shape that is a mixture; None if it is of another model.

    A file that does not say which layers its own are has those with experts, or all of the model's.
    """
    mixed = [int(layer) for layer in np.flatnonzero(shape.is_mixture)]
    count = recording.ids.shape[1]
    if recording.num_layers not in (None, shape.num_hidden_layers):
        return None
    if recording.layers is not None:
        return {layer: i for i, layer in enumerate(mixed)} if recording.layers == tuple(mixed) else None
    if count == len(mixed):
        return {layer: i for i, layer in enumerate(mixed)}
    return {layer: layer for layer in mixed} if count == shape.num_hidden_layers else None


def _shipped(recording: Recording, experts: int) -> tuple[str, ModelShape] | None:
    """Name and shape of the shipped trace with these layers and experts, if all such traces are of the same sizes."""
    found: dict[tuple[Any, ...], tuple[str, ModelShape]] = {}
    for name, shape in _mixtures():
        if shape.experts.num_experts == experts and _columns(recording, shape):
            found.setdefault(tuple(getattr(shape, size) for size in SIZES), (name, shape))
    return next(iter(found.values())) if len(found) == 1 else None


@cache
def _mixtures() -> list[tuple[str, ModelShape]]:
    """Names and shapes of the shipped traces of mixtures."""
    shapes = {name: Trace.open(name).shape for name in assets.names("traces")}
    return [(name, shape) for name, shape in shapes.items() if shape.mixture is not None]


def _complain(recording: Recording, experts: int, shape: ModelShape, file: Path) -> NoReturn:
    """Raise the InputError that says in what the recording and the shape differ."""
    mixed = [int(layer) for layer in np.flatnonzero(shape.is_mixture)]
    beyond = [layer for layer in recording.layers or () if layer >= shape.num_hidden_layers]
    if beyond and recording.lines is not None and recording.layers is not None:
        line = recording.lines[:, recording.layers.index(beyond[0])].max(axis=-1)
        raise InputError(
            f"{file}: line {line[line > 0][0]}: layer {beyond[0]}: layers are 0 to {shape.num_hidden_layers - 1}; "
            "record it again or give another --shape"
        )
    raise InputError(
        f"{file}: {recording.ids.shape[1]} layers with {experts} experts, but --shape has {len(mixed)} with "
        f"{shape.experts.num_experts}; give the shape of the model that was recorded"
    )
