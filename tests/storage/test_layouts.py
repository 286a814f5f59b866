"""Layouts: the order of the columns by hand, what a learned file refuses, and what `auto` divides."""

from dataclasses import replace

import numpy as np
import pytest
from oracles import flash
from safetensors.numpy import save_file
from tiny import SHAPE

from dipsim.basics.errors import InputError
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.learn import learn_layout
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.storage.layout import LAYOUTS
from dipsim.storage.layouts import load_layout
from dipsim.storage.layouts.auto import PARTS
from dipsim.storage.learned import SUFFIX, Learned
from dipsim.storage.placement import Site, fetch
from dipsim.storage.worth import cost_of_leaving

MASKS = np.array([[0, 1, 1, 0, 0, 1], [0, 1, 0, 1, 0, 1], [1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 0, 0]], dtype=bool)
COSTLY = flash(command=1e-5, bandwidth=1e9, latency=0, depth=32, overlap=1)
STATIC = SHAPE.static_bytes(12)


def place(name, hot, masks=MASKS, matrices=2, rows=5):
    site = Site("g", matrices, masks.shape[1], 100.0, matrices * rows, hot, masks)
    (found,) = load_layout(name).place(0, [site], None)
    return found


@pytest.mark.parametrize(
    ("name", "order", "pieces", "whole"),
    [
        ("columns", [0, 1, 2, 3, 4, 5], 2, 2),
        ("rows", [0, 1, 2, 3, 4, 5], 10, 2),
        ("bundled", [0, 1, 2, 3, 4, 5], 1, 1),
        ("popularity", [1, 5, 2, 3, 0, 4], 1, 1),  # used 3, 3, 2, 2, 1 and 0 times; the lowest index first
        ("hot-apart", [1, 5, 0, 2, 3, 4], 1, 1),
        ("coactivation", [1, 5, 2, 4, 0, 3], 1, 1),  # after 2, at distance 2, comes 4; then 0 at 1, then 3 at 1
        ("auto", [1, 5, 2, 3, 0, 4], 1, 1),  # without a device there is nothing to choose
    ],
)
def test_where_columns_lie(name, order, pieces, whole):
    found = place(name, hot=2)
    assert found.order.tolist() == order
    assert (found.pieces, found.whole_pieces, found.unit_bytes) == (pieces, whole, 200.0)
    assert np.flatnonzero(found.resident).tolist() == sorted(order[:2])


def test_all_layouts_are_tried_above_and_say_what_they_need():
    assert sorted(LAYOUTS) == ["auto", "bundled", "coactivation", "columns", "hot-apart", "popularity", "rows"]
    assert {name for name, layout in LAYOUTS.items() if layout.pins} == {
        name for name, layout in LAYOUTS.items() if layout.learns
    }


def test_auto_gives_the_dram_to_the_group_that_reads_most_with_it():
    """Group a wants the same columns always, so pinning them saves every read; group b wants all, in one read."""
    wanted = np.zeros((8, 24), dtype=bool)
    wanted[:, ::2] = True
    everything = np.ones((8, 24), dtype=bool)
    sites = [Site(name, 1, 24, 5e4, 1, 6, masks) for name, masks in (("a", wanted), ("b", everything))]
    first, second = load_layout("auto").place(0, sites, COSTLY)
    assert (first.hot, second.hot) == (12, 0)
    assert sorted(first.order[:12].tolist()) == list(range(0, 24, 2))
    assert PARTS % 12 == 0, "the twelfth of the DRAM that one column takes is one of the parts"


def test_auto_asks_a_cache_aware_policy_what_it_wants_of_what_is_pinned():
    asked = []

    def wants(tokens, resident):
        asked.append(int(resident.sum()))
        return np.ones((8, 6), dtype=bool)[tokens]

    site = Site("g", 1, 6, 1e4, 1, 3, np.ones((8, 6), dtype=bool), wants)
    load_layout("auto").place(0, [site], COSTLY)
    assert max(asked) == 3
    assert min(asked) == 0


