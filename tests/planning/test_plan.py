import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import SHAPE

from dipsim.basics.errors import InputError
from dipsim.memory.budget import allocate
from dipsim.memory.stack_distance import hit_curve
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.masks import LayerScores
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.sparsity.ranking import top_k
from dipsim.sparsity.selection import checked_groups
from dipsim.storage.runs import runs

STATIC = SHAPE.static_bytes(12)


def make(trace, name, dram=STATIC, eviction="lru", tokens=None, prompt=0, stream_static=False, **parameters):
    return plan(trace, [Setting(load_policy(name, **parameters), dram, eviction, prompt, stream_static)], tokens)[0]


def mlp_bytes_read(fetch_plan):
    mlp = fetch_plan.is_mlp
    return (fetch_plan.dram_bytes + fetch_plan.flash_bytes)[:, mlp].sum(axis=1)


@pytest.mark.parametrize("name", ["dense", "magnitude", "gate", "up", "dip", "dip-ca"])
@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_hits_and_misses_are_the_mask(tiny_trace, name, share):
    fetch_plan = make(tiny_trace(), name, STATIC + share * SHAPE.mlp_bytes)
    groups = checked_groups(load_policy(name), SHAPE)
    per_layer = sum(len(g.matrices) * g.k / SHAPE.axis_size(g.axis) for g in groups)
    whole = 3 - sum(len(g.matrices) for g in groups)
    expected = (whole + per_layer) * SHAPE.mlp_matrix_bytes * SHAPE.num_hidden_layers
    assert mlp_bytes_read(fetch_plan) == pytest.approx(np.full(12, expected))
    assert fetch_plan.read_bytes.sum(axis=2) == pytest.approx(fetch_plan.flash_misses)
    assert fetch_plan.budget.used_bytes <= fetch_plan.budget.total_bytes


def test_nothing_cached_means_everything_from_flash_and_all_cached_means_only_first_uses(tiny_trace):
    trace = tiny_trace()
    cold = make(trace, "dip", STATIC)
    assert cold.dram_hits.sum() == 0
    warm = make(trace, "dip", STATIC + SHAPE.mlp_bytes)
    groups = checked_groups(load_policy("dip"), SHAPE)
    assert warm.budget.capacities == tuple(SHAPE.axis_size(g.axis) for g in groups)
    acts = trace.layer(0)
    used = np.count_nonzero(top_k(np.abs(acts.mlp_input), groups[0].k).any(axis=0))
    first_input_step = warm.step.index("input")
    assert warm.flash_misses[:, first_input_step].sum() == used * 2 * SHAPE.intermediate_size / 2


def test_hits_are_those_of_the_cache(tiny_trace):
    trace = tiny_trace()
    fetch_plan = make(trace, "dip", STATIC + 0.6 * SHAPE.mlp_bytes, "lfu")
    group, capacity = fetch_plan.groups[1], fetch_plan.budget.capacities[1]
    masks = top_k(np.abs(trace.layer(1).glu), group.k)
    position = len(fetch_plan.step) - 2  # the last step before lm_head
    assert fetch_plan.step[position] == "neuron"
    column = SHAPE.hidden_size / 2
    assert fetch_plan.dram_hits[:, position].sum() == hit_curve(masks, "lfu")[capacity] * column


def test_static_bytes_grow_with_the_kv_cache_and_restart_with_a_sequence(tiny_trace):
    fetch_plan = make(tiny_trace(starts=(0, 5)), "dense", STATIC, prompt=3)
    attention = fetch_plan.dram_static[:, 0]
    assert np.diff(attention[:5]) == pytest.approx(np.full(4, SHAPE.kv_position_bytes))
    assert attention[0] == attention[5] == SHAPE.attention_layer_bytes[0] + 4 * SHAPE.kv_position_bytes
    assert fetch_plan.budget.kv_cache_bytes == SHAPE.kv_cache_bytes(3 + 7)


def test_each_sequence_starts_with_an_empty_cache(tiny_trace):
    dram = STATIC + SHAPE.mlp_bytes
    both = make(tiny_trace(starts=(0, 5)), "dip", dram)
    assert both.dram_hits[5].sum() == both.dram_hits[0].sum() == 0
    first = make(tiny_trace(), "dip", dram, tokens=5)
    assert (both.dram_hits[:5] == first.dram_hits).all()


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_gamma_one_is_dip_bit_for_bit(tiny_trace, eviction):
    trace, dram = tiny_trace(), STATIC + 0.5 * SHAPE.mlp_bytes
    plain, aware = make(trace, "dip", dram, eviction), make(trace, "dip-ca", dram, eviction, gamma=1)
    for field in ("dram_hits", "flash_misses", "reads", "read_bytes", "flops"):
        assert (getattr(plain, field) == getattr(aware, field)).all()


def test_a_plan_does_not_depend_on_what_is_planned_beside_it_and_cannot_be_changed(tiny_trace):
    trace, dram = tiny_trace(), STATIC + 0.5 * SHAPE.mlp_bytes
    names = ("dip", "dip-ca", "magnitude", "dense")
    together = plan(trace, [Setting(load_policy(name), dram, "lru") for name in names])
    for name, fetch_plan in zip(names, together, strict=True):
        alone = make(trace, name, dram)
        assert (alone.dram_bytes == fetch_plan.dram_bytes).all()
        assert (alone.flash_bytes == fetch_plan.flash_bytes).all()
    with pytest.raises(ValueError, match="read-only"):
        together[0].dram_hits[0] = 1


