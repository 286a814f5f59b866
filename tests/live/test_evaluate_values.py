"""Values of the closed loop: standard errors, calibration, several masks of one group of neurons, and passes."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import SIZES, make  # noqa: E402

from dipsim.basics.errors import InputError  # noqa: E402
from dipsim.basics.fields import parse  # noqa: E402
from dipsim.live.closed_loop import sparsified  # noqa: E402
from dipsim.live.evaluate import evaluate, row  # noqa: E402
from dipsim.live.models import LoadedModel  # noqa: E402
from dipsim.live.perplexity import calibrate, measure, nll, quality  # noqa: E402
from dipsim.live.swiglu import find_mlps  # noqa: E402
from dipsim.planning.builder import PlanBuilder  # noqa: E402
from dipsim.planning.fetch_plan import Setting  # noqa: E402
from dipsim.sparsity.plugins import load_policy  # noqa: E402
from dipsim.study.experiment import Experiment  # noqa: E402
from dipsim.workload.shape import ModelShape  # noqa: E402

TWO_MASKS = """from dipsim import Group, Policy
class Two(Policy):
    def groups(self, shape):
        return (Group("first", ("up_proj",), "neuron", 40), Group("second", ("down_proj",), "neuron", 30))
    def scores(self, group, acts):
        return abs(acts.gate_proj) if group.name == "first" else abs(acts.up_proj)
"""


@pytest.fixture(scope="module")
def tiny():
    model = make("Llama").to(torch.float64)
    return LoadedModel(model, None, ModelShape.from_config(model.config.to_dict(), name="tiny"), find_mlps(model), {})


def tokens(seed=1, sequences=2, length=10):
    return torch.randint(2, SIZES["vocab_size"], (sequences, length), generator=torch.Generator().manual_seed(seed))


def experiment(policies, **fields):
    return parse(Experiment, {"trace": "unused", "policies": policies, "dram": {"mlp_fraction": 0.5}} | fields, "exp")


def test_the_standard_error_of_a_perplexity():
    """Differences 0.1, 0.3, 0.2, 0.4 have the sample variance 1 / 60, and there are four of them."""
    dense = np.array([[1.0, 2.0], [0.5, 1.5]])
    losses = dense + np.array([[0.1, 0.3], [0.2, 0.4]])
    found = quality(losses, dense)
    assert found.perplexity == pytest.approx(np.exp(1.5))
    assert found.standard_error == pytest.approx(np.exp(1.5) * np.sqrt(1 / 60) / 2)


def test_evaluating_finds_the_standard_error_of_the_losses(tiny):
    ids, policy = tokens(), load_policy("dip", keep=0.5)
    ((_, result),) = evaluate(tiny, ids, experiment([{"dip": {"keep": 0.5}}]))
    used = Setting(policy, tiny.shape.static_bytes(10) + 0.5 * tiny.shape.mlp_bytes)
    with torch.inference_mode():
        losses, dense = measure(tiny, ids, [used])[0].ravel(), nll(tiny, ids).ravel()
    difference = losses - dense
    variance = ((difference - difference.mean()) ** 2).sum() / 17
    assert result.perplexity == pytest.approx(np.exp(losses.mean()))
    assert result.standard_error == pytest.approx(np.exp(losses.mean()) * np.sqrt(variance / 18))


def test_neurons_that_two_groups_choose_pass_both_masks(tiny, tmp_path):
    path = tmp_path / "two.py"
    path.write_text(TWO_MASKS)
    mlp, layer = tiny.mlps[0], tiny.model.model.layers[0].mlp
    x = torch.randn(1, 3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    making = PlanBuilder(tiny.shape, Setting(load_policy(path), tiny.shape.static_bytes(3)), 3, (0,))
    gate, up = layer.gate_proj(x), layer.up_proj(x)
    kept = torch.ones_like(gate)
    for values, count in ((gate, 40), (up, 30)):
        limit = values.abs().sort(dim=-1, descending=True).values[..., count - 1, None]
        kept = kept * (values.abs() >= limit)
    with torch.inference_mode(), sparsified([mlp], [making]):
        found = layer(x)
    assert torch.allclose(found, layer.down_proj(layer.act_fn(gate) * up * kept))
    assert (kept.sum(dim=-1) < 30).all()


def test_thresholds_are_those_of_the_calibration_text(tiny):
    ids, other = tokens(), tokens(seed=7)
    chosen, policy = (
        experiment([{"dip-threshold": {"keep": 0.4}}], start="cold"),
        load_policy("dip-threshold", keep=0.4),
    )
    ((_, own),), ((_, found),) = evaluate(tiny, ids, chosen), evaluate(tiny, ids, chosen, calibration=other)
    setting = Setting(policy, tiny.shape.static_bytes(10) + 0.5 * tiny.shape.mlp_bytes)
    for result, text in ((own, ids), (found, other)):
        losses, (booked,) = measure(tiny, ids, [setting], calibrate(tiny, text, policy))
        assert result.perplexity == pytest.approx(np.exp(losses.mean()))
        assert result.plan.flash_misses.sum() == booked.flash_misses.sum()
    assert own.perplexity != found.perplexity


def test_an_aware_policy_has_a_pass_for_each_eviction(tiny):
    ids, policy = tokens(), load_policy("dip-ca", keep=0.5, gamma=0.1)
    swept = {"eviction": ["lru", "lfu"], "start": ["cold", "filled"]}
    found = evaluate(tiny, ids, experiment([{"dip-ca": {"keep": 0.5, "gamma": 0.1}}], sweep=swept))
    size = tiny.shape.static_bytes(10) + 0.5 * tiny.shape.mlp_bytes
    seen = set()
    for cell, result in found:
        setting = Setting(policy, size, cell.eviction, start=cell.start)
        losses, (booked,) = measure(tiny, ids, [setting])
        assert result.plan.setting.eviction == cell.eviction
        assert result.perplexity == pytest.approx(np.exp(losses.mean()))
        assert result.plan.dram_hits.sum() == booked.dram_hits.sum()
        seen.add(result.perplexity)
    assert len(seen) == 4


def test_an_evaluation_is_of_one_setting_of_bits(tiny):
    bits = {"mlp": 6.5, "lm_head": 4}
    ((_, result),) = evaluate(tiny, tokens(), experiment(["dense"], bits=bits))
    found = json.loads(row(result, 10, "t", "tiny").bits)
    assert found == {"embedding": 8, "lm_head": 4, "attention": 4, "mlp": 6.5, "kv_cache": 8}
    assert result.plan.shape.mlp_bytes == tiny.shape.mlp_bytes * 6.5 / 4
    with pytest.raises(InputError, match="sweep: bits: an evaluation computes with the weights of one file; give its"):
        evaluate(tiny, tokens(), experiment(["dense"], sweep={"bits.mlp": [4, 5]}))


def test_changed_hardware_has_a_name_of_its_own(tiny):
    swept = {"flash.read_bandwidth": ["1 GB/s", "3 GB/s"]}
    names = [result.device.name for _, result in evaluate(tiny, tokens(), experiment(["dense"], sweep=swept))]
    assert names == ["paper (flash.read_bandwidth=1 GB/s)", "paper (flash.read_bandwidth=3 GB/s)"]
    ((_, plain),) = evaluate(tiny, tokens(), experiment(["dense"]))
    assert plain.device.name == "paper"
