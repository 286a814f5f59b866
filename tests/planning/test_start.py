"""Where the clock starts: what came before is not counted, and nothing after it is looked at."""

import numpy as np
import pytest
from oracles import flash
from tiny import SHAPE

from dipsim.basics.errors import InputError
from dipsim.memory.cache import find_residents
from dipsim.planning import fetch_plan as plans
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import Setting, warm_up_tokens
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.storage.placement import fetch
from dipsim.timing.device import Device
from dipsim.timing.service import service_times

FIELDS = ("dram_static", "flash_static", "dram_hits", "flash_misses", "flash_gaps", "reads", "read_bytes", "flops")
COSTLY = flash(command=1e-7, bandwidth=1e9, latency=0, depth=32, overlap=1)  # a command costs 100 bytes
DRAM = SHAPE.static_bytes(20) + 0.5 * SHAPE.mlp_bytes


def make(trace, name="dip-ca", eviction="lfu", tokens=None, dram=DRAM, **options):
    return plan(trace, [Setting(load_policy(name), dram, eviction, **options)], tokens)[0]


def test_half_of_a_short_sequence_warms_up_and_64_tokens_of_a_long_one():
    assert [warm_up_tokens("warm", length) for length in (1, 2, 7, 128, 129, 5000)] == [0, 1, 3, 64, 64, 64]
    assert warm_up_tokens("cold", 500) == warm_up_tokens("filled", 500) == 0


@pytest.mark.parametrize("eviction", ["lru", "lfu", "none"])
@pytest.mark.parametrize("name", ["dip", "dip-ca", "magnitude", "dense"])
def test_a_warm_start_is_a_cold_one_without_its_first_tokens(tiny_trace, name, eviction):
    trace = tiny_trace(tokens=20, starts=(0, 13))
    cold, warm = make(trace, name, eviction), make(trace, name, eviction, start="warm")
    kept = [*range(6, 13), *range(13 + 3, 20)]
    for field in FIELDS:
        assert (getattr(warm, field) == getattr(cold, field)[kept]).all(), field
    assert (warm.tokens, warm.warm_up, warm.sequence_starts) == (11, 6, (0, 7))
    assert (cold.tokens, cold.warm_up, cold.sequence_starts) == (20, 0, (0, 13))


def test_warming_up_is_part_of_the_prompt(tiny_trace):
    trace = tiny_trace(tokens=20)
    device = Device.load("paper").replace(**{"compute.throughput": "1 GFLOP/s"})
    warm = service_times(make(trace, start="warm", prompt=3), device).prefill
    cold = service_times(make(trace, prompt=3 + 10, dram=DRAM + SHAPE.kv_cache_bytes(10)), device).prefill
    assert warm[2] == pytest.approx(cold[2])


@pytest.mark.parametrize("layout", ["popularity", "coactivation", "hot-apart", "auto"])
def test_what_is_learned_does_not_know_later_tokens(tiny_trace, layout, monkeypatch):
    monkeypatch.setattr(plans, "WARM_UP", 16)
    trace = tiny_trace(tokens=60)
    short, long = (
        make(
            trace, eviction="pinned", layout=layout, start="warm", flash=COSTLY, tokens=tokens,
            dram=SHAPE.static_bytes(tokens) + 0.5 * SHAPE.mlp_bytes,
        )
        for tokens in (40, 60)
    )  # fmt: skip
    assert (short.warm_up, short.tokens, long.tokens) == (16, 24, 44)
    for field in ("dram_hits", "flash_misses", "flash_gaps", "reads"):
        assert (getattr(long, field)[:24] == getattr(short, field)).all(), field


def test_a_filled_cache_holds_the_lowest_columns_and_no_history(tiny_trace):
    trace = tiny_trace(tokens=20, starts=(0, 13))
    filled = make(trace, "dip", "lru", start="filled")
    at, capacity = filled.step.index("neuron"), filled.budget.capacities[1]
    masks = np.stack([row >= np.sort(row)[-filled.groups[1].k] for row in abs(trace.layer(0).glu)])
    for token in (0, 13):
        assert filled.dram_hits[token, at] == masks[token, :capacity].sum() * SHAPE.hidden_size / 2
    lowest = np.arange(24) < capacity
    residents = find_residents(masks, capacity, "lru", (0, 13), lowest)
    assert filled.dram_hits[:, at].tolist() == ((masks & residents).sum(axis=1) * SHAPE.hidden_size / 2).tolist()
    assert filled.peak_dram_bytes == pytest.approx(filled.budget.used_bytes)
    with pytest.raises(InputError, match="start: filled: the eviction pinned has its own columns"):
        make(trace, "dip", "pinned", start="filled")


