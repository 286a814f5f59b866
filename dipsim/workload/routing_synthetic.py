"""Draws the routing of a layer from the statistics of a router, as `recipe.py` defines them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipsim.basics.arrays import Float32s, Floats
from dipsim.workload.recipe import Router
from dipsim.workload.trace import read_only

DIMENSIONS = 16  # of a state; so few leave some experts unused for long, as in both recorded traces


def router_at(routing: Sequence[Router], depth: float) -> Router:
    """The statistics at a relative depth, linear between the rows and constant beyond them."""
    depths = [row.depth for row in routing]
    names = Router.model_fields.keys() - {"depth"}
    found = {name: float(np.interp(depth, depths, [getattr(row, name) for row in routing])) for name in names}
    return Router(depth=depth, **found)


def sample_noise(tokens: int, rng: np.random.Generator) -> Floats:
    """Draw what is new in each token, [tokens + 1, DIMENSIONS], from the token before the first on.

    All layers of a trace share it, because a token that is new to one layer is new to the others. Fewer tokens are a
    prefix of more.
    """
    return rng.standard_normal((tokens + 1, DIMENSIONS))


def sample_logits(router: Router, noise: Floats, experts: int, rng: np.random.Generator) -> Float32s:
    """Draw a layer's router, and compute its logits [tokens, experts], float32, read-only, from the noise of its tokens
    [tokens + 1, DIMENSIONS] (docs/background/equations.md, section 9).
    """
    popularity = rng.standard_normal(experts, dtype=np.float32)
    weights = rng.standard_normal((DIMENSIONS, experts), dtype=np.float32) / np.float32(np.sqrt(DIMENSIONS))
    kept = memory(router.correlation)
    last, states = noise[0].copy(), noise[1:] * np.sqrt(1 - kept**2)
    for state in states:
        last *= kept
        state += last
        last[:] = state
    logits = np.tile(np.float32(router.skew) * popularity, (len(states), 1))
    work = np.empty_like(logits)
    for values, row in zip(states.T.astype(np.float32), weights, strict=True):  # no `@`, which rounds by its shape
        logits += np.multiply(values[:, None], row, out=work)
    logits *= np.float32(router.scale)
    return np.asarray(read_only(logits))


def memory(correlation: float) -> Floats:
    """The correlation of each value of a state with itself a token before, [DIMENSIONS], rising; on average about
    `correlation`.
    """
    if correlation == 0:
        return np.zeros(DIMENSIONS)
    return np.asarray(((np.arange(DIMENSIONS) + 0.5) / DIMENSIONS) ** (1 / correlation - 1))
