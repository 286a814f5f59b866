"""Recorded traces: a `.safetensors` file with the activations of a real model.

For each layer i the file has `layers.{i}.mlp_input` [T, d], `layers.{i}.gate_proj` [T, m] and `layers.{i}.up_proj`
[T, m]: the MLP's input, and its two projections before the activation function. A tensor is float16, float32, or int8
beside `layers.{i}.NAME.scale` [T, B], the scales of B equal blocks of each row. All layers but the last may also have
`layers.{i}.next_layer` [T, m], what the next layer would make of this one's input. The metadata is a `Header`. A trace
of a mixture of experts has other tensors (`recorded_routing.py`), and so has one of requests (`level_requests.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dipsim.basics.arrays import Float32s
from dipsim.basics.errors import InputError, one_line
from dipsim.basics.fields import parse
from dipsim.basics.files import write
from dipsim.workload.level_requests import LevelRequests, check_requests, read_requests, request_tensors
from dipsim.workload.recorded_routing import check_routing, read_routing, routing_tensors
from dipsim.workload.routing import Routing
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import (
    NEXT_LAYER,
    TENSORS,
    Activations,
    Header,
    Trace,
    check_next_layer,
    read_only,
    sequences,
)

BLOCK = 32  # values that share a scale in the compact form
_PLAIN = ("format", "activation", "holds")  # metadata that is text; all other is JSON


class RecordedTrace(Trace, suffix=".safetensors"):
    """A trace whose layers are read from its file when they are asked for."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open a trace file. Raises InputError if it is truncated or foreign, or a tensor is missing or misshapen."""
        try:
            with safe_open(path, framework="np") as file:
                header = _read_header(file.metadata() or {}, path)
                check = _check_tensors if header.model.mixture is None else check_routing
                check = check_requests if header.holds == "requests" else check
                tokens = check(file, header.model, path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({one_line(error)}); record it again") from None
        starts = header.sequence_starts
        if not starts or starts[0] != 0 or any(b <= a for a, b in zip(starts, (*starts[1:], tokens), strict=True)):
            raise InputError(f"{path}: sequence_starts: must rise from 0 and stay below the {tokens} tokens recorded")
        _check_prompts(header, tokens, path)
        return cls(path, header, tokens)

    def layer(self, index: int, tokens: int | None = None) -> Activations | Routing | LevelRequests:
        """Activations, routing or requests of the first `tokens` tokens of one layer, by default of all: read-only.

        Activations are float32. Raises InputError if there is no such layer or a value is impossible.
        """
        self._check_layer(index)
        self._check_memory(self.tokens if tokens is None else min(tokens, self.tokens))
        tensors: dict[str, Any] = {}
        with safe_open(self.path, framework="np") as file:
            if self.shape.mixture is not None:
                return read_routing(file, index, tokens, self.shape, self.path)
            if self.header.holds == "requests":
                return read_requests(file, index, tokens)
            present = set(file.keys())
            for name in (*TENSORS, NEXT_LAYER):
                key = f"layers.{index}.{name}"
                if name == NEXT_LAYER and key not in present:
                    continue
                values = file.get_slice(key)[:tokens]
                if values.dtype == np.int8:
                    values = decode(values, file.get_slice(f"{key}.scale")[:tokens])
                if not np.isfinite(values).all():
                    raise InputError(f"{self.path}: {key}: holds NaN or infinite values; record the trace again")
                tensors[name] = read_only(values.astype(np.float32, copy=False))
        return Activations(**tensors, layer=index)


def _check_prompts(header: Header, tokens: int, path: Path) -> None:
    """Raise InputError unless the prompts are stretches one after the other, each within a sequence."""
    last = 0
    for begin, end in header.prompts:
        within = any(start <= begin < end <= stop for start, stop in sequences(header.sequence_starts, tokens))
        if begin < last or not within:
            raise InputError(
                f"{path}: prompts: [{begin}, {end}] must begin after the one before and lie within a sequence of the "
                f"{tokens} tokens; import or record it again"
            )
        last = end


def _read_header(metadata: dict[str, str], path: Path) -> Header:
    if metadata.get("format") != "dipsim-trace":
        raise InputError(f"{path}: format: not a dipsim trace; make one with `python -m dipsim record`")
    fields: dict[str, Any] = dict(metadata)
    for key in fields.keys() - set(_PLAIN):
        try:
            fields[key] = json.loads(fields[key])
        except (ValueError, RecursionError):
            raise InputError(f"{path}: {key}: is not JSON; record the trace again") from None
    header = parse(Header, fields, path)
    chooses = header.model.mixture is None and header.holds == "activations"
    needed = ("version", "model", "sequence_starts", *(("activation",) if chooses else ()))
    for key in needed:
        if key not in fields:
            raise InputError(f"{path}: {key}: is required but missing; record the trace again")
    return header


def metadata(header: Header) -> dict[str, str]:
    """The header as safetensors wants it, every value a string."""
    needless = {"activation"} if header.model.mixture else {"prompts"}  # routing has no activations
    needless |= {"holds"} if header.holds == "activations" else {"activation"}
    fields = header.model_dump(mode="json", exclude_none=True, exclude=needless)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}


