"""Guesses what the next layer will want from what this layer sees: its input changes little from layer to layer."""

from typing import Any

from dipsim import InputError, Known, Prefetcher


class NextLayer(Prefetcher):
    """Inputs by |x| of this layer; neurons and experts by what the next layer's own gate makes of this layer's input.

    The latter is recorded by `python -m dipsim record --next-layer`.
    """

    def scores(self, known: Known) -> Any:
        if known.wraps:
            return None
        if known.group.axis == "input":
            return abs(known.acts.mlp_input)
        if known.acts.next_layer is None:
            raise InputError(
                "prefetch: next-layer: the trace does not say what the next layer's gate makes of a layer's input; "
                "record it with --next-layer, or ask an oracle how good a guess would have to be"
            )
        if known.ahead > 1:
            return None
        scores = known.acts.next_layer.reshape(-1)
        return scores - scores.min() + 1
