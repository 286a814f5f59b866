"""Fits the routers of a recipe to recorded routing, by matching what drawn routers do.

Two numbers of a layer say how experts are used again: how many of a token's experts the next token uses, and how many
any other token of the same span does. They are looked up among those of routers that are drawn with many skews and
correlations, once for all layers. The weights of the chosen experts then give the scale (docs/background/equations.md,
section 9).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dipsim.basics.arrays import Floats, Ints
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.workload.recipe import Router
from dipsim.workload.routing import Routing
from dipsim.workload.routing_synthetic import sample_logits, sample_noise
from dipsim.workload.trace import Trace

TOKENS, SPAN = 32, 256  # a fit needs so many tokens in a row, and looks no further
SKEWS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.4, 2.0, 3.0, 6.0)
CORRELATIONS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
DRAWS = 48  # of each correlation
FINER = 16  # steps that the search takes between two skews or correlations
LEAST = 1e-6  # of the largest weight; smaller ones count as this


class Use(NamedTuple):
    """How a layer uses its experts: the mean share of a token's experts that the next token uses (`again`), and that
    another token of the same span uses (`shared`), and the mean logarithm of the first weight over the last (`ratio`).
    """

    again: float
    shared: float
    ratio: float


def fit_routing(trace: Trace, progress: Progress = silent) -> tuple[Router, ...]:
    """The routers that resemble those of a trace of a mixture of experts, one for each layer that has a mixture.

    Tokens of prompts are left out. Raises InputError if too few tokens follow one by one, or one has no experts.
    """
    spans = decoded_spans(trace)
    mixture, layers = trace.shape.experts, trace.layers
    skews, correlations, table = drawn_uses(mixture.num_experts, mixture.num_experts_per_tok, len(spans[0]))
    rows = []
    for place, index in enumerate(layers):
        seen = recorded_use(trace.layer(index, trace.tokens), spans)
        off = (table[..., 0] - seen.again) ** 2 + (table[..., 1] - seen.shared) ** 2
        at = np.unravel_index(off.argmin(), off.shape)
        ratio = table[at][2]
        found = {
            "depth": place / max(1, len(layers) - 1),
            "skew": skews[at[0]],
            "correlation": correlations[at[1]],
            "scale": seen.ratio / ratio if seen.ratio > 0 and ratio > 0 else 1.0,
        }
        rows.append(Router(**{key: float(f"{value:.4g}") for key, value in found.items()}))
        progress("fitting layers", place + 1, len(layers))
    return tuple(rows)


def decoded_spans(trace: Trace) -> list[range]:
    """Spans of equal length, SPAN or what the longest stretch has, of tokens that were decoded one after the other.

    Raises InputError if they are shorter than TOKENS.
    """
    begins = {begin for begin, _ in trace.prompts}
    edges = {edge for prompt in trace.prompts for edge in prompt} | set(trace.sequence_starts)
    edges = {min(edge, trace.tokens) for edge in edges} | {trace.tokens}
    stretches = [pair for pair in pairwise(sorted(edges)) if pair[0] not in begins]
    length = min(SPAN, max((end - begin for begin, end in stretches), default=0))
    if length < TOKENS:
        raise InputError(
            f"{trace.path}: has {length} tokens decoded one by one; a fit needs {TOKENS} or more, record a longer one"
        )
    return [range(at, at + length) for begin, end in stretches for at in range(begin, end - length + 1, length)]


def recorded_use(routing: Routing, spans: list[range]) -> Use:
    """How recorded routing uses its experts in these spans. Its ratio is 0 where no weights were recorded.

    Raises InputError if the layer did not compute a token.
    """
    tokens = np.concatenate(spans)
    if not routing.routed[tokens].all():
        token = tokens[~routing.routed[tokens]][0]
        raise InputError(f"{routing.where}: layers.{routing.layer}: token {token}: has no experts; import it again")
    ids = routing.ids
    if ids is None:
        ids = _chosen(routing.logits, routing.k)
    uses = [used(ids[span], routing.experts) for span in spans]
    ratio = 0.0
    if routing.recorded_logits is not None or routing.recorded_weights is not None:
        weights = np.take_along_axis(routing.weights[tokens], ids[tokens], axis=1)
        ratio = -float(np.log(np.maximum(weights.min(axis=1) / weights.max(axis=1), LEAST)).mean())
    again, shared = np.mean(uses, axis=0)
    return Use(float(again), float(shared), ratio)


def used(ids: Ints, experts: int) -> tuple[float, float]:
    """`again` and `shared` of the chosen experts [n, k] of one span."""
    tokens, k = ids.shape
    mask = np.zeros((tokens, experts), dtype=bool)
    np.put_along_axis(mask, ids, True, axis=1)
    uses = mask.sum(axis=0)
    again = np.count_nonzero(mask[1:] & mask[:-1]) / (k * (tokens - 1))
    return again, float((uses * (uses - 1)).sum()) / (k * tokens * (tokens - 1))


def drawn_uses(experts: int, k: int, tokens: int) -> tuple[Floats, Floats, Floats]:
    """Skews [S], correlations [C], and the `Use` [S, C, 3] of routers drawn with them, at scale 1.

    The draws are the same at every call. Between SKEWS and CORRELATIONS it is linear.
    """
    table = np.zeros((len(SKEWS), len(CORRELATIONS), 3))
    for column, correlation in enumerate(CORRELATIONS):
        for seed in range(DRAWS):
            noise = sample_noise(tokens, np.random.default_rng((seed, 0)))
            flat, skewed = (
                sample_logits(
                    Router(depth=0, skew=skew, correlation=correlation, scale=1),
                    noise,
                    experts,
                    np.random.default_rng((seed, 1)),
                )
                for skew in (0, 1)
            )
            for line, skew in enumerate(SKEWS):
                logits = flat + skew * (skewed - flat)  # all draws of a seed are the same
                ids = _chosen(logits, k)
                values = np.take_along_axis(logits, ids, axis=1)
                ratio = (values.max(axis=1) - values.min(axis=1)).mean()
                table[line, column] += (*used(ids, experts), ratio)
    table /= DRAWS
    skews, table = _finer(np.array(SKEWS), table)
    correlations, table = _finer(np.array(CORRELATIONS), table.swapaxes(0, 1))
    return skews, correlations, table.swapaxes(0, 1)


def _chosen(logits: Floats, k: int) -> Ints:
    """The k experts of largest logit, [T, k], in no order."""
    return np.asarray(np.argpartition(-logits, k - 1, axis=1)[:, :k])


def _finer(at: Floats, values: Floats) -> tuple[Floats, Floats]:
    """FINER steps between places `at` [n] and the values there [n, ...], linearly."""
    steps = np.arange(FINER * (len(at) - 1) + 1) / FINER
    low = np.minimum(steps.astype(np.int64), len(at) - 2)
    share = steps - low
    between = share.reshape(-1, *[1] * (values.ndim - 1))
    return at[low] + share * (at[low + 1] - at[low]), values[low] + between * (values[low + 1] - values[low])
