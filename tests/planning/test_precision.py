"""Plans of a policy whose columns have levels of precision: by explicit loops, and replayed from recorded requests."""

from dataclasses import replace

import numpy as np
import pytest
from oracles import flash
from tiny import SHAPE

from dipsim.basics.errors import InputError
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.calibrated import NESTED
from dipsim.sparsity.levels import Level, Levels, Units
from dipsim.sparsity.policy import Group, Policy
from dipsim.storage.records import bring
from dipsim.timing import engine
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.workload import Trace
from dipsim.workload.recorded import write_requests
from dipsim.workload.shape import BitWidths
from dipsim.workload.trace import Header

AXES = {"gate": ("gate_proj", "neuron"), "up": ("up_proj", "input"), "down": ("down_proj", "neuron")}


class Leveled(Policy):
    """Scores are squares; gate_proj by rows, up_proj by columns, down_proj by columns."""

    price: float = 0.01
    lowest: int = 1
    noted: float = 0.1

    def groups(self, _shape):
        levels = Levels(NESTED.each, self.noted)
        return [
            Group(name, (matrix,), axis, 0, price=self.price, levels=levels) for name, (matrix, axis) in AXES.items()
        ]

    def units(self, group, layer):
        random = np.random.default_rng([layer, len(group.name)])
        columns = SHAPE.axis_size(group.axis)
        errors = np.sort(random.exponential(1.0, (columns, 6)))[:, ::-1].copy()
        errors[:, -1] = 0
        return Units(errors, random.exponential(1.0, (4, columns)), np.array([0.4, 0.3, 0.2, 0.1]), self.lowest)

    def scores(self, group, acts):
        values = {"gate": acts.gate_proj, "up": acts.mlp_input, "down": acts.glu}[group.name]
        return values * values


def setting(policy, share=0.5, **options):
    size = SHAPE.static_bytes(12) + share * SHAPE.mlp_bytes
    return Setting(policy, size, **options)


def test_bits_are_those_of_the_codes(tiny_trace):
    """4 bits without their scales, as the trace has them, or 4.5 with them: an eighth more of every record."""
    trace, of = tiny_trace(), BitWidths
    own, more = plan(trace, [setting(Leveled(), bits=bits) for bits in (None, of(mlp=4.5, kv_cache=4))], layers=0)
    assert more.unit_bytes.tolist() == (1.125 * own.unit_bytes).tolist()
    with pytest.raises(
        InputError, match=r"bits: mlp: 3, and the codes of .* have 4, or 4.5 with their scales; use one"
    ):
        plan(trace, [setting(Leveled(), bits=of(mlp=3))])


def test_a_plan_by_explicit_loops(tiny_trace):
    """Every byte of every token: requests are by trying all levels, and DRAM reads what it has."""
    trace, policy = tiny_trace(), Leveled(price=0.02)
    (found,) = plan(trace, [setting(policy)])
    builder = PlanBuilder(SHAPE, setting(policy), 12, (0,))
    kinds = set()
    for layer in range(SHAPE.num_hidden_layers):
        acts = trace.layer(layer)
        first = found.step.index("whole") + layer * 5
        of_base = 0.0
        for group in builder.groups:
            where = layer * 5 + found.step.index(group.name)
            unit = SHAPE.unit_length(group.matrices[0], group.axis) / 2  # 4 bits
            resident, units = builder.precision.resident[group.name, layer], policy.units(group, layer)
            base = builder.precision.base[group.name, layer]
            assert (base == resident)[resident > 0].all()  # only bytes cost: streamed is only what must be there
            assert (base > 0).all()
            scores = policy.scores(group, acts)
            held = sum(NESTED.shares[level] * unit + 0.1 * (5 - level) for level in resident)
            assert found.peak_cache_bytes[where] == pytest.approx(held)
            of_base += held if group.name != "down" else 0
            for token in range(12):
                missed = refined = 0
                for column, low in enumerate(base):
                    steps = NESTED.steps[low] * unit
                    costs = [
                        scores[token, column] * units.errors[column, level] + 0.02 * steps[level] for level in range(6)
                    ]
                    level = int(np.argmin(costs))
                    kinds.add((int(low), level))
                    missed, refined = missed + steps[level], refined + (level > low)
                assert found.flash_misses[token, where] == pytest.approx(missed)
                assert found.read_bytes[token, where].sum() == pytest.approx(missed)
                assert 0 <= found.reads[token, where].sum() <= refined
                flops = 4 * unit * (refined + (np.count_nonzero(base) if group.name == "down" else 0))
                assert found.flops[token, where] == pytest.approx(flops)
                assert found.dram_hits[token, where] == pytest.approx(held if group.name == "down" else 0)
        assert found.dram_hits[:, first] == pytest.approx(of_base)
    assert len(kinds) > 6
    assert found.flash_gaps.sum() == 0


