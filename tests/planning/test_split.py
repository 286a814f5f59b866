"""The best split of the DRAM is learned from tokens that are not counted, and is simulated as it was predicted."""

from itertools import product

import hand
import numpy as np
import pytest
import tiny_mixture
from hand import SHAPE
from tiny_mixture import chosen

from dipsim import hit_curve
from dipsim.basics.errors import InputError
from dipsim.memory.cache import replay
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.masks import LayerScores
from dipsim.planning.planner import plan
from dipsim.planning.stepwise import stepwise
from dipsim.sparsity.plugins import load_policy
from dipsim.workload import Trace
from dipsim.workload.recorded import write_trace
from dipsim.workload.trace import Header

SAME, TURNS = ((0, 1, 2),) * 12, ((0, 1, 2), (3, 4, 5)) * 6  # the neurons that each token wants
COLUMN, WHOLE = 2.0, 64.0  # B, of a column of down_proj, and of all gate_proj and up_proj
COSTLY = hand.HAND.flash


def skewed(folder, first=SAME, second=TURNS, name="skewed", starts=(0,)):
    """A trace whose layers want these neurons."""
    path = folder / f"{name}.safetensors"
    layers = [hand.activations(first)[0], hand.activations(second)[0]]
    write_trace(path, Header(model=SHAPE, sequence_starts=starts), layers, "float32")
    return Trace.open(path)


def setting(columns, rule="lru", policy="magnitude", tokens=12, rest=WHOLE, **options):
    """DRAM for so many columns of down_proj, besides the static parts and what is read whole."""
    parameters = {"fraction": 0.375} if policy == "magnitude" else {}
    dram = SHAPE.static_bytes(tokens) + rest + columns * COLUMN
    return Setting(load_policy(policy, **parameters), dram, rule, **{"start": "warm", "split": "best"} | options)


def masks(*wanted):
    found = np.zeros((len(wanted), 8), dtype=bool)
    for row, columns in zip(found, wanted, strict=True):
        row[list(columns)] = True
    return found


def test_a_layer_that_uses_more_gets_more(tmp_path):
    """Layer 0 always wants the same three neurons, layer 1 two times three in turn: nine columns hit all there is."""
    even, best = (plan(skewed(tmp_path), [setting(9, split=split)])[0] for split in ("even", "best"))
    assert (even.budget.capacities, even.split) == ((4,), None)
    assert best.budget.capacities == ((3, 6),)
    assert (best.budget.cache_bytes, best.budget.unused_bytes) == (18, 0)
    assert best.peak_dram_bytes == best.setting.dram_bytes
    down = np.array(best.step) == "neuron"
    assert even.flash_misses[:, down].tolist() == [[0, 4]] * 6  # one of four columns is still there
    assert best.flash_misses.sum() == 0
    assert best.peak_cache_bytes[down].tolist() == [6, 12]
    assert best.split.even_cost == (6 + 2 * 6 + 4 * 4) / 6  # B a token: what comes for the first time, then two columns
    assert best.split.best_cost == (6 + 2 * 6) / 6