def test_a_learned_layout_pins_what_saves_most_a_byte_over_all_layers(tiny_trace, tmp_path):
    trace, path, dip = tiny_trace(tokens=20), tmp_path / "x.layout.safetensors", load_policy("dip", keep=0.6)
    told = learn_layout(trace, dip, "popularity", path, flash=COSTLY, tokens=8, pinned=0.4)
    learned = load_layout(str(path))
    assert (learned.origin.tokens, learned.origin.layout, told.tokens) == (8, "popularity", 12)
    dram = SHAPE.static_bytes(20) + 0.4 * SHAPE.mlp_bytes
    making = PlanBuilder(SHAPE, Setting(dip, dram, "pinned", layout=str(path), flash=COSTLY), 20, (0,))
    unit = {"input": 24.0, "neuron": 8.0}  # bytes of a column
    pinned = {name: count * unit[name.split(".")[2]] for name, count in learned.origin.pinned.items()}
    assert 0.4 * SHAPE.mlp_bytes - 24 < sum(pinned.values()) <= 0.4 * SHAPE.mlp_bytes
    masks = {}
    for layer, caches in ((layer, caches) for layer in range(2) for caches in making.caches):
        acts, k = trace.layer(layer), caches.group.k
        values = abs(acts.mlp_input if caches.group.axis == "input" else acts.glu)
        masks[f"layers.{layer}.{caches.group.name}"] = np.stack([row >= np.sort(row)[-k] for row in values])
    reads = size = 0.0
    for name, order in learned.orders.items():
        placed = making.placement(making.caches["neuron" in name], int(name.split(".")[1]))
        assert placed.order.tolist() == order.tolist()
        assert placed.hot == learned.origin.pinned[name]
        found = fetch(masks[name][8:] & ~placed.resident, placed, COSTLY)
        reads, size = reads + found.reads.sum() / 12, size + found.read_bytes.sum() / 12
    assert (told.reads, told.read_bytes) == pytest.approx((reads, size))


def test_what_leaving_a_column_out_of_dram_costs():
    """A run costs 11 kB and 1 kB for each further column; what is not wanted costs its score."""
    (place,) = load_layout("bundled").place(0, [Site("g", 1, 6, 1000.0, 1, 0)], COSTLY)
    wanted = np.array([[0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0]], dtype=bool)
    assert cost_of_leaving(wanted, None, 1.0, place, COSTLY) == pytest.approx([0, 3000, 8500, 0, 5500, 0])
    scores = np.full((2, 6), 7.0)
    found = cost_of_leaving(wanted, scores, 0.1, place, COSTLY)
    assert found == pytest.approx([7, 303.5, 850, 7, 553.5, 7])
    assert cost_of_leaving(wanted, None, 1.0, place, None) == pytest.approx([0, 500, 1000, 0, 500, 0])


def test_a_layout_that_pins_more_than_fits_is_refused(tiny_trace, tmp_path):
    trace, path, dip = tiny_trace(tokens=20), tmp_path / "x.layout.safetensors", load_policy("dip", keep=0.6)
    learn_layout(trace, dip, "hot-apart", path, tokens=8, pinned=0.5)
    dram = SHAPE.static_bytes(20) + 0.3 * SHAPE.mlp_bytes
    with pytest.raises(InputError, match=r"pins 560 B, and the DRAM has 346 B for it; learn it with --pinned 0\.3"):
        plan(trace, [Setting(dip, dram, "pinned", layout=str(path), start="warm")])
    more = SHAPE.static_bytes(20) + 0.7 * SHAPE.mlp_bytes
    with pytest.raises(InputError, match=r"pins 560 B, and the DRAM has 806 B for it; learn it with --pinned 0\.7"):
        plan(trace, [Setting(dip, more, "pinned", layout=str(path), start="warm")])
    assert plan(trace, [Setting(dip, dram, "lfu", layout=str(path), start="warm")])[0].tokens == 10


def only_inputs(path):
    """A copy of a learned layout without the orders of neurons."""
    learned = load_layout(str(path))
    kept = {name: order for name, order in learned.orders.items() if "input" in name}
    pinned = {name: learned.origin.pinned[name] for name in kept}
    copy = path.with_name(f"inputs{SUFFIX}")
    Learned(copy, learned.origin.model_copy(update={"pinned": pinned}), kept).write()
    return copy


def test_matrices_read_whole_take_their_dram_first(tiny_trace, tmp_path):
    trace, path, policy = tiny_trace(tokens=20), tmp_path / f"x{SUFFIX}", load_policy("magnitude", fraction=0.5)
    learn_layout(trace, policy, "popularity", path, tokens=8, pinned=0.8)
    dram = SHAPE.static_bytes(20) + 0.8 * SHAPE.mlp_bytes
    setting = Setting(policy, dram, "pinned", layout=str(path), start="warm")
    (made,) = plan(trace, [setting])
    assert made.peak_cache_bytes.sum() == pytest.approx(0.8 * SHAPE.mlp_bytes - 2 / 3 * SHAPE.mlp_bytes, abs=16)