@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 20))))
def test_runs_count_adjacent_columns(misses):
    count, columns = runs(misses)
    for row, row_count, row_columns in zip(misses, count, columns, strict=True):
        lengths = [len(run) for run in "".join(" x"[bool(v)] for v in row).split()]
        for size_class in range(len(row_count)):
            inside = [n for n in lengths if n.bit_length() - 1 == size_class]
            assert (row_count[size_class], row_columns[size_class]) == (len(inside), sum(inside))


def test_budget_of_matrices_read_whole_comes_before_any_cache():
    groups = checked_groups(load_policy("magnitude"), SHAPE)
    whole = 2 * SHAPE.num_hidden_layers * SHAPE.mlp_matrix_bytes
    partly = allocate(SHAPE, groups, STATIC + 0.75 * whole, 12)
    assert (partly.whole_resident_bytes, partly.whole_streamed_bytes) == (0.75 * whole, 0.25 * whole)
    assert partly.capacities == (0,)
    column = SHAPE.hidden_size / 2
    cached = allocate(SHAPE, groups, STATIC + whole + SHAPE.num_hidden_layers * 7.9 * column, 12)
    assert (cached.whole_streamed_bytes, cached.capacities) == (0, (7,))
    assert cached.unused_bytes == pytest.approx(SHAPE.num_hidden_layers * 0.9 * column)
    plenty = allocate(SHAPE, groups, STATIC + 2 * SHAPE.mlp_bytes, 12)
    assert plenty.capacities == (SHAPE.intermediate_size,)
    assert plenty.used_bytes == pytest.approx(STATIC + SHAPE.mlp_bytes)


def test_static_overflow_is_an_error_unless_streaming_is_allowed(tiny_trace):
    short = STATIC - 100
    with pytest.raises(InputError, match=r"dram: .* is less than the .* lm_head, attention and the KV cache"):
        make(tiny_trace(), "dip", short)
    streamed = make(tiny_trace(), "dip", short, stream_static=True)
    static = ~streamed.is_mlp
    assert streamed.flash_bytes[:, static].sum(axis=1) == pytest.approx(np.full(12, 100))
    assert streamed.budget.capacities == (0, 0)
    with pytest.raises(InputError, match="does not hold the KV cache"):
        make(tiny_trace(), "dip", 10, stream_static=True)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return scores * float('nan')", "without NaN"),
        ("return scores[:1]", "must keep the shape"),
        ("return None", "rerank failed: AttributeError"),
        ("resident[:] = True", "rerank failed in line 5: ValueError"),
        ("scores[:] = 0", "rerank failed in line 5: ValueError"),
    ],
)
def test_a_plugin_cannot_choose_nonsense_or_change_what_others_see(tiny_trace, tmp_path, body, complaint):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dipsim import Group, Policy\nclass Mine(Policy):\n"
        " def groups(self, shape): return [Group('neuron', ('down_proj',), 'neuron', 3)]\n"
        " def scores(self, group, acts): return acts.glu\n"
        f" def rerank(self, scores, resident): {body}\n"
    )
    with pytest.raises(InputError, match=complaint):
        make(tiny_trace(), plugin)


def test_peak_dram_is_what_was_held_not_what_was_given(tiny_trace):
    full = STATIC + SHAPE.mlp_bytes
    one = make(tiny_trace(), "dip", full, tokens=1)
    read = sum(len(g.matrices) * g.k * SHAPE.unit_length(g.matrices[0], g.axis) / 2 for g in one.groups)
    static = SHAPE.static_bytes(1)
    assert one.peak_dram_bytes == pytest.approx(static + read * SHAPE.num_hidden_layers)
    assert make(tiny_trace(), "dip", STATIC + 300).peak_dram_bytes <= STATIC + 300
    assert make(tiny_trace(), "dense", full).peak_dram_bytes == pytest.approx(full)


def test_what_does_not_go_together(tiny_trace, tmp_path):
    trace = tiny_trace()
    for eviction in ("belady", "optimal"):
        with pytest.raises(InputError, match=f"eviction: {eviction} needs to know all masks"):
            make(trace, "dip-ca", eviction=eviction)
    with pytest.raises(InputError, match="tokens: 13 asked for, the trace tiny has 12"):
        make(trace, "dip", tokens=13)
    plugin = tmp_path / "mine.py"
    head = "from dipsim import Group, Policy\nimport numpy as np\nclass Mine(Policy):\n"
    head += " def groups(self, shape): return [Group('neuron', ('down_proj',), 'neuron', 3)]\n"
    for body, complaint in (
        ("return acts.mlp_input", r"scores of group neuron must be numbers \[12, 24\]"),
        ("return acts.glu * np.nan", "without NaN"),
        ("return 1 / 0", "scores failed in line 5: ZeroDivisionError"),
        ("return acts.nothing", "scores failed in line 5: AttributeError"),
    ):
        plugin.write_text(f"{head} def scores(self, group, acts): {body}\n")
        with pytest.raises(InputError, match=complaint):
            make(trace, plugin)


def test_placements_are_forgotten_layer_by_layer(tiny_trace, monkeypatch):
    """Over all layers and settings they would be much memory."""
    trace, held = tiny_trace(), []
    record, finish = LayerScores.record, PlanBuilder.finish

    def recorded(scores, builder, caches, layer):
        record(scores, builder, caches, layer)
        held.append(sorted(builder._placed))

    def finished(builder):
        held.append(sorted(builder._placed))
        return finish(builder)

    monkeypatch.setattr(LayerScores, "record", recorded)
    monkeypatch.setattr(PlanBuilder, "finish", finished)
    dram = trace.shape.static_bytes(trace.tokens) + 0.5 * trace.shape.mlp_bytes
    plan(trace, [Setting(load_policy("dip"), dram, layout="popularity", start="warm")])
    assert held == [[0], [0], [1], [1], []]  # two layers of two groups each
