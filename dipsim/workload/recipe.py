"""Recipes: the statistics that a synthetic trace is drawn from.

A signal is mlp_input, gate_proj or up_proj of one layer. Its value is `scale_n * (mean_n + noise_tn)` for neuron n and
token t. Each neuron has a scale and a mean of its own, and a noise that remembers the token before it (AR(1)).
Log-scales, means and noise are all of one family, Tukey's h (docs/background.md, section 9). The numbers come from a
recorded trace (`fit.py`), and relative depth carries them over to other models.

The recipe ignores what the tokens mean, correlation between neurons and between layers, and correlation beyond the
last token.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from dipsim.basics.fields import Strict, parse
from dipsim.basics.files import read_yaml, write
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


class Recipe(Strict):
    """A recipe file. Its statistics are its own, or those of the recipe that `like` names.

    `like` is a shipped recipe by name, or a path seen from this file's folder.
    """

    description: str = ""
    model: ModelShape
    tokens: PositiveInt = 1000
    seed: NonNegativeInt = 0
    like: str | None = None
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
        """Read a recipe file. Raises InputError naming file, field and fix."""
        return parse(cls, read_yaml(path), path)

    def write(self, path: Path) -> None:
        """Write the recipe, a line for each signal. Raises InputError if `path` cannot be written."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        write(path, yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True))
