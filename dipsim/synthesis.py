"""Synthetic traces: activations drawn from a recipe, for models that cannot be recorded here.

A signal (mlp_input, gate_proj or up_proj of a layer) is `scale_n * (mean_n + noise_tn)` for neuron n and token t:
every neuron has its scale and its mean, and a noise that remembers the token before (AR(1)). Log-scales, means and
noise are all of one family, Tukey's h: `centre + spread * z * exp(tail * z^2 / 2)` with z standard normal. Its tail
index is 1 / tail, much as Student's t has its degrees of freedom, but a draw is one closed form. Neurons are drawn
independently, so popularity has nothing to do with the index. The numbers come from a recorded trace (`fit.py`) and
are carried over to other models by relative depth.

Ignored: what the tokens mean, correlation between neurons and between layers, correlation beyond the last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from dipsim import assets
from dipsim.files import InputError, Strict, parse, read_yaml, sha256, write
from dipsim.model import ModelShape
from dipsim.trace import TENSORS, Activations, Floats, Header, Trace

OUTERMOST = 3.0  # standard deviations: the fitted tails of scales and means are followed so far, about 1 neuron in 400

Tail = Annotated[float, Field(ge=0, lt=0.5)]  # of a finite variance
Spread = Annotated[float, Field(ge=0, le=1000)]


class Signal(Strict):
    """The statistics of one signal in one layer. Means are in units of the neuron's own scale."""

    scale: float = Field(gt=0, le=1000)  # the median neuron's, in the activations' unit
    scale_spread: float = Field(ge=0, le=1)  # of log(scale)
    scale_tail: Tail
    mean: float = Field(ge=-1000, le=1000)
    mean_spread: Spread
    mean_tail: Tail
    tail: Tail  # of the noise
    correlation: float = Field(ge=0, lt=1)  # of a neuron's noise with that of the token before


class Depth(Strict):
    """The statistics at one relative depth: 0 is the first layer, 1 the last."""

    depth: float = Field(ge=0, le=1)
    mlp_input: Signal
    gate_proj: Signal
    up_proj: Signal


class Recipe(Strict):
    """A recipe file. Its statistics are its own, or those of the recipe that `like` names."""

    description: str = ""
    model: ModelShape
    tokens: PositiveInt = 1000
    seed: NonNegativeInt = 0
    like: str | None = None  # a shipped recipe by name, or a path seen from this file's folder
    source: dict[str, Any] = Field(default_factory=dict)
    statistics: tuple[Depth, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_table(self) -> Self:
        if (self.like is None) == (self.statistics is None):
            raise ValueError("give either like or statistics, not both and not neither")
        depths = [row.depth for row in self.statistics or ()]
        if any(b <= a for a, b in pairwise(depths)):
            raise ValueError("statistics: the depths must rise from row to row")
        return self

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe file. Raises InputError naming file, field and remedy."""
        return parse(cls, read_yaml(path), path)

    def write(self, path: Path) -> None:
        """Write the recipe, a line for each signal. Raises InputError if `path` cannot be written."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        write(path, yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True))


@dataclass(frozen=True)
class SyntheticTrace(Trace):
    """A trace whose layers are drawn when they are asked for; the same recipe always gives the same values."""

    recipe: Recipe
    statistics: tuple[Depth, ...]

    @classmethod
    def load(cls, path: Path) -> SyntheticTrace:
        """Open a recipe file. Raises InputError if it, or the recipe that it is like, cannot be used."""
        recipe = Recipe.load(path)
        source: dict[str, Any] = {"synthetic": True, "seed": recipe.seed} | recipe.source
        statistics = recipe.statistics
        if recipe.like is not None:
            file = assets.find("traces", path.parent / recipe.like if recipe.like.endswith(".yaml") else recipe.like)
            source |= {"like": recipe.like, "like_sha256": sha256(file)}
            statistics = Recipe.load(file).statistics if file.suffix == ".yaml" else None
        if statistics is None:
            raise InputError(f"{path}: like: {recipe.like} has no statistics of its own; name a recipe that has")
        return cls(path, Header(model=recipe.model, source=source), recipe.tokens, recipe, statistics)

    def layer(self, index: int, tokens: int | None = None) -> Activations:
        """Activations of the first `tokens` tokens of one layer, float32, drawn anew at every call.

        Layers are independent streams, and fewer tokens are a prefix of more. The arrays are read-only. Raises
        InputError if there is no such layer.
        """
        if not 0 <= index < self.shape.num_hidden_layers:
            raise InputError(f"{self.path}: layer {index}: the trace has {self.shape.num_hidden_layers}")
        count = self.tokens if tokens is None else min(tokens, self.tokens)
        here = at(self.statistics, index / max(1, self.shape.num_hidden_layers - 1))
        seeds = np.random.SeedSequence(self.recipe.seed, spawn_key=(index,)).spawn(len(TENSORS))
        sizes = (self.shape.hidden_size, *2 * (self.shape.intermediate_size,))
        mlp_input, gate_proj, up_proj = (
            draw(getattr(here, name), count, size, np.random.default_rng(seed))
            for name, size, seed in zip(TENSORS, sizes, seeds, strict=True)
        )
        return Activations(mlp_input, gate_proj, up_proj, layer=index)


def at(statistics: Sequence[Depth], depth: float) -> Depth:
    """The statistics at a relative depth: linear between the rows, constant beyond them."""
    depths = [row.depth for row in statistics]

    def signal(name: str) -> Signal:
        rows = [getattr(row, name) for row in statistics]
        return Signal(
            **{key: float(np.interp(depth, depths, [getattr(r, key) for r in rows])) for key in Signal.model_fields}
        )

    return Depth(depth=depth, **{name: signal(name) for name in TENSORS})


def draw(signal: Signal, tokens: int, size: int, rng: np.random.Generator) -> Floats:
    """One signal [tokens, size], float32, read-only. The neurons are drawn first, so the tokens follow one by one."""

    def neurons(centre: float, spread: float, tail: float) -> NDArray[np.float64]:
        z = rng.standard_normal(size).clip(-OUTERMOST, OUTERMOST)
        return np.asarray(centre + spread * z * np.exp(tail / 2 * z * z))

    scale = (signal.scale * np.exp(neurons(0, signal.scale_spread, signal.scale_tail))).astype(np.float32)
    mean = neurons(signal.mean, signal.mean_spread, signal.mean_tail).astype(np.float32)
    last = rng.standard_normal(size, dtype=np.float32)  # the token before the first
    values = rng.standard_normal((tokens, size), dtype=np.float32)
    fresh = np.float32(np.sqrt(1 - signal.correlation**2))
    work = np.empty_like(last)
    for row in values:  # in place, a row at a time: it stays in the processor's cache through all of this
        row *= fresh
        last *= np.float32(signal.correlation)
        row += last
        last[:] = row
        np.square(row, out=work)
        work *= np.float32(signal.tail / 2)
        row *= np.exp(work, out=work)
        row += mean
        row *= scale
    values.setflags(write=False)
    return values
