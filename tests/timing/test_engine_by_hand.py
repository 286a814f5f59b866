"""Streams that meet on DRAM and compute, and steps that wait for what others began: by hand, in seconds."""

import pytest
from hand import HAND

from dipsim.timing.engine import Demand, Engine, Request


class Scripted:
    """The demand of each token, by token; nothing is known ahead, and prompts take nothing."""

    prefill = Request((0.0,) * 3, (0.0,) * 3)

    def __init__(self, *seconds, before=None):
        self.seconds, self.before = seconds, before

    def reach(self, token):
        pass

    def asked(self, token, step, requests):  # noqa: ARG002
        return []

    def ahead(self, token, step):  # noqa: ARG002
        return self.prefill

    def demand(self, token, step):  # noqa: ARG002
        others = self.before() if self.before and token == 0 else ()
        return Demand(Request(self.seconds[token], (1.0, 2.0, 3.0)), under_way=others)


def run(steps, streams, timing="serial", **options):
    engine = Engine(HAND, timing, len(steps.seconds), 1, **options)
    return engine, engine.run(steps, streams)


def test_streams_share_dram_and_take_turns_at_compute():
    """Of DRAM each has a half; compute serves the one that came first, unless it is fair."""
    _, dram = run(Scripted((0, 1, 0), (0, 1, 0)), [[0], [1]])
    assert dram.latency_s.tolist() == [2, 2]
    assert dram.busy_s[:, 1].tolist() == [1, 1]
    assert dram.waited_s[:, 1].tolist() == [1, 1]
    _, compute = run(Scripted((0, 0, 1), (0, 0, 1)), [[0], [1]])
    assert compute.latency_s.tolist() == [1, 2]
    assert compute.parts_s.tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    assert compute.waited_s[:, 2].tolist() == [0, 1]
    _, fair = run(Scripted((0, 0, 1), (0, 0, 1)), [[0], [1]], fair=True)
    assert fair.latency_s.tolist() == [2, 2]
    assert fair.streams == (range(0, 1), range(1, 2))


def test_tokens_of_a_stream_follow_each_other():
    _, found = run(Scripted((1, 2, 3), (0, 0, 0), (1, 0, 0)), [[0, 1, 2]])
    assert found.start_s.tolist() == [0, 6, 6]
    assert found.latency_s.tolist() == [6, 0, 1]
    assert found.parts_s.tolist() == [[1, 2, 3, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert (found.streams, found.ttft_s) == ((), 0)
    assert [(span.resource, span.token, span.start_s, span.end_s, span.bytes) for span in found.spans] == [
        ("flash", 0, 0, 1, 1),
        ("dram", 0, 1, 3, 2),
        ("compute", 0, 3, 6, 3),
        ("flash", 2, 6, 7, 1),
    ]


@pytest.mark.parametrize(("own", "waited", "parts"), [(1, 2, [0, 3, 0, 0]), (5, 0, [5, 0, 0, 0])])
def test_a_step_waits_for_what_others_began(own, waited, parts):
    """Three seconds of DRAM are under way, beside its own of Flash; only what exceeds those is waiting."""
    engine = Engine(HAND, "serial", 1, 1)
    steps = Scripted((own, 0, 0), before=lambda: [(engine.servers[1].ask(3.0), 1)])
    found = engine.run(steps, [[0]])
    assert found.latency_s.tolist() == [max(own, 3)]
    assert found.waited_s.tolist() == [[0, waited, 0]]
    assert found.parts_s.tolist() == [parts]
    assert found.busy_s.tolist() == [[own, 0, 0]]


def test_what_others_began_long_ago_counts_as_waiting_before_it_is_served():
    """Six seconds of DRAM: three behind another's three, so the step waits for its turn first."""
    engine = Engine(HAND, "serial", 1, 1)

    def begun():
        engine.servers[2].ask(3.0)
        return [(engine.servers[2].ask(3.0), 2)]

    found = engine.run(Scripted((0, 0, 0), before=begun), [[0]])
    assert found.latency_s.tolist() == [6]
    assert found.parts_s.tolist() == [[0, 0, 3, 3]]
    assert found.waited_s.tolist() == [[0, 0, 6]]


def test_spans_of_some_tokens():
    _, found = run(Scripted((1, 0, 0), (1, 0, 0)), [[0, 1]], traced=(1,))
    assert [(span.token, span.start_s) for span in found.spans] == [(1, 1)]
