"""Fits a recipe to a recorded trace: the statistics of each layer, as `recipe.py` defines them.

Tukey's h is fitted in closed form by two quantiles of the magnitudes. The median gives the spread. The tail follows
from how much farther out the 99 % quantile lies than a normal's (docs/background/equations.md, section 9). The routers
of a mixture of experts are fitted by `routing_fit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np

from dipsim.basics.arrays import Float32s, Floats
from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.basics.files import sha256
from dipsim.basics.progress import Progress, silent
from dipsim.workload.config import read_config
from dipsim.workload.recipe import Depth, Recipe, Signal
from dipsim.workload.routing_fit import fit_routing
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import TENSORS, Trace

LIKE = "smollm2-135m-synthetic"  # the shipped recipe whose statistics were fitted
ROUTING_LIKE = "qwen3-30b-a3b-synthetic"  # and the one for a mixture of experts
TOKENS = 32  # fewer say nothing about a neuron
MEDIAN, OUTER = 0.5, 0.99
_Z_MEDIAN, _Z_OUTER = (NormalDist().inv_cdf((1 + share) / 2) for share in (MEDIAN, OUTER))
_STEEPEST = 0.49


def fit(trace: Trace, progress: Progress = silent) -> Recipe:
    """Fit the recipe whose traces resemble `trace`, for a model of the same size.

    Raises InputError if the trace is too short or a signal of it is constant.
    """
    mixture = trace.shape.mixture is not None
    begin, end = trace.prompts[0] if trace.prompts else (0, 0)
    return Recipe(
        description=f"Synthetic, fitted to the recorded trace {trace.name}",
        model=trace.shape,
        tokens=trace.tokens,
        prompt=end if begin == 0 and mixture else 0,
        source={"fitted_to": trace.name, "fitted_to_sha256": sha256(trace.path)},
        statistics=None if mixture else fit_signals(trace, progress),
        routing=fit_routing(trace, progress) if mixture else None,
    )


def fit_signals(trace: Trace, progress: Progress = silent) -> tuple[Depth, ...]:
    """The statistics of each layer of a trace of a dense model.

    Raises InputError if the trace is too short or a signal of it is constant.
    """
    if trace.tokens < TOKENS:
        raise InputError(f"{trace.path}: has {trace.tokens} tokens; a fit needs {TOKENS} or more, record a longer one")
    layers = trace.shape.num_hidden_layers
    rows = []
    for index in range(layers):
        acts, signals = trace.layer(index), {}
        for name in TENSORS:
            try:
                signals[name] = fit_signal(getattr(acts, name), trace.sequence_starts)
            except InputError as error:
                raise InputError(f"{trace.path}: layers.{index}.{name}: {error}") from None
        rows.append(Depth(depth=_rounded(index / max(1, layers - 1)), **signals))
        progress("fitting layers", index + 1, layers)
    return tuple(rows)


def fit_signal(signal: Float32s, starts: Sequence[int] = (0,)) -> Signal:
    """The statistics of one signal [T, n] whose sequences begin at the tokens `starts`."""
    values = signal.astype(np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    alive = deviation > 0
    if np.count_nonzero(alive) < 2:
        raise InputError("fewer than two neurons ever change; there is nothing to fit")
    mean, deviation = mean[alive], deviation[alive]
    noise = (values[:, alive] - mean) / deviation
    later = np.setdiff1d(np.arange(1, len(noise)), starts)
    correlation = float(np.clip((noise[later] * noise[later - 1]).mean(), 0, 0.99))
    unit, tail = _tukey(noise)
    scale = deviation * unit
    log_scale, relative_mean = np.log(scale), mean / scale
    centre = np.median(log_scale), np.median(relative_mean)
    scale_spread, scale_tail = _tukey(log_scale - centre[0])
    mean_spread, mean_tail = _tukey(relative_mean - centre[1])
    # T tokens tell a neuron's scale and mean only so well; the variance of these estimates is not the neurons' own
    blur = (1 + correlation**2) / (1 - correlation**2) / (2 * len(noise))
    blur_of_mean = (1 + correlation) / (1 - correlation) / len(noise) / unit**2
    found = {
        "scale": np.exp(centre[0]),
        "scale_spread": min(1.0, np.sqrt(max(0.0, scale_spread**2 - blur))),
        "scale_tail": scale_tail,
        "mean": centre[1],
        "mean_spread": np.sqrt(max(0.0, mean_spread**2 - blur_of_mean)),
        "mean_tail": mean_tail,
        "tail": tail,
        "correlation": correlation,
    }
    return Signal(**{key: _rounded(float(value)) for key, value in found.items()})


def _tukey(values: Floats) -> tuple[float, float]:
    """Spread and tail of Tukey's h with centre 0, so that |value| = spread z exp(tail z^2 / 2) at both quantiles."""
    median, outer = np.quantile(np.abs(values), (MEDIAN, OUTER))
    if median == 0:
        return 0.0, 0.0
    tail = 2 * np.log(outer / median * _Z_MEDIAN / _Z_OUTER) / (_Z_OUTER**2 - _Z_MEDIAN**2)
    tail = float(np.clip(tail, 0, _STEEPEST))
    return float(median / (_Z_MEDIAN * np.exp(tail / 2 * _Z_MEDIAN**2))), tail


def _rounded(value: float) -> float:
    """Four significant digits: more than the data say, and short in a file."""
    return float(f"{value:.4g}")


def from_config(path: Path, tokens: int = 1000, seed: int = 0) -> Recipe:
    """Make a recipe for the model of a Hugging Face `config.json`, with the shipped statistics or routing.

    Raises InputError if the file is not a Hugging Face `config.json`.
    """
    shape = ModelShape.from_config(read_config(path), path)
    like = LIKE if shape.mixture is None else ROUTING_LIKE
    fields = {"description": f"Synthetic, {like} at this size", "model": shape, "tokens": tokens, "seed": seed}
    return parse(Recipe, fields | {"like": like}, "recipe")
