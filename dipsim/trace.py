"""Trace: what a model's MLPs saw and computed, token by token, as recorded; read one layer at a time.

A `.safetensors` file with, for each layer i, `layers.{i}.mlp_input` [T, d], `layers.{i}.gate_proj` [T, m] and
`layers.{i}.up_proj` [T, m]: the MLP's input and its two projections before the activation function. A tensor is
float16 or float32, or int8 beside `layers.{i}.NAME.scale` [T, B]: B equal blocks of a row, each with its scale.
The header says `format`, `version`, `model` (a ModelShape), `activation`, `sequence_starts` and `source`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dipsim import assets
from dipsim.files import InputError, Strict, parse, write
from dipsim.model import ModelShape

Floats = NDArray[np.float32]
TENSORS = ("mlp_input", "gate_proj", "up_proj")
BLOCK = 32  # values that share a scale in the compact form


def silu(x: Floats) -> Floats:
    """x sigmoid(x), without overflow for any finite x."""
    return np.asarray(x * (0.5 * (1 + np.tanh(0.5 * x))), dtype=x.dtype)


@dataclass(frozen=True)
class Activations:
    """One layer's activations. Shapes: `mlp_input` [..., d]; `gate_proj`, `up_proj`, `gate`, `glu` [..., m]."""

    mlp_input: Any
    gate_proj: Any
    up_proj: Any
    activation: Callable[[Any], Any] = silu
    layer: int = 0

    @cached_property
    def gate(self) -> Any:
        """The gate after its activation function."""
        return _read_only(self.activation(self.gate_proj))

    @cached_property
    def glu(self) -> Any:
        """gate * up: what down_proj multiplies."""
        return _read_only(self.gate * self.up_proj)


def _read_only(values: Any) -> Any:
    """The same array, protected from a policy that would change what others see."""
    values.setflags(write=False)
    return values


class Header(Strict):
    """The metadata of a trace file."""

    format: Literal["dipsim-trace"] = "dipsim-trace"
    version: Literal[1] = 1
    model: ModelShape
    activation: Literal["silu"] = "silu"
    sequence_starts: tuple[int, ...] = (0,)
    source: dict[str, Any] = Field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """As safetensors wants it, every value a string; all but `format` and `activation` are JSON."""
        fields = self.model_dump(mode="json")
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}

    @classmethod
    def read(cls, metadata: dict[str, str], path: Path) -> Header:
        if metadata.get("format") != "dipsim-trace":
            raise InputError(f"{path}: format: not a dipsim trace; make one with `python -m dipsim record`")
        fields: dict[str, Any] = dict(metadata)
        for key in fields.keys() - {"format", "activation"}:
            try:
                fields[key] = json.loads(fields[key])
            except (ValueError, RecursionError):
                raise InputError(f"{path}: {key}: is not JSON; record the trace again") from None
        for key in ("version", "model", "activation", "sequence_starts"):
            if key not in fields:
                raise InputError(f"{path}: {key}: is required but missing; record the trace again")
        return parse(cls, fields, path)


@dataclass(frozen=True)
class Trace:
    """A trace: its shape, how many tokens it has, and lazy access to each layer."""

    path: Path
    header: Header
    tokens: int

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def shape(self) -> ModelShape:
        return self.header.model

    @property
    def sequence_starts(self) -> tuple[int, ...]:
        return self.header.sequence_starts

    @classmethod
    def open(cls, name_or_path: str | Path) -> Trace:
        """Open a shipped trace by name or a file by path, and check everything but the values.

        A `.yaml` is a recipe and gives a synthetic trace. Raises InputError for a truncated or foreign file and for
        missing or misshapen tensors.
        """
        path = assets.find("traces", name_or_path)
        if path.suffix == ".yaml":
            from dipsim.synthesis import SyntheticTrace  # which builds on this module

            return SyntheticTrace.load(path)
        try:
            with safe_open(path, framework="np") as file:
                header = Header.read(file.metadata() or {}, path)
                tokens = _check_tensors(file, header.model, path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error}); record it again") from None
        starts = header.sequence_starts
        if not starts or starts[0] != 0 or any(b <= a for a, b in zip(starts, (*starts[1:], tokens), strict=True)):
            raise InputError(f"{path}: sequence_starts: must rise from 0 and stay below the {tokens} tokens recorded")
        return cls(path, header, tokens)

    def layer(self, index: int, tokens: int | None = None) -> Activations:
        """Activations of the first `tokens` tokens of one layer, float32.

        The arrays are read-only. Raises InputError if there is no such layer or a value is not finite.
        """
        if not 0 <= index < self.shape.num_hidden_layers:
            raise InputError(f"{self.path}: layer {index}: the trace has {self.shape.num_hidden_layers}")
        tensors = []
        with safe_open(self.path, framework="np") as file:
            for name in TENSORS:
                key = f"layers.{index}.{name}"
                values = file.get_slice(key)[:tokens]
                if values.dtype == np.int8:
                    values = decode(values, file.get_slice(f"{key}.scale")[:tokens])
                if not np.isfinite(values).all():
                    raise InputError(f"{self.path}: {key}: holds NaN or infinite values; record the trace again")
                tensors.append(_read_only(values.astype(np.float32, copy=False)))
        mlp_input, gate_proj, up_proj = tensors
        return Activations(mlp_input, gate_proj, up_proj, layer=index)


