"""Bits of a value that an experiment changes, worked out on paper for the model of tests/hand.py.

With 4.5 bits for the MLP, 3 for attention, 6.5 for lm_head and 5 for the KV cache a layer has 18 B of attention and
three matrices of 18 B, and a column of down_proj has 2.25 B. lm_head has 32.5 B, and a position takes 2.5 B in a layer.
"""

import pandas as pd
import pytest
import yaml
from hand import DEVICE, HAND, SHAPE, hand_trace
from tiny_mixture import SHAPE as MIXTURE

import dipsim
from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.study.experiment import Experiment
from dipsim.study.points import points
from dipsim.study.run import run
from dipsim.study.sweep import sweep

BITS = {"mlp": 4.5, "attention": 3, "lm_head": 6.5, "kv_cache": 5}
MAGNITUDE = {"magnitude": {"fraction": 0.375}}  # three of eight columns of down_proj


@pytest.fixture
def make(tmp_path):
    trace = hand_trace(tmp_path)
    (tmp_path / "hand.yaml").write_text(yaml.safe_dump(DEVICE))

    def experiment(**fields):
        base = {"trace": str(trace.path), "device": str(tmp_path / "hand.yaml"), "policies": [MAGNITUDE],
                "start": "cold", "eviction": "none", "read_through": False}  # fmt: skip
        return parse(Experiment, base | fields, "exp.yaml")

    return experiment


def test_the_bytes_of_a_token_at_bits_that_differ(make):
    (result,) = run(make(bits=BITS))
    plan, seen = result.plan, [1, 2, 3, 1, 2]  # positions
    static = 2 * 18 + 32.5 + 4 * 18  # attention, lm_head, gate_proj and up_proj
    assert plan.dram_static.sum(axis=1).tolist() == [static + 5 * length for length in seen]
    assert plan.flash_misses.sum(axis=1).tolist() == [2 * 3 * 2.25] * 5
    assert (plan.budget.kv_cache_bytes, plan.budget.whole_resident_bytes) == (3 * 5, 72)
    (own,) = run(make())
    assert plan.flops.tolist() == own.plan.flops.tolist()  # as many weights, in other bytes
    assert own.plan.dram_static.sum(axis=1).tolist() == [96 + 80 + 64 + 32 * length for length in seen]


def test_each_part_is_changed_alone(make):
    """In all 12 B of misses, 64 B of matrices read whole, 96 of attention, 80 of lm_head and 9 x 32 B of KV cache."""
    own = 5 * (96 + 80 + 64) + 9 * 32
    for part, less in (("mlp", 5 * 48), ("attention", 5 * 84), ("lm_head", 5 * 75), ("kv_cache", 9 * 31)):
        (result,) = run(make(bits={part: 1}))
        assert result.plan.dram_static.sum() == own - less
        assert result.plan.flash_misses.sum() == 5 * (3 if part == "mlp" else 12)


def test_a_share_of_dram_the_clock_and_python_know_the_bits(make):
    """32.5 B of lm_head, 36 of attention and 15 of KV cache, and half of 108 B of MLP."""
    dram = {"mlp_fraction": 0.5}
    (plain,) = run(make(bits=BITS, dram=dram))
    assert plain.plan.setting.dram_bytes == 32.5 + 36 + 15 + 54
    (clocked,) = run(make(bits=BITS, dram=dram, contention=True))
    assert clocked.on_clock
    assert clocked.timeline.latency_s.tolist() == pytest.approx(plain.timeline.latency_s.tolist())
    trace = make().open_trace()
    policy = dipsim.load_policy("magnitude", fraction=0.375)
    options = {"start": "cold", "eviction": "none", "read_through": False, "bits": BITS}
    simulated = dipsim.simulate(trace, policy, HAND, dram=137.5, **options)
    assert simulated.timeline.latency_s.tolist() == plain.timeline.latency_s.tolist()


def test_a_sweep_over_bits(make, tmp_path):
    table = sweep(make(bits={"kv_cache": 16}, sweep={"bits.mlp": [2, 4, 4.5]}), tmp_path / "out")
    assert table["bits.mlp"].tolist() == [2, 4, 4.5]
    assert table["flash_bytes_per_token"].tolist() == [6, 12, 13.5]
    assert table["dram_bytes_per_token"].tolist() == [96 + 80 + whole + 9 * 16 / 5 for whole in (32, 64, 72)]
    assert table["key"].is_unique
    own, *others = (points(make(bits=bits, sweep={"dram": ["1 kB"]}))[0].key for bits in (None, {"mlp": 4}, BITS))
    assert [own == key for key in others] == [True, False]  # 4 are the trace's own
    assert Experiment.load(tmp_path / "out/experiment.yaml").bits.model_dump(exclude_none=True) == {"kv_cache": 16}


def test_a_perplexity_is_of_the_bits_that_it_was_measured_for(make, tmp_path):
    row = {"policy": "magnitude", "parameters": '{"fraction": 0.375}', "mlp_fraction": 0.5, "eviction": "lru",
           "tokens": 5, "length": 5, "perplexity": 12.5, "standard_error": 0.25, "hit_rate": 0.5,
           "mlp_fraction_read": 0.5, "device": "hand", "timing": "serial", "tokens_per_s": 1.0, "text": "t",
           "model": "hand"}  # fmt: skip
    bits = '{"attention": 8, "embedding": 8, "kv_cache": 32, "lm_head": 16, "mlp": 4.5}'

    def found(rows):
        pd.DataFrame(rows).to_csv(tmp_path / "hand.quality.csv", index=False)
        changes = (None, {"mlp": 4}, {"mlp": 4.5}, {"lm_head": 8}, {"kv_cache": 31.5})
        return [run(make(bits=change))[0].perplexity for change in changes]

    assert found([row]) == [12.5, 12.5, None, None, None]  # of the trace's own bits, if the table does not say
    assert found([row, row | {"bits": bits, "perplexity": 13}]) == [12.5, 12.5, 13, None, None]
    assert found([row | {"bits": bits}]) == [None, None, 12.5, None, None]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"bits": {"kv": 8}}, "exp.yaml: bits.kv: unknown key"),
        ({"bits": {"mlp": 0}}, "exp.yaml: bits.mlp: must be greater than 0"),
        ({"bits": {"mlp": "4"}}, "exp.yaml: bits.mlp: must be a valid number"),
        ({"sweep": {"bits": [{"mlp": 4}]}}, "sweep.bits: is neither a field"),
        ({"sweep": {"bits.embedding": [4]}}, "bits.embedding: unknown key"),
    ],
)
def test_bits_that_are_none(make, fields, complaint):
    with pytest.raises(InputError, match=complaint):
        points(make(**fields))


def test_sizes_that_were_measured_have_no_bits():
    measured = MIXTURE.mixture.model_copy(update={"expert_bytes": (7,) * MIXTURE.num_hidden_layers})
    shape = MIXTURE.model_copy(update={"mixture": measured})
    with pytest.raises(InputError, match=r"bits: mlp: the trace of .* has measured sizes \(expert_bytes\), .*leave it"):
        shape.with_bits({"mlp": 3})
    assert shape.with_bits({"attention": 6}).attention_bytes == 1.5 * shape.attention_bytes
    assert SHAPE.with_bits({"mlp": 3}).sizes == SHAPE.sizes  # a layout learned of the one is one of the other