@pytest.mark.parametrize("columns", [2, 5, 7, 12])
@pytest.mark.parametrize("rule", ["lru", "lfu", "slru"])
def test_no_split_reads_less_than_the_best_if_no_curve_falls_late(tmp_path, rule, columns):
    """All splits of `columns` columns over two layers, with the caches themselves."""
    rng = np.random.default_rng(columns)
    first, second = ([rng.choice(8, 3, replace=False, p=p) for _ in range(24)] for p in (np.r_[0.4, 0.3, [0.05] * 6],
                                                                                        np.full(8, 1 / 8)))  # fmt: skip
    (best,) = plan(skewed(tmp_path, first, second), [setting(columns, rule, tokens=24)])
    hits = [[replay(masks(*layer[:12]), c, rule).sum() for c in range(9)] for layer in (first, second)]
    read = {(a, b): 72 - hits[0][a] - hits[1][b] for a, b in product(range(9), repeat=2) if a + b <= columns}
    held = tuple(each[layer] for layer in (0, 1) for each in best.budget.capacities)
    assert best.split.best_cost == pytest.approx(COLUMN * read[held] / 12, rel=1e-12), "as predicted"
    concave = all((np.diff(each, 2) <= 0).all() for each in hits)
    least = min(read.values())
    assert read[held] == least if concave else read[held] <= read[columns // 2, columns // 2]
    if rule == "lru":
        assert hits == [hit_curve(masks(*layer[:12]), rule).tolist() for layer in (first, second)]


def test_the_caches_simulated_are_those_planned(tmp_path):
    """With LRU, misses of the counted tokens are those of the whole masks at the capacities of the split."""
    rng = np.random.default_rng(3)
    wanted = [[rng.choice(8, 3, replace=False) for _ in range(20)] for _ in range(2)]
    (best,) = plan(skewed(tmp_path, *wanted), [setting(7, tokens=20)])
    for layer, capacity in enumerate(best.budget.capacities[0]):
        misses = 3 - replay(masks(*wanted[layer]), capacity, "lru")[10:]
        at = best.step.index("neuron") + 3 * layer
        assert best.flash_misses[:, at].tolist() == (COLUMN * misses).tolist()


def test_tokens_that_are_counted_teach_nothing(tmp_path):
    changed = (*TURNS[:6], *SAME[6:])
    one, other = (plan(skewed(tmp_path, SAME, second, name), [setting(9)])[0].budget
                  for second, name in ((TURNS, "a"), (changed, "b")))  # fmt: skip
    assert one == other
    assert one.capacities == ((3, 6),)


def test_one_layer_is_planned_with_the_split_of_all(tmp_path):
    trace, chosen = skewed(tmp_path), [setting(9)]
    whole, one, none = (plan(trace, chosen, layers=layers)[0] for layers in (None, 1, 0))
    assert one.split.best_cost == whole.split.best_cost > 0
    assert none.split is None


def test_another_text_may_teach(tmp_path):
    """The layers have changed places there, and each sequence begins with an empty cache."""
    other = skewed(tmp_path, TURNS, SAME, "other", starts=(0, 4))
    learning = setting(9, calibration=str(other.path), start="cold")
    (best,) = plan(skewed(tmp_path), [learning])
    assert best.budget.capacities == ((6, 3),)
    assert best.split.best_cost == COLUMN * (2 * 6 + 2 * 3) / 12
    short = setting(9, calibration=str(other.path), start="cold", tokens=2)
    assert plan(skewed(tmp_path), [short], 2)[0].budget.capacities == ((6, 3),), (
        "of two tokens, whose KV cache is small"
    )
    with pytest.raises(InputError, match="calibration: other is the trace that is measured"):
        plan(other, [learning], layers=0)


def test_sequences_begin_with_empty_caches(tmp_path):
    """Two sequences of six, of which three tokens each are learned from."""
    (best,) = plan(skewed(tmp_path, starts=(0, 6)), [setting(9, tokens=6)])
    assert best.warm_up == 3
    assert best.split.best_cost == COLUMN * 2 * (3 + 6) / 6


def test_policies_that_see_the_cache(tiny_trace):
    """Their masks change with the capacity; the split is still no worse for what it is learned from."""
    trace = tiny_trace(tokens=30)
    dram = trace.shape.static_bytes(30) + 0.4 * trace.shape.mlp_bytes
    policy = load_policy("dip-ca", keep=0.5, gamma=0.3)
    (best,) = plan(trace, [Setting(policy, dram, "lru", start="warm", split="best")])
    assert best.split.best_cost < best.split.even_cost
    assert best.budget.used_bytes <= dram
    inputs, neurons = (np.array(each) for each in best.budget.capacities)
    assert (inputs * 2 * 12 + neurons * 8).sum() == best.budget.cache_bytes
    making = stepwise(trace, best.setting).builder
    assert making.budget == best.budget, "on the clock, too"
    shown = making.trial(15, (0,), [each.capacities for each in making.caches])
    for layer in range(2):
        seen = LayerScores(trace.layer(layer).at(np.arange(15)))
        for caches in shown.caches:
            seen.record(shown, caches, layer)
    assert shown.arrays["flash_misses"].sum() / 15 <= best.split.even_cost


def test_static_parts_stay_where_a_byte_of_them_saves_more(tmp_path):
    """Where a read costs its bytes only, a streamed byte is read by every token: nothing saves more."""
    short = setting(0, rest=-100, stream_static=True)
    (best,) = plan(skewed(tmp_path), [short])
    assert best.budget.streamed_static_bytes == 100
    assert (best.budget.whole_resident_bytes, best.budget.capacities) == (0, ((0, 0),))


def test_static_parts_are_streamed_where_reads_of_columns_cost_more(tmp_path):
    """Three columns that every token wants are a read of 16 us, and lm_head is streamed at 6 B in 6 us."""
    options = {"stream_static": True, "flash": COSTLY.model_copy(update={"page": 1.0})}
    even, best = (plan(skewed(tmp_path), [setting(0, rest=0, split=split, **options)])[0] for split in ("even", "best"))
    assert (even.budget.streamed_static_bytes, even.budget.whole_resident_bytes) == (0, 0)
    held = best.budget
    assert (held.capacities, held.streamed_static_bytes, held.whole_resident_bytes) == (((3, 0),), 6, 0)
    assert (held.cache_bytes, held.unused_bytes) == (6, 0)
    at = np.array(best.step) == "lm_head"
    assert best.flash_static[0, at] == pytest.approx(6 * 80 / 176)
    assert best.dram_static[0, at] == pytest.approx(80 - 6 * 80 / 176)
    assert best.split.best_cost < best.split.even_cost


def test_a_layer_of_experts_gets_what_it_uses(tmp_path):
    """Layers use two, six and eight experts in turn, of 192 B each; of the first, a cache of one keeps both."""
    turns = [[0, 1], [2, 3], [4, 5]] * 4
    layers = [chosen(*[[0, 1]] * 12), chosen(*turns), chosen(*[[0, 1], [2, 3], [4, 5], [6, 7]] * 3)]
    trace = tiny_mixture.write(tmp_path / "t.safetensors", layers=layers)
    dram = trace.shape.static_bytes(12) + float(trace.shape.whole_mlp_bytes.sum()) + 9.5 * 192
    for rule in ("lru", "lfu"):
        made = Setting(load_policy("experts"), dram, rule, start="warm", split="best", scope="layer")
        even, best = (plan(trace, [Setting(**vars(made) | {"split": split})])[0] for split in ("even", "best"))
        assert even.budget.capacities == (3,)
        ((first, second, third),) = best.budget.capacities
        assert first + second + third <= 9
        assert best.flash_misses.sum() < even.flash_misses.sum(), rule
        assert best.budget.used_bytes <= dram
        if rule == "lru":
            assert (first, second, third) == (1, 6, 2)
            assert best.flash_misses.sum(axis=1).tolist() == [2 * 192] * 6  # the third layer's
    with pytest.raises(InputError, match="split: best: one cache serves all layers"):
        plan(trace, [Setting(**vars(made) | {"scope": "model"})], layers=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"start": "cold"},
            "split: best is learned from tokens that are not counted, and there are none; give a calibr",
        ),
        (
            {"rule": "pinned"},
            "split: best: eviction pinned has no cache that changes; use lru or lfu, or `learn-layout`",
        ),
        ({"rule": "none"}, "split: best: eviction none has no cache that changes"),
    ],
)
def test_what_cannot_be_split(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        plan(skewed(tmp_path), [setting(9, **options)], layers=0)


def test_a_policy_without_caches_is_as_ever(tmp_path):
    even, best = (plan(skewed(tmp_path), [setting(9, policy="dense", split=split)])[0] for split in ("even", "best"))
    assert best.split is None
    assert even.budget == best.budget