def _check_tensors(file: Any, shape: ModelShape, path: Path) -> int:
    """Check that every tensor is there with its shape and dtype; return the number of tokens."""
    present = set(file.keys())
    tokens: int | None = None
    sizes = (shape.hidden_size, *3 * (shape.intermediate_size,))
    for index in range(shape.num_hidden_layers):
        for name, size in zip((*TENSORS, NEXT_LAYER), sizes, strict=True):
            key = f"layers.{index}.{name}"
            if name == NEXT_LAYER and key not in present:
                continue
            if key not in present:
                raise InputError(f"{path}: {key}: is missing; the header promises {shape.num_hidden_layers} layers")
            view = file.get_slice(key)
            found = view.get_shape()
            tokens = found[0] if tokens is None and found else tokens
            if found != [tokens, size] or not tokens:
                raise InputError(f"{path}: {key}: has shape {found}; [{tokens or 'tokens'}, {size}] is expected")
            if view.get_dtype() == "I8":
                _check_scale(file, f"{key}.scale", tokens, size, path)
            elif view.get_dtype() not in ("F16", "F32"):
                raise InputError(f"{path}: {key}: dtype {view.get_dtype()} is not one of F16, F32, I8 with scales")
    check_next_layer(present, range(shape.num_hidden_layers), path)
    assert tokens is not None  # num_hidden_layers > 0
    return tokens


def _check_scale(file: Any, key: str, tokens: int, size: int, path: Path) -> None:
    """Check the scales of an int8 tensor [tokens, size]."""
    if key not in file.keys():  # noqa: SIM118, a safetensors file is no mapping
        raise InputError(f"{path}: {key}: is missing; int8 needs scales [{tokens}, blocks]")
    view = file.get_slice(key)
    found = view.get_shape()
    if len(found) != 2 or found[0] != tokens or not found[1] or size % found[1]:
        raise InputError(f"{path}: {key}: int8 needs scales [{tokens}, blocks] (found {found})")
    if view.get_dtype() not in ("F16", "F32"):
        raise InputError(f"{path}: {key}: dtype {view.get_dtype()} is not one of F16, F32")


def encode(values: Float32s, block: int = BLOCK) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Quantise values [T, size] to int8 [T, size] and scales [T, size / block].

    A block is the whole row where `block` does not divide it. Scales are rounded up to float16, so that no value
    leaves the range. A row's zeros stay zeros.
    """
    tokens, size = values.shape
    blocks = values.reshape(tokens, -1, block if size % block == 0 else size)
    wanted = np.maximum(np.abs(blocks).max(axis=-1) / 127, np.finfo(np.float16).smallest_subnormal)
    scale = wanted.astype(np.float16)
    with np.errstate(over="ignore"):  # what follows the largest scale is not used
        scale = np.where(scale < wanted, np.nextafter(scale, np.float16(np.inf)), scale)
    return np.rint(blocks / scale[..., None]).astype(np.int8).reshape(tokens, size), scale


def decode(values: NDArray[np.int8], scale: NDArray[Any]) -> Float32s:
    """The float32 values [T, size] of int8 [T, size] with scales [T, blocks]; not finite where a scale is not."""
    with np.errstate(invalid="ignore", over="ignore"):
        blocks = values.reshape(*scale.shape, -1).astype(np.float32) * scale.astype(np.float32)[..., None]
    return np.asarray(blocks.reshape(values.shape))


def write_routing(path: Path, header: Header, layers: Iterable[Routing]) -> None:
    """Write a trace of a mixture of experts whole or not at all, from the routing of each layer that has one.

    Raises InputError for values that no router gives, and if `path` cannot be written.
    """
    _write(path, routing_tensors(layers, header.model, path), header)


def write_requests(path: Path, header: Header, layers: Sequence[Mapping[str, NDArray[np.uint8]]]) -> None:
    """Write a trace of requested levels whole or not at all, from those of each group [T, N] in each layer.

    Raises InputError if `path` cannot be written.
    """
    _write(path, request_tensors(layers), header)


def write_trace(path: Path, header: Header, layers: Iterable[Activations], dtype: str = "int8") -> None:
    """Write a trace whole or not at all. `dtype` is int8 (compact), float16 or float32.

    Raises InputError for values that are not finite, or overflow the dtype, for `next_layer` in only some of the layers
    before the last, and if `path` cannot be written.
    """
    limit = {"int8": 127 * float(np.finfo(np.float16).max), "float16": float(np.finfo(np.float16).max)}.get(dtype)
    tensors: dict[str, NDArray[Any]] = {}
    recorded = 0
    for recorded, acts in enumerate(layers, start=1):
        for name in TENSORS if acts.next_layer is None else (*TENSORS, NEXT_LAYER):
            key = f"layers.{recorded - 1}.{name}"
            values = np.asarray(getattr(acts, name), dtype=np.float32)
            if not np.isfinite(values).all() or (limit is not None and np.abs(values).max() > limit):
                raise InputError(f"{path}: {key}: values are not finite in {dtype}; try --dtype float32")
            if dtype == "int8":
                tensors[key], tensors[f"{key}.scale"] = encode(values)
            else:
                tensors[key] = values.astype(dtype)
    if recorded != header.model.num_hidden_layers:
        raise InputError(f"{path}: {recorded} layers for a model of {header.model.num_hidden_layers}")
    check_next_layer(tensors, range(recorded), path)
    _write(path, tensors, header)


def _write(path: Path, tensors: dict[str, NDArray[Any]], header: Header) -> None:
    def write_sorted(temporary: Path) -> None:
        save_file(tensors, temporary, metadata=metadata(header))
        _sort_metadata(temporary)

    write(path, write_sorted)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in place, so that equal traces are equal bytes: safetensors writes it in varying order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(size))
        content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
        rewritten = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(rewritten) == size  # or the tensors behind it would be overwritten
        file.seek(8)
        file.write(rewritten)
