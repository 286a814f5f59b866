"""A tiny mixture of experts and its random routing, for tests of everything that does not need a real one."""

import numpy as np

from dipsim.workload import Trace
from dipsim.workload.recorded import write_routing
from dipsim.workload.routing import Routing
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Header

SIZES = {
    "name": "tiny-mixture",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
SHAPE = ModelShape(**SIZES, mixture=MIXTURE)  # an expert has 3 * 16 * 8 / 2 = 192 bytes


def shape(**mixture):
    """The tiny model with other facts about its mixture."""
    return ModelShape(**SIZES, mixture=MIXTURE | mixture)


def routing(of=SHAPE, tokens=12, seed=0, kind="ids"):
    """The routing of every layer with a mixture: ids with weights, ids alone, or logits."""
    rng = np.random.default_rng(seed)
    experts, k, found = of.experts.num_experts, of.experts.num_experts_per_tok, []
    for _ in np.flatnonzero(of.is_mixture):
        logits = (rng.standard_normal((tokens, experts)) + 1.5 * rng.standard_normal(experts)).astype(np.float32)
        ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        chosen = np.exp(np.take_along_axis(logits, ids, axis=1))
        weights = chosen / chosen.sum(axis=1, keepdims=True)
        given = {"logits": {"recorded_logits": logits}, "bare": {"ids": ids}}
        found.append(Routing(experts, k, **given.get(kind, {"ids": ids, "recorded_weights": weights})))
    return found


def write(path, of=SHAPE, layers=None, starts=(0,), prompts=(), **options):
    """Write a trace and open it; `layers` are its routing, by default random."""
    layers = routing(of, **options) if layers is None else layers
    write_routing(path, Header(model=of, sequence_starts=starts, prompts=prompts), layers)
    return Trace.open(path)


def chosen(*tokens, experts=8):
    """One layer's routing from the experts of each token, the most wanted first."""
    ids = np.array(tokens)
    return Routing(experts, ids.shape[1], ids=ids)