def _check_tensors(file: Any, shape: ModelShape, path: Path) -> int:
    """Check that every tensor is there with its shape and dtype; return the number of tokens."""
    present = set(file.keys())
    tokens: int | None = None
    for index in range(shape.num_hidden_layers):
        for name, size in zip(TENSORS, (shape.hidden_size, *2 * (shape.intermediate_size,)), strict=True):
            key = f"layers.{index}.{name}"
            if key not in present:
                raise InputError(f"{path}: {key}: is missing; the header promises {shape.num_hidden_layers} layers")
            view = file.get_slice(key)
            found = view.get_shape()
            tokens = found[0] if tokens is None and found else tokens
            if found != [tokens, size] or not tokens:
                raise InputError(f"{path}: {key}: has shape {found}; [{tokens or 'tokens'}, {size}] is expected")
            if view.get_dtype() == "I8":
                if f"{key}.scale" not in present:
                    raise InputError(f"{path}: {key}.scale: is missing; int8 needs scales [{tokens}, blocks]")
                view = file.get_slice(f"{key}.scale")
                scale = view.get_shape()
                if len(scale) != 2 or scale[0] != tokens or not scale[1] or size % scale[1]:
                    raise InputError(f"{path}: {key}.scale: int8 needs scales [{tokens}, blocks] (found {scale})")
                if view.get_dtype() not in ("F16", "F32"):
                    raise InputError(f"{path}: {key}.scale: dtype {view.get_dtype()} is not one of F16, F32")
            elif view.get_dtype() not in ("F16", "F32"):
                raise InputError(f"{path}: {key}: dtype {view.get_dtype()} is not one of F16, F32, I8 with scales")
    assert tokens is not None  # num_hidden_layers > 0
    return tokens


def encode(values: Floats, block: int = BLOCK) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """int8 [T, size] and scales [T, size / block]; `block` falls back to the whole row where it does not divide it.

    Scales are rounded up to float16, so no value leaves the range; a row's zeros stay zeros.
    """
    tokens, size = values.shape
    blocks = values.reshape(tokens, -1, block if size % block == 0 else size)
    wanted = np.maximum(np.abs(blocks).max(axis=-1) / 127, np.finfo(np.float16).smallest_subnormal)
    scale = wanted.astype(np.float16)
    scale = np.where(scale < wanted, np.nextafter(scale, np.float16(np.inf)), scale)
    return np.rint(blocks / scale[..., None]).astype(np.int8).reshape(tokens, size), scale


def decode(values: NDArray[np.int8], scale: NDArray[Any]) -> Floats:
    """The float32 values [T, size] of int8 [T, size] with scales [T, blocks]."""
    blocks = values.reshape(*scale.shape, -1).astype(np.float32) * scale.astype(np.float32)[..., None]
    return np.asarray(blocks.reshape(values.shape))


def save(path: Path, header: Header, layers: Iterable[Activations], dtype: str = "int8") -> None:
    """Write a trace whole or not at all. `dtype`: int8 (compact), float16 or float32.

    Raises InputError for values that are not finite (or overflow float16) and if `path` cannot be written.
    """
    limit = {"int8": 127 * float(np.finfo(np.float16).max), "float16": float(np.finfo(np.float16).max)}.get(dtype)
    tensors: dict[str, NDArray[Any]] = {}
    for index, acts in enumerate(layers):
        for name in TENSORS:
            key = f"layers.{index}.{name}"
            values = np.asarray(getattr(acts, name), dtype=np.float32)
            if not np.isfinite(values).all() or (limit is not None and np.abs(values).max() > limit):
                raise InputError(f"{path}: {key}: values are not finite in {dtype}; try --dtype float32")
            if dtype == "int8":
                tensors[key], tensors[f"{key}.scale"] = encode(values)
            else:
                tensors[key] = values.astype(dtype)
    if (recorded := len(tensors) // (2 if dtype == "int8" else 1) // len(TENSORS)) != header.model.num_hidden_layers:
        raise InputError(f"{path}: {recorded} layers for a model of {header.model.num_hidden_layers}")

    def save_sorted(temporary: Path) -> None:
        save_file(tensors, temporary, metadata=header.metadata())
        _sort_metadata(temporary)

    write(path, save_sorted)


def _sort_metadata(path: Path) -> None:
    """safetensors writes metadata in an order that varies; sorted in place, equal traces are equal bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(size))
        content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
        rewritten = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(rewritten) == size  # or the tensors behind it would be overwritten
        file.seek(8)
        file.write(rewritten)