def test_the_budget_is_filled_and_stated(tiny_trace):
    trace = tiny_trace()
    for share in (0.4, 0.6, 0.8):
        (found,) = plan(trace, [setting(Leveled(), share)])
        room = share * SHAPE.mlp_bytes
        assert 0.98 * room < found.budget.cache_bytes <= room
        assert found.budget.cache_bytes == pytest.approx(found.peak_cache_bytes.sum())
        assert found.budget.used_bytes + found.budget.unused_bytes == pytest.approx(found.setting.dram_bytes)
        assert found.peak_dram_bytes == pytest.approx(found.budget.static_bytes + found.budget.cache_bytes)
    (everything,) = plan(trace, [setting(Leveled(), 1.0)])
    assert everything.flash_misses.sum() == 0


def test_a_plan_without_levels_above_is_read_whole_like_dense(tiny_trace):
    """Two levels, nothing and all, at a price of nothing: every byte of the MLP is read."""

    class Two(Leveled):
        def groups(self, _shape):
            two = Levels((Level(0), Level(4)))
            return [Group(name, (m,), axis, 0, price=0.0, levels=two) for name, (m, axis) in AXES.items()]

        def units(self, group, layer):
            whole = super().units(group, layer)
            return Units(whole.errors[:, [0, 5]], whole.scores, whole.weights)

    trace = tiny_trace()
    (found,) = plan(trace, [setting(Two(), 0.5)])
    assert (found.flash_misses + found.flash_static)[:, found.is_mlp].sum(axis=1) + found.dram_hits.sum(
        axis=1
    ) == pytest.approx(np.full(12, SHAPE.mlp_bytes))


def test_requests_replay_without_the_model(tiny_trace, tmp_path):
    """Recorded requests give the same plan, on Flash whose reads cost, too; the engine and the recurrence agree."""
    trace, policy = tiny_trace(starts=(0, 5)), Leveled()
    costly = flash(command=1e-8, bandwidth=1e9, latency=0, depth=32, overlap=1)
    device = Device.load("paper").model_copy(update={"flash": costly})
    used = [setting(policy, start="warm"), setting(policy, flash=costly), setting(policy, layout="popularity")]
    builder = PlanBuilder(SHAPE, used[0], 12, (0, 5))
    layers = []
    for layer in range(SHAPE.num_hidden_layers):
        acts = trace.layer(layer)
        layers.append({g.name: builder.precision.request(g, layer, policy.scores(g, acts)) for g in builder.groups})
    path = tmp_path / "requests.safetensors"
    write_requests(path, Header(model=SHAPE, sequence_starts=(0, 5), holds="requests"), layers)
    replayed = Trace.open(path)
    assert replayed.tokens == 12
    for found, expected in zip(plan(replayed, used), plan(trace, used), strict=True):
        for name, value in vars(expected).items():
            assert not isinstance(value, np.ndarray) or (getattr(found, name) == value).all(), name
        exact = engine.run(found, device, "pipelined").latency_s
        assert exact == pytest.approx(timeline(found, device, "pipelined").latency_s, rel=1e-12)
    (other,) = plan(replayed, [setting(policy, 0.7)])  # another DRAM: the same requests, more of which is there
    assert other.flash_bytes.sum() < plan(replayed, used)[2].flash_bytes.sum()