def test_pinned_columns_are_those_that_lie_first_and_never_change(tiny_trace):
    trace = tiny_trace(tokens=20)
    pinned = make(trace, "dip", "pinned")
    at, capacity = pinned.step.index("neuron"), pinned.budget.capacities[1]
    masks = np.stack([row >= np.sort(row)[-pinned.groups[1].k] for row in abs(trace.layer(0).glu)])
    assert pinned.dram_hits[:, at].tolist() == (masks[:, :capacity].sum(axis=1) * SHAPE.hidden_size / 2).tolist()
    assert pinned.peak_cache_bytes[at] == capacity * SHAPE.hidden_size / 2


@pytest.mark.parametrize("eviction", ["lfu", "pinned"])
def test_what_is_read_through_is_used_by_a_free_policy_only(tiny_trace, eviction):
    trace = tiny_trace(tokens=20)
    (thrown, free) = (
        plan(trace, [Setting(load_policy("dip", keep=0.6, free=free), DRAM, eviction, flash=COSTLY)])[0]
        for free in (False, True)
    )
    assert (thrown.reads == free.reads).all(), "what is read is the same"
    assert (free.flash_misses + free.flash_gaps == thrown.flash_misses + thrown.flash_gaps).all()
    assert (free.flash_gaps.sum() == 0) == (eviction == "pinned"), "gaps in a cache that changes hold residents"
    assert thrown.flash_gaps.sum() > 0
    at, group = free.step.index("neuron"), free.groups[1]
    masks = np.stack([row >= np.sort(row)[-group.k] for row in abs(trace.layer(0).glu)])
    capacity = free.budget.capacities[1]
    lowest = np.arange(24) < capacity if eviction == "pinned" else None
    residents = find_residents(masks, capacity, eviction, (0,), lowest)
    assert free.dram_hits[:, at].tolist() == (residents.sum(axis=1) * 8.0).tolist(), "every resident column is used"
    making = PlanBuilder(SHAPE, free.setting, 20, (0,))
    read = fetch(masks & ~residents, making.placement(making.caches[1], 0), COSTLY)
    assert free.flash_misses[:, at].tolist() == ((read.masks & ~residents).sum(axis=1) * 8.0).tolist()
    assert free.flops[:, at].tolist() == (2.0 * 16 * (residents | read.masks).sum(axis=1)).tolist()


def test_a_price_needs_a_fixed_set_and_must_be_a_number(tiny_trace, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dipsim import Group, Policy\nclass Mine(Policy):\n price: float = 0.1\n"
        " def groups(self, shape): return [Group('neuron', ('down_proj',), 'neuron', 0, price=self.price)]\n"
        " def scores(self, group, acts): return abs(acts.glu)\n"
    )
    trace = tiny_trace()
    with pytest.raises(InputError, match="eviction: lfu: group neuron of mine chooses by what reading costs"):
        plan(trace, [Setting(load_policy(plugin), DRAM, "lfu")])
    with pytest.raises(InputError, match="price must be a score per byte, 0 or more"):
        plan(trace, [Setting(load_policy(plugin, price=-1), DRAM, "pinned")])
    aware = tmp_path / "aware.py"
    aware.write_text(plugin.read_text() + " def rerank(self, scores, resident): return scores\n")
    with pytest.raises(InputError, match="a price chooses by itself; leave out threshold, rerank and select"):
        plan(trace, [Setting(load_policy(aware), DRAM, "pinned")])
    (free,) = plan(trace, [Setting(load_policy(plugin, price=0), DRAM, "pinned")])
    assert free.flash_misses[:, free.step.index("neuron")].sum() > 0
    cheap, dear = (plan(trace, [Setting(load_policy(plugin, price=p), 3000.0, "none")])[0] for p in (0.05, 0.5))
    assert cheap.flash_misses.sum() > dear.flash_misses.sum()
