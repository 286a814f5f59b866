"""A tiny model and its random activations, for tests of everything that does not need a real one."""

import numpy as np

from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Activations

SHAPE = ModelShape(
    name="tiny",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=32,
)


def activations(shape=SHAPE, tokens=12, seed=0):
    """The activations of every layer, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    sizes = (shape.hidden_size, shape.intermediate_size, shape.intermediate_size)
    return [
        Activations(*(rng.standard_t(4, (tokens, size)).astype(np.float32) for size in sizes))
        for _ in range(shape.num_hidden_layers)
    ]