def test_reading_through_brings_levels_for_nothing(tiny_trace):
    trace, policy = tiny_trace(), Leveled(price=0.1)
    costly = flash(command=5e-9, bandwidth=1e9, latency=0, depth=32, overlap=1)
    plain, through = plan(trace, [setting(policy), setting(policy, flash=costly)])
    assert through.reads.sum() < plain.reads.sum()
    builder = PlanBuilder(SHAPE, setting(policy, flash=costly), 12, (0,))
    more = 0
    for caches, group in zip(builder.caches, builder.groups, strict=True):
        requested = builder.precision.request(group, 0, policy.scores(group, trace.layer(0)))
        found = builder.fetch_levels(caches, 0, requested)
        expected = bring(requested, builder.precision.records(group, 0), costly, found.reads.shape[1])
        assert (found.levels == expected.levels).all()
        assert (found.levels >= requested).all()
        more += np.count_nonzero(found.levels > requested)
    assert more > 0


def test_what_is_dear_to_read_by_itself_is_streamed(tiny_trace):
    """Every token reads the base in one read a group; where a read costs nothing besides its bytes there is none."""
    trace = tiny_trace()
    dear = flash(command=1e-6, bandwidth=1e9, latency=0, depth=32, overlap=1)
    free, (found,) = plan(trace, [setting(Leveled(lowest=0))])[0], plan(trace, [setting(Leveled(lowest=0), flash=dear)])
    assert free.flash_static.sum() == 0
    builder = PlanBuilder(SHAPE, setting(Leveled(lowest=0), flash=dear), 12, (0,))
    for group in builder.groups:
        key = group.name, 1
        resident, base = builder.precision.resident[key], builder.precision.base[key]
        unit = SHAPE.unit_length(group.matrices[0], group.axis) / 2
        streamed = sum(NESTED.steps[low, high] * unit for low, high in zip(resident, base, strict=True))
        assert streamed > 0
        assert (base >= resident).all()
        assert builder.precision.streamed_bytes(group, 1) == pytest.approx(streamed)
        if group.name == "down":
            where = 5 + found.step.index("down")
            assert found.flash_static[:, where] == pytest.approx(np.full(12, streamed))
            assert found.static_reads[where] == 1
    assert found.static_reads[5 + found.step.index("whole")] == 2
    assert found.flash_misses.sum() < 0.2 * found.flash_static.sum()


def test_popular_records_lie_together():
    precision = PlanBuilder(SHAPE, setting(Leveled(), layout="popularity"), 12, (0,)).precision
    units, group = Leveled().units(precision.groups[0], 0), precision.groups[0]
    base, records = precision.base["gate", 0], precision.records(group, 0)
    gains = []
    for unit in records.order:
        read = NESTED.steps[base[unit], 5] * 8
        saved = units.scores[:, unit] * units.errors[unit, base[unit]] - 0.01 * read
        gains.append(units.weights @ np.maximum(saved, 0) / read)
    assert gains == sorted(gains, reverse=True)
    assert set(records.order.tolist()) == set(np.flatnonzero(base < 5).tolist())


def groups_of(*groups):
    """The method of a policy with these groups."""
    return lambda _self, _shape: groups


GATE = Group("g", ("gate_proj",), "neuron", 3)
FLAT = Levels((Level(0), Level(0)))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"share": 0.001}, "leave .* for the MLP; at least 64 B are needed, give more"),
        ({}, {"layout": "rows"}, "layout: rows: .*use columns or popularity"),
        (
            {"groups": groups_of(*Leveled().groups(SHAPE)[1:], GATE)},
            {},
            "group up has levels, and others have none; give levels to all or to none",
        ),
        (
            {"groups": groups_of(replace(GATE, levels=NESTED))},
            {},
            "group g: levels: are chosen by price among columns",
        ),
        (
            {"groups": groups_of(replace(GATE, price=1.0, levels=FLAT))},
            {},
            "group g: levels: each must take more than the one below",
        ),
        (
            {"units": lambda *_: Units(np.ones((3, 6)), np.ones((2, 3)), np.ones(2))},
            {},
            r"units of group gate: errors and scores must be finite, \[24, 6\] and \[2, 24\] \(got \[3, 6\]",
        ),
        ({"units": Policy.units}, {}, "units failed: NotImplementedError"),
    ],
)
def test_what_cannot_be(changes, options, message):
    policy = type("Broken", (Leveled,), {"__module__": __name__, **changes})()
    with pytest.raises(InputError, match=message):
        PlanBuilder(SHAPE, setting(policy, **options), 12, (0,))
