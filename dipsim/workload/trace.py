"""A trace: what a model's MLPs saw and computed, token by token, read one layer at a time.

A trace is recorded (`recorded.py`) or drawn from a recipe (`synthetic.py`). A format is a subclass of `Trace` that
names the suffix of its files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from dipsim.basics import assets
from dipsim.basics.arrays import Float32s, Ints
from dipsim.basics.errors import InputError
from dipsim.basics.fields import Strict
from dipsim.basics.limits import check_memory
from dipsim.workload.shape import ModelShape

TENSORS = ("mlp_input", "gate_proj", "up_proj")
NEXT_LAYER = "next_layer"  # may stand beside them, in every layer but the last


def silu(x: Float32s) -> Float32s:
    """x sigmoid(x), computed without overflow for any finite x."""
    return np.asarray(x * (0.5 * (1 + np.tanh(0.5 * x))), dtype=x.dtype)


@dataclass(frozen=True)
class Activations:
    """One layer's activations: `mlp_input` [..., d]; `gate_proj`, `up_proj`, `gate` and `glu` [..., m].

    Leading axes are tokens. d is the model's hidden_size, m its intermediate_size. `next_layer` [..., m] float32 is
    what the next layer would make of this layer's input: |silu(W_gate x) * (W_up x)| with the next layer's matrices. It
    is None where it was not recorded, and in the last layer.
    """

    mlp_input: Any
    gate_proj: Any
    up_proj: Any
    activation: Callable[[Any], Any] = silu
    layer: int = 0
    next_layer: Any | None = None

    def at(self, token: int | Ints) -> Activations:
        """Those of one token, or of several."""
        tensors = {
            name: values[token]
            for name, values in vars(self).items()
            if name in (*TENSORS, NEXT_LAYER) and values is not None
        }
        return replace(self, **tensors)

    @cached_property
    def gate(self) -> Any:
        """The gate after its activation function."""
        return read_only(self.activation(self.gate_proj))

    @cached_property
    def glu(self) -> Any:
        """The product gate * up, which down_proj multiplies (docs/background/equations.md, section 1).

        Raises InputError if it is more than a float holds.
        """
        try:
            with np.errstate(over="raise"):
                return read_only(self.gate * self.up_proj)
        except FloatingPointError:
            raise InputError(
                f"layer {self.layer}: gate times up is more than {self.up_proj.dtype} holds; check what was recorded"
            ) from None


def read_only(values: Any) -> Any:
    """Protect an array from a policy that would change what others see; return the same array."""
    values.setflags(write=False)
    return values


class Header(Strict):
    """What is known of a trace besides its activations."""

    format: Literal["dipsim-trace"] = "dipsim-trace"
    version: Literal[1] = 1
    model: ModelShape
    activation: Literal["silu"] = "silu"
    sequence_starts: tuple[int, ...] = (0,)
    prompts: tuple[tuple[int, int], ...] = ()  # the [begin, end) of tokens that were encoded together
    holds: Literal["activations", "requests"] = "activations"  # of dense MLPs: what a policy chooses by, or its choices
    source: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Trace(ABC):
    """A trace: its file, its header, its number of tokens, and access to one layer at a time."""

    path: Path
    header: Header
    tokens: int

    _formats: ClassVar[dict[str, type[Trace]]] = {}

    def __init_subclass__(cls, suffix: str, **rest: Any) -> None:
        """Register the format of the files that end in `suffix`."""
        super().__init_subclass__(**rest)
        Trace._formats[suffix] = cls

    @staticmethod
    def open(name_or_path: str | Path) -> Trace:
        """Open a shipped trace by name, or a file by path, and check everything but the values.

        A `.safetensors` file is a recorded trace, a `.yaml` file is the recipe of a synthetic one. Raises InputError
        for a truncated or foreign file, for missing or misshapen tensors and for an impossible recipe.
        """
        path = assets.find("traces", name_or_path)
        return Trace._formats[path.suffix].load(path)

    @classmethod
    @abstractmethod
    def load(cls, path: Path) -> Self:
        """Open a file of this format. Raises InputError if it cannot be used."""

    @abstractmethod
    def layer(self, index: int, tokens: int | None = None) -> Any:
        """`Activations` of the first `tokens` tokens of one layer, by default of all: float32, read-only.

        Of a mixture of experts it is their `Routing`, of a trace of requests they are `LevelRequests`. Raises
        InputError if there is no such layer.
        """

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def shape(self) -> ModelShape:
        """The sizes of the model."""
        return self.header.model

    @property
    def sequence_starts(self) -> tuple[int, ...]:
        """The first token of each sequence."""
        return self.header.sequence_starts

    @property
    def layers(self) -> list[int]:
        """The layers that the trace has something of: all, or those with a mixture."""
        if self.shape.mixture is None:
            return list(range(self.shape.num_hidden_layers))
        return [int(layer) for layer in np.flatnonzero(self.shape.is_mixture)]

    @property
    def prompts(self) -> tuple[tuple[int, int], ...]:
        """The (begin, end) of tokens that were encoded together; all others followed one by one."""
        return self.header.prompts

    def longest_sequence(self, tokens: int | None = None) -> int:
        """Positions of the longest sequence among the first `tokens` tokens, by default among all."""
        count = min(tokens or self.tokens, self.tokens)
        starts = [start for start in self.sequence_starts if start < count]
        return max(end - begin for begin, end in sequences(starts, count))

    def _check_memory(self, tokens: int) -> None:
        """Raise InputError if one layer of so many tokens does not fit into memory."""
        needed, what = self.shape.layer_memory(tokens), f"{self.path}: {tokens} tokens of a layer"
        check_memory(needed, what, "ask for fewer, or of a smaller model")

    def _check_layer(self, index: int) -> None:
        if not 0 <= index < self.shape.num_hidden_layers:
            raise InputError(f"{self.path}: layer {index}: the trace has {self.shape.num_hidden_layers}")
        if index not in self.layers:
            raise InputError(f"{self.path}: layer {index}: has no mixture of experts")


def check_next_layer(present: Collection[str], layers: Sequence[int], path: Path) -> None:
    """Raise InputError unless all of these layers but the last have a tensor `next_layer`, or none has."""
    keys = [f"layers.{layer}.{NEXT_LAYER}" for layer in layers]
    if not any(key in present for key in keys):
        return
    if keys[-1] in present:
        raise InputError(f"{path}: {keys[-1]}: there is no layer after the last; leave it out")
    for key in keys[:-1]:
        if key not in present:
            raise InputError(f"{path}: {key}: is missing, but other layers have it; record the trace again")


def sequences(starts: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """The (begin, end) of each sequence among `tokens` tokens, from the first token of each."""
    return list(zip(starts, (*starts[1:], tokens), strict=True))