def test_a_layout_learned_from_what_is_measured_or_from_another_model_is_refused(tiny_trace, tmp_path):
    trace, path, dip = tiny_trace(tokens=20), tmp_path / "x.layout.safetensors", load_policy("dip", keep=0.6)
    learn_layout(trace, dip, "hot-apart", path, tokens=8)
    dram = SHAPE.static_bytes(20) + 0.5 * SHAPE.mlp_bytes
    setting = Setting(dip, dram, "pinned", layout=str(path), start="warm")  # 10 tokens warm up
    assert plan(trace, [setting])[0].tokens == 10
    with pytest.raises(
        InputError, match=r"was learned from the first 8 tokens of the trace that is measured from token 0"
    ):
        plan(trace, [Setting(dip, dram, "pinned", layout=str(path))])
    other = tiny_trace(SHAPE.model_copy(update={"num_hidden_layers": 3, "name": "larger"}), name="other")
    with pytest.raises(InputError, match=r"was learned from a trace of tiny, and larger is measured"):
        plan(other, [Setting(dip, 3000.0, "pinned", layout=str(path))])
    with pytest.raises(InputError, match=r"has no order of 24 columns for group neuron .*it knows input"):
        plan(
            tiny_trace(tokens=20),
            [replace(setting, policy=load_policy("gate"), layout=str(only_inputs(path)))],
            layers=0,
        )


def test_a_calibration_trace_of_another_model_is_refused(tiny_trace):
    trace = tiny_trace()
    other = tiny_trace(SHAPE.model_copy(update={"hidden_size": 8, "name": "smaller"}), name="other")
    setting = Setting(load_policy("dip"), 3000.0, "pinned", layout="popularity", calibration=str(other.path))
    with pytest.raises(InputError, match="calibration: other is a trace of smaller, and tiny is measured"):
        plan(trace, [setting])
    with pytest.raises(InputError, match="calibration: tiny is the trace that is measured; use one of other text"):
        plan(trace, [Setting(load_policy("dip"), 3000.0, "pinned", layout="auto", calibration=str(trace.path))])
    with pytest.raises(InputError, match="layout: popularity is learned from tokens that are not counted"):
        plan(trace, [Setting(load_policy("dip"), 3000.0, "pinned", layout="popularity", start="cold")])


@pytest.mark.parametrize(
    ("tensors", "metadata", "complaint"),
    [
        ({"layers.0.input": np.array([0, 1, 1])}, None, r"layers\.0\.input: is not a permutation"),
        ({"layers.0.input": np.array([0.0, 1.0])}, None, r"layers\.0\.input: is not a permutation"),
        ({"layers.0.input": np.array([0, 1])}, {}, "format|is required"),
        ({"layers.0.input": np.array([0, 1])}, {"origin": "{"}, "origin: is not JSON"),
    ],
)
def test_a_file_that_is_no_layout_is_refused(tiny_trace, tmp_path, tensors, metadata, complaint):
    path = tmp_path / "x.layout.safetensors"
    learn_layout(tiny_trace(tokens=20), load_policy("dip"), "popularity", path)
    save_file(
        tensors, path, {"origin": load_layout(str(path)).origin.model_dump_json()} if metadata is None else metadata
    )
    with pytest.raises(InputError, match=complaint) as error:
        load_layout(str(path))
    assert "\n" not in str(error.value)


def test_what_cannot_be_learned(tiny_trace, tmp_path):
    out = tmp_path / "x.layout.safetensors"
    for policy, layout, tokens, complaint in (
        ("dip", "bundled", 4, "bundled has nothing to learn"),
        ("dense", "popularity", 4, "reads every column"),
        ("dip", "popularity", 12, "leave some"),
        ("dip", "nope", 4, "'nope' is not one of auto, bundled"),
        ("dip", "auto", 4, "auto has nothing to learn"),
    ):
        with pytest.raises(InputError, match=complaint):
            learn_layout(tiny_trace(), load_policy(policy), layout, out, tokens=tokens)
    assert not out.exists()
