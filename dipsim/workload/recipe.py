"""Recipes: the statistics that a synthetic trace is drawn from.

A signal is mlp_input, gate_proj or up_proj of one layer. Its value is `scale_n * (mean_n + noise_tn)` for neuron n and
token t. Each neuron has a scale and a mean of its own, and a noise that remembers the token before it (AR(1)).
Log-scales, means and noise are all of one family, Tukey's h (docs/background/equations.md, section 9). The numbers come
from a recorded trace (`fit.py`), and relative depth carries them over to other models.

Of a mixture of experts, the logits of its routers are drawn instead. Each expert has a popularity of its own, and the
rest is a matrix times a state of few values, of which some change with every token and some stay for long.

The recipe ignores what the tokens mean, correlation between neurons and between layers, and, except for routers,
correlation beyond the last token.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, NonNegativeInt, model_validator

from dipsim.basics.fields import Count, Natural, Strict, parse
from dipsim.basics.files import read_settings, write
from dipsim.workload.shape import ModelShape

Tail = Annotated[float, Field(ge=0, lt=0.5)]  # of a finite variance
Spread = Annotated[float, Field(ge=0, le=1000)]


class Signal(Strict):
    """The statistics of one signal in one layer.

    `scale` is the median neuron's, in the unit of the activations. Means are in units of the neuron's own scale. Each
    `*_tail` is Tukey's h. `correlation` is that of a neuron's noise with its noise at the token before.
    """

    scale: float = Field(gt=0, le=1000)
    scale_spread: float = Field(ge=0, le=1)
    scale_tail: Tail
    mean: float = Field(ge=-1000, le=1000)
    mean_spread: Spread
    mean_tail: Tail
    tail: Tail
    correlation: float = Field(ge=0, lt=1)


class Depth(Strict):
    """The statistics at one relative depth, from 0 for the first layer to 1 for the last."""

    depth: float = Field(ge=0, le=1)
    mlp_input: Signal
    gate_proj: Signal
    up_proj: Signal


class Router(Strict):
    """A router's statistics at one relative depth, from 0 for the first layer with a mixture to 1 for the last.

    `scale` is the standard deviation of the part of a logit that changes. `skew` is the spread of the experts'
    popularity, in units of that part. `correlation` is that of the changing part with itself at the token before.
    """

    depth: float = Field(ge=0, le=1)
    skew: float = Field(ge=0, le=1000)
    correlation: float = Field(ge=0, lt=1)
    scale: float = Field(gt=0, le=1000)


class Recipe(Strict):
    """A recipe file. Its statistics are its own, or those of the recipe that `like` names.

    A dense model has `statistics`, a mixture of experts has `routing`. `like` is a shipped recipe by name, or a path
    seen from this file's folder. The first `prompt` tokens of a mixture are encoded together (0).
    """

    description: str = ""
    model: ModelShape
    tokens: Count = 1000
    prompt: Natural = 0
    seed: NonNegativeInt = 0
    like: str | None = None
    source: dict[str, Any] = Field(default_factory=dict)
    statistics: tuple[Depth, ...] | None = Field(None, min_length=1)
    routing: tuple[Router, ...] | None = Field(None, min_length=1)

    @property
    def table(self) -> str:
        """The field that the statistics of such a model stand in."""
        return "statistics" if self.model.mixture is None else "routing"

    @model_validator(mode="after")
    def _one_table(self) -> Self:
        if self.table == "statistics" and self.routing is not None:
            raise ValueError("routing: is that of a mixture of experts; give statistics, or the model a mixture")
        if self.table == "routing" and self.statistics is not None:
            raise ValueError("statistics: are those of a dense model; give routing, or the model no mixture")
        rows = getattr(self, self.table)
        if (self.like is None) == (rows is None):
            raise ValueError(f"give either like or {self.table}, not both and not neither")
        if any(b.depth <= a.depth for a, b in pairwise(rows or ())):
            raise ValueError(f"{self.table}: the depths must rise from row to row")
        return self

    @model_validator(mode="after")
    def _prompt_within(self) -> Self:
        if self.prompt and self.model.mixture is None:
            raise ValueError("prompt: is only for a model with a mixture; remove it")
        if self.prompt >= self.tokens:
            raise ValueError(f"prompt: {self.prompt} of {self.tokens} tokens; leave one or more to decode")
        return self

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe file. Raises InputError naming file, field and fix."""
        return parse(cls, read_settings(path, "a recipe"), path)

    def write(self, path: Path) -> None:
        """Write the recipe, a line for each signal or router. Raises InputError if `path` cannot be written."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        write(path, yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True))
