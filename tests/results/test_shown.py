"""What a result shows of itself, and when two of them are equal."""

from dataclasses import replace

import numpy as np
import pytest

import dipsim
from dipsim.basics.arrays import same
from dipsim.basics.errors import InputError


@pytest.fixture
def trace(tiny_trace):
    return tiny_trace()


def simulated(trace, policy="dip", **options):
    return dipsim.simulate(trace, policy, "paper", **({"dram": "2 kB", "timing": "pipelined"} | options))


def test_a_result_is_one_line(trace):
    result = simulated(trace, {"dip": {"keep": 0.6}})
    speed, hits = f"{result.tokens_per_s:,.0f}", f"{100 * result.hit_rate:.1f}%"
    assert (
        repr(result) == f"<Result dip(keep=0.6) on paper: {speed} tokens/s, hit rate {hits}, perplexity not measured>"
    )
    measured = replace(result, perplexity=17.256, standard_error=0.1)
    assert repr(measured).endswith(f"hit rate {hits}, perplexity 17.26>")


def test_a_notebook_shows_a_table_of_text(trace):
    device = dipsim.Device.load("paper").model_copy(update={"name": "<b>&"})
    result = dipsim.simulate(trace, "dense", device)
    assert result._repr_html_() == (
        "<table><tr><th>policy</th><td>dense</td></tr><tr><th>device</th><td>&lt;b&gt;&amp;</td></tr>"
        f"<tr><th>tokens/s</th><td>{result.tokens_per_s:,.0f}</td></tr><tr><th>hit rate</th><td>100.0%</td></tr>"
        "<tr><th>perplexity</th><td>not measured</td></tr></table>"
    )


def test_results_are_equal_by_value(trace):
    first, second = simulated(trace), simulated(trace)
    assert first == second
    assert hash(first) == hash(second)
    others = [simulated(trace, dram="1.9 kB"), simulated(trace, tokens=11), simulated(trace, {"dip": {"keep": 0.6}})]
    others += [replace(first, perplexity=1.0), replace(first, timeline=replace(first.timeline, ttft_s=1.0))]
    late = first.timeline.latency_s.copy()
    late[-1] += 1e-12
    others += [replace(first, timeline=replace(first.timeline, latency_s=late)), None, 3]
    assert all(first != other for other in others)
    assert len({first, second, *others}) == len(others) + 1


def test_arrays_are_equal_if_all_of_them_is():
    one = np.arange(3)
    assert same([(one, "a")], [(one.copy(), "a")])
    assert not same(one, one.astype(float))
    assert not same(one, one[:2])
    assert not same([one], [one, one])
    assert not same([one], (one,))
    assert not same(one, None)


def test_names_paths_and_objects_give_the_same_result(trace, tmp_path):
    whole = simulated(trace, dipsim.load_policy("dip", keep=0.6))
    assert simulated(trace.path, {"dip": {"keep": 0.6}}) == simulated(str(trace.path), {"dip": {"keep": 0.6}}) == whole
    assert dipsim.simulate(trace, {"dip": {"keep": 0.6}}, dipsim.Device.load("paper"), dram=2000.0, timing="pipelined") == whole  # fmt: skip # noqa: E501
    (tmp_path / "mine.py").write_text("from dipsim import Policy\nclass Mine(Policy): pass\n")
    assert simulated(trace, tmp_path / "mine.py").policy == "mine"


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        (("tiny", "dip", "paper"), "simulate: trace: tiny: no such trace; shipped"),
        ((None, "dop", "paper"), r"simulate: policies: dop: no such policy \(did you mean dip\?\); shipped"),
        ((None, {"dip": {"kep": 1}}, "paper"), r"simulate: policy dip: kep: unknown key \(did you mean keep\?\)"),
        ((None, {"dip": 1}, "paper"), r"simulate: \{'dip': 1\} is not a policy; write `dip` or"),
        ((None, "dip", "papr"), r"simulate: device: papr: no such device \(did you mean paper\?\); shipped"),
    ],
)
def test_what_is_no_such_thing_is_told_as_on_the_command_line(trace, parts, complaint):
    with pytest.raises(InputError, match=f"^{complaint}"):
        dipsim.simulate(parts[0] or trace, *parts[1:])


def test_progress_is_told_as_it_happens(trace):
    told = []
    simulated(trace, progress=lambda *each: told.append(each))
    layers = trace.shape.num_hidden_layers
    assert told == [*(("planning layers", n + 1, layers) for n in range(layers)), ("simulating policies", 1, 1)]
