"""The shipped trace: figures of the quickstart, each beside the invariant that makes it believable."""

import pytest

from dipsim.basics import assets
from dipsim.study.experiment import Experiment
from dipsim.study.run import run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("golden")]  # one run of the quickstart serves all


@pytest.fixture(scope="module")
def quickstart():
    results = run(Experiment.load(assets.find("examples", "quickstart")))
    return {result.plan.setting.policy.name: result for result in results}


def test_cache_awareness_pays(quickstart):
    speed = {name: result.tokens_per_s for name, result in quickstart.items()}
    assert speed["dip-ca"] > speed["dip"] > speed["dense"]
    assert quickstart["dip-ca"].hit_rate > quickstart["dip"].hit_rate


def test_all_policies_get_the_same_dram_and_use_it(quickstart):
    for result in quickstart.values():
        assert result.plan.setting.dram_bytes == quickstart["dense"].plan.setting.dram_bytes
        assert 0.99 * result.plan.setting.dram_bytes < result.plan.budget.used_bytes <= result.plan.setting.dram_bytes


def test_dense_reads_half_of_the_mlp_from_flash(quickstart):
    """By hand: 39.8 MB of MLP, half of it over 1 GB/s; the rest, attention, lm_head and KV cache over 60 GB/s."""
    mlp, static = 3 * 30 * 576 * 1536 / 2, 576 * 49152 + 30 * 576 * 576 * (2 + 2 / 3) / 2
    kv = 2 * 30 * 576 / 3 * (64 + 256 + 1) / 2  # positions 64 to 255 are counted, each sees those before it
    assert quickstart["dense"].tokens_per_s == pytest.approx(1 / (mlp / 2e9 + (static + kv + mlp / 2) / 60e9), rel=1e-9)


GOLDEN = {  # tokens/s and hit rate on the shipped trace, the first 64 tokens to warm up
    "dense": (47.7049, 0.5),
    "magnitude": (69.7999, 0.6),
    "dip": (65.6720, 0.5226),
    "dip-ca": (71.7423, 0.5665),
}
COLD = {"dense": (47.7189, 0.5), "dip": (65.4381, 0.5206), "dip-ca": (71.4591, 0.5644)}  # dipsim 0.1.0, all tokens


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(quickstart, name):
    tokens_per_s, hit_rate = GOLDEN[name]
    assert quickstart[name].tokens_per_s == pytest.approx(tokens_per_s, rel=1e-4)
    assert quickstart[name].hit_rate == pytest.approx(hit_rate, abs=1e-4)


def test_a_cold_start_counts_every_token_and_gives_the_figures_of_version_0_1():
    cold = Experiment.load(assets.find("examples", "quickstart")).model_copy(update={"start": "cold"})
    for result in run(cold):
        if (name := result.plan.setting.policy.name) in COLD:
            assert (result.plan.tokens, result.plan.warm_up) == (256, 0)
            assert result.tokens_per_s == pytest.approx(COLD[name][0], rel=1e-4)
            assert result.hit_rate == pytest.approx(COLD[name][1], abs=1e-4)
