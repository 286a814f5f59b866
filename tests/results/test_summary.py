"""Figures of a run's summary and tables, worked out on paper in `tests/timing/test_by_hand.py`."""

import numpy as np
import pytest
from hand import HAND, hand_trace

from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.results.result import Result
from dipsim.sparsity.plugins import load_policy
from dipsim.timing.recurrence import timeline

LATENCY = [120, 119.2, 149.2, 120, 142.8]  # us


@pytest.fixture
def result(tmp_path):
    setting = Setting(load_policy("magnitude", fraction=0.375), 352.0, "lru")
    (fetch_plan,) = plan(hand_trace(tmp_path), [setting])
    return Result(fetch_plan, HAND, timeline(fetch_plan, HAND, "serial"))


def test_percentiles_lie_between_the_slowest_tokens(result):
    found = {name: value * 1e6 for name, value in result.summary()["latency_s"].items()}
    expected = {"mean": 651.2 / 5, "p50": 120, "p95": 142.8 + 0.8 * 6.4, "p99": 142.8 + 0.96 * 6.4}
    assert found == pytest.approx(expected)


def test_each_resource_by_its_name(result):
    found = result.summary()
    busy = {"flash": 184e-6, "dram": 150.4e-6, "compute": 316.8e-6}
    assert found["busy_s"] == pytest.approx(busy)
    assert found["utilisation"] == pytest.approx({name: seconds / 651.2e-6 for name, seconds in busy.items()})
    assert found["parts_s"] == pytest.approx({name: seconds / 5 for name, seconds in (busy | {"wait": 0}).items()})
    assert found["peak_bandwidth_bytes_per_s"] == {"flash": 1e6, "dram": 1e7}
    assert found["bandwidth_bytes_per_s"] == pytest.approx({"flash": 44 / 184e-6, "dram": 1e7})


def test_bytes_and_shares(result):
    found = result.summary()
    assert (found["tokens"], found["sequences"], found["warm_up_tokens"]) == (5, 2, 0)
    assert found["hit_rate"] == pytest.approx(336 / 380)
    by_token = np.array([[0, 3], [2, 1], [1, 2], [0, 3], [1, 2]])  # columns found and missed in each layer
    assert found["hit_rate_mean_of_matrices"] == pytest.approx((2 + (by_token[:, 0] / 3).mean()) / 3)
    assert found["dram_budget"]["capacity_columns"] == {"neuron": 4}
    assert found["energy_j_per_token"] == pytest.approx((2 * 44 + 1504 + 3 * 3168) / 5 * 1e-9)
    tokens, layers = result.tokens(), result.layers()
    assert tokens["sequence"].tolist() == [0, 0, 0, 1, 1]
    assert (tokens["latency_s"] * 1e6).tolist() == pytest.approx(LATENCY)
    assert tokens["flash_bytes"].tolist() == [12, 4, 8, 12, 8]
    assert tokens["flash_reads"].tolist() == [2, 2, 4, 2, 4]
    assert tokens["hit_rate"].tolist() == pytest.approx([(64 + 4 * hits) / 76 for hits in by_token[:, 0]])
    assert layers["mlp_flash_bytes_per_token"].tolist() == [4.4, 4.4]
    assert layers["hit_rate"].tolist() == pytest.approx([336 / 380] * 2)
