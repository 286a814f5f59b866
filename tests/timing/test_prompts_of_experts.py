"""The time to the first token of a mixture with a dense layer, which reads no experts."""

import pytest
import tiny_mixture
from oracles import device
from tiny_mixture import chosen

from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.timing.service import service_times

LAYERS = [chosen((0, 1), (1, 2), (0, 2)), chosen((4, 5), (4, 5), (4, 5))]  # of layers 0 and 2; layer 1 is dense


def test_a_prompt_reads_what_it_missed_of_the_layers_that_have_experts(tmp_path):
    """Two tokens miss 3 experts of layer 0 and 2 of layer 2; an expert has 192 B in one read of 10 us."""
    of = tiny_mixture.shape(dense_layers=(1,))
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=of, layers=LAYERS, prompts=((0, 2),))
    room = float(of.whole_mlp_bytes.sum()) + 6 * 192
    (fetch_plan,) = plan(trace, [Setting(load_policy("experts"), of.static_bytes(3) + room, "lru", start="warm")])
    reads = fetch_plan.encoded.reads.sum(axis=1)
    assert reads.tolist() == [reads[0], 0, reads[2]]
    assert reads[0] / 3 == reads[2] / 2 > 0
    flash = service_times(fetch_plan, device(**{"flash.command_time": "10 us"})).prefill[0]
    assert flash == pytest.approx(reads.sum() * 10e-6 + 5 * 192 / 1e9)
