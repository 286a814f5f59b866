"""Traces of requested levels: what is written is read, and what does not fit is named."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import SHAPE

from dipsim.basics.errors import InputError
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.workload import Trace
from dipsim.workload.recorded import metadata, write_requests
from dipsim.workload.trace import Header

HEADER = Header(model=SHAPE, sequence_starts=(0, 3), holds="requests", source={"policy": "mine"})


def layers(tokens=7, seed=0):
    random = np.random.default_rng(seed)
    sizes = {"gate": 24, "in": 16}
    return [
        {name: random.integers(0, 5, (tokens, size)).astype(np.uint8) for name, size in sizes.items()}
        for _ in range(SHAPE.num_hidden_layers)
    ]


def test_what_is_written_is_read(tmp_path):
    path, written = tmp_path / "requests.safetensors", layers()
    write_requests(path, HEADER, written)
    trace = Trace.open(path)
    assert (trace.tokens, trace.header) == (7, HEADER)
    for index, each in enumerate(written):
        for name, levels in each.items():
            assert (trace.layer(index).of(name, 4) == levels).all()
            assert (trace.layer(index, 4).of(name, 4) == levels[:4]).all()
    with pytest.raises(InputError, match="layer 1: the trace has requests of groups gate, in, none of down"):
        trace.layer(1).of("down", 4)
    with pytest.raises(InputError, match="layer 0: group gate: level 4 is above the highest, 2"):
        trace.layer(0).of("gate", 2)
    with pytest.raises(ValueError, match="read-only"):
        trace.layer(0).of("gate", 4)[0, 0] = 1


def broken(path, change):
    tensors = {
        f"layers.{i}.{name}.requested": levels for i, each in enumerate(layers()) for name, levels in each.items()
    }
    change(tensors)
    save_file(tensors, path, metadata(HEADER))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.1.in.requested"), "layers.1.in.requested: is missing; record the trace again"),
        (lambda t: t.update({"layers.1.in.requested": np.zeros((6, 16), np.uint8)}), r"has shape \[6, 16\]; \[7, 16\]"),
        (
            lambda t: t.update({"layers.0.gate.requested": np.zeros((7, 5), np.uint8)}),
            r"gate.requested: has shape \[7, 5\]",
        ),
        (
            lambda t: t.update({"layers.0.in.requested": np.zeros((7, 16), np.int16)}),
            r"must be U8 .*\(got I16 \[7, 16\]\)",
        ),
        (dict.clear, "layers.0: has no requested levels; record the trace again"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    broken(tmp_path / "bad.safetensors", change)
    with pytest.raises(InputError, match=message):
        Trace.open(tmp_path / "bad.safetensors")


def test_policies_that_choose_by_activations_say_so(tmp_path):
    path = tmp_path / "requests.safetensors"
    write_requests(path, HEADER, layers())
    trace = Trace.open(path)
    used = Setting(load_policy("dip", keep=0.5), SHAPE.static_bytes(7) + 0.5 * SHAPE.mlp_bytes)
    with pytest.raises(
        InputError, match=r"policy dip.*: chooses by activations, and the trace has requested levels only"
    ):
        plan(trace, [used])
    dense = Setting(load_policy("dense"), used.dram_bytes)
    assert plan(trace, [dense])[0].flash_static.sum() > 0
