"""Synthetic traces: activations or routing drawn from a recipe, for models that cannot be recorded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from dipsim.basics import assets
from dipsim.basics.arrays import Float32s, Floats
from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.workload.recipe import Depth, Recipe, Router, Signal
from dipsim.workload.routing import Routing
from dipsim.workload.routing_synthetic import router_at, sample_logits, sample_noise
from dipsim.workload.trace import TENSORS, Activations, Header, Trace, read_only

OUTERMOST = 3.0  # standard deviations: the fitted tails of scales and means are followed so far, about 1 neuron in 400


@dataclass(frozen=True)
class SyntheticTrace(Trace, suffix=".yaml"):
    """A trace whose layers are drawn when they are asked for. The same recipe always gives the same values."""

    recipe: Recipe
    statistics: tuple[Depth, ...] = ()
    routing: tuple[Router, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open a recipe file. Raises InputError if it, or the recipe that it is like, cannot be used."""
        recipe = Recipe.load(path)
        source: dict[str, Any] = {"synthetic": True, "seed": recipe.seed} | recipe.source
        rows = getattr(recipe, recipe.table)
        if recipe.like is not None:
            file = assets.find("traces", path.parent / recipe.like if recipe.like.endswith(".yaml") else recipe.like)
            source |= {"like": recipe.like, "like_sha256": sha256(file)}
            rows = getattr(Recipe.load(file), recipe.table) if file.suffix == ".yaml" else None
        if rows is None:
            raise InputError(f"{path}: like: {recipe.like} has no {recipe.table} of its own; name a recipe that has")
        header = Header(model=recipe.model, source=source, prompts=((0, recipe.prompt),) if recipe.prompt else ())
        return cls(path, header, recipe.tokens, recipe, **{recipe.table: rows})

    def layer(self, index: int, tokens: int | None = None) -> Activations | Routing:
        """Activations or routing of the first `tokens` tokens of one layer, by default of all: float32, read-only.

        They are drawn anew at every call. Layers are independent streams, but for the noise of the tokens of a mixture,
        which is the same in all. Fewer tokens are a prefix of more.
        Raises InputError if there is no such layer.
        """
        self._check_layer(index)
        count = self.tokens if tokens is None else min(tokens, self.tokens)
        self._check_memory(count)
        depth = self.layers.index(index) / max(1, len(self.layers) - 1)
        seeds = np.random.SeedSequence(self.recipe.seed, spawn_key=(index,))
        if self.shape.mixture is not None:
            experts, k = self.shape.mixture.num_experts, self.shape.mixture.num_experts_per_tok
            noise = sample_noise(count, np.random.default_rng(np.random.SeedSequence(self.recipe.seed)))
            logits = sample_logits(router_at(self.routing, depth), noise, experts, np.random.default_rng(seeds))
            return Routing(experts, k, logits, layer=index, where=self.path)
        here = statistics_at(self.statistics, depth)
        sizes = (self.shape.hidden_size, *2 * (self.shape.intermediate_size,))
        mlp_input, gate_proj, up_proj = (
            sample_signal(getattr(here, name), count, size, np.random.default_rng(seed))
            for name, size, seed in zip(TENSORS, sizes, seeds.spawn(len(TENSORS)), strict=True)
        )
        return Activations(mlp_input, gate_proj, up_proj, layer=index)


def statistics_at(statistics: Sequence[Depth], depth: float) -> Depth:
    """The statistics at a relative depth, linear between the rows and constant beyond them."""
    depths = [row.depth for row in statistics]

    def signal(name: str) -> Signal:
        rows = [getattr(row, name) for row in statistics]
        return Signal(
            **{key: float(np.interp(depth, depths, [getattr(r, key) for r in rows])) for key in Signal.model_fields}
        )

    return Depth(depth=depth, **{name: signal(name) for name in TENSORS})


def sample_signal(signal: Signal, tokens: int, size: int, rng: np.random.Generator) -> Float32s:
    """Draw one signal [tokens, size], float32, read-only (docs/background/equations.md, section 9).

    The neurons are drawn before the tokens, so that fewer tokens are a prefix of more.
    """

    def neurons(centre: float, spread: float, tail: float) -> Floats:
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
    return np.asarray(read_only(values))
