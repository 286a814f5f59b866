"""What must hold whatever the numbers are: across DRAM sizes, orders of layers, and processes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from tiny import SHAPE, activations

from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.workload import Trace
from dipsim.workload.recorded import write_trace
from dipsim.workload.trace import Header

STATIC = SHAPE.static_bytes(12)
FIELDS = ("dram_static", "flash_static", "dram_hits", "flash_misses", "reads", "read_bytes", "flops")


@pytest.mark.parametrize("name", ["dense", "magnitude", "gate", "up", "dip"])
@pytest.mark.parametrize("eviction", ["lru", "lfu", "belady", "optimal"])
def test_more_dram_never_means_fewer_hits_for_a_cache_blind_policy(tiny_trace, name, eviction):
    sizes = STATIC + np.linspace(0, 1, 15) * SHAPE.mlp_bytes
    plans = plan(tiny_trace(), [Setting(load_policy(name), size, eviction) for size in sizes])
    hits = np.array([p.dram_bytes[:, p.is_mlp].sum() for p in plans])
    assert (np.diff(hits) >= 0).all()
    assert hits[-1] > hits[0]


@pytest.mark.parametrize("name", ["dip", "dip-ca", "gate"])
def test_permuting_the_layers_permutes_the_plan(tmp_path, name):
    layers = activations()
    plans = []
    for order in ((0, 1), (1, 0)):
        path = tmp_path / f"{order[0]}.safetensors"
        write_trace(path, Header(model=SHAPE), [layers[index] for index in order], dtype="float32")
        plans.append(plan(Trace.open(path), [Setting(load_policy(name), STATIC + SHAPE.mlp_bytes / 2, "lru")])[0])
    straight, swapped = plans
    per_layer = (len(straight.step) - 1) // 2
    order = np.r_[per_layer : 2 * per_layer, 0:per_layer, 2 * per_layer]
    for field in FIELDS:
        array = getattr(straight, field)
        assert (array[:, order] == getattr(swapped, field)).all()


@pytest.mark.slow
def test_two_processes_with_different_hash_seeds_write_the_same_bytes(tiny_trace, tmp_path, checkout):
    experiment = {"trace": str(tiny_trace().path), "dram": {"mlp_fraction": 0.5}, "timing": "pipelined"}
    experiment["policies"] = ["dense", "dip", {"dip-ca": {"gamma": 0.3}}]
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(experiment))
    outputs = []
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "dipsim", "run", tmp_path / "exp.yaml", "--out", tmp_path / seed, "--timeline"]
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(checkout)}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        outputs.append({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()})
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 16
