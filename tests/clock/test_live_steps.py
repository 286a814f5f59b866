"""Runs on the clock: equal to plans where nothing overlaps; prefetch, drafts, streams, contention, tiers by hand."""

from dataclasses import fields, replace

import numpy as np
import pytest
import tiny_mixture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import device
from tiny import SHAPE as DENSE
from tiny_mixture import SHAPE, chosen

from dipsim.basics.errors import InputError
from dipsim.clock.clocked import Clocked, Prefetch, Speculation
from dipsim.clock.cycles import cycles
from dipsim.clock.live_steps import run_on_clock
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy, load_prefetcher
from dipsim.sparsity.prefetcher import Known, Prefetcher
from dipsim.timing.recurrence import timeline
from dipsim.timing.timeline import TIMINGS, Resource

EXPERT = 192.0
READ = EXPERT / 1e6  # seconds of an expert, of SLOW
SLOW = device(**{"flash.read_bandwidth": "1 MB/s", "dram.bandwidth": "1 GB/s", "compute.throughput": "1 GFLOP/s",
                 "compute.layer": "1 ms"})  # fmt: skip
LAYERS = [
    chosen([0, 1], [2, 3], [0, 1], [4, 5]),
    chosen([0, 1], [2, 3], [0, 1], [4, 5]),
    chosen([0, 1], [2, 3], [0, 1], [4, 5]),
]


class Named(Prefetcher):
    """Always the same units."""

    units: tuple[int, ...]

    def scores(self, known):
        scores = np.zeros(len(known.resident))
        scores[list(self.units)] = np.arange(len(self.units), 0, -1)
        return scores


@pytest.fixture
def trace(tmp_path):
    return tiny_mixture.write(tmp_path / "t.safetensors", layers=LAYERS)


def setting(room=0, rule="none", shape=SHAPE, length=4, **options):
    size = shape.static_bytes(length, options.get("streams", 1)) + room * EXPERT
    options = {"layout": "bundled", "scope": "model"} | options
    return Setting(load_policy("experts"), size + options.get("buffer", 0.0), rule, **options)


def run(trace, options=None, dev=SLOW, timing="serial", of=None, traced=()):
    buffer = options.prefetch.buffer if options and options.prefetch else 0.0
    made = of or setting(buffer=buffer)
    return run_on_clock(trace, made, dev, timing, options or Clocked(), traced=lambda _: traced)


def only_flash(layer, **changes):
    """A device on which a layer computes so long, and all else but Flash takes no time to speak of."""
    return SLOW.replace(
        **{"compute.layer": layer, "dram.bandwidth": "1000 TB/s", "compute.throughput": "1e9 GFLOP/s"}, **changes
    )


def prefetch(by="oracle", units=2, buffer=10 * EXPERT, **options):
    parameters = {name: options.pop(name) for name in ("recall", "precision") if name in options}
    chosen_by = Named(units=by) if isinstance(by, tuple) else load_prefetcher(by, **parameters)
    return Clocked(prefetch=Prefetch(chosen_by, units, buffer, **options))


def fates(made):
    return {name: getattr(made.guessed, name).sum() for name in ("useful", "late", "wasted", "dropped")}


# what nothing overlaps with

MIXED = st.tuples(
    st.sampled_from(["experts", "fewer-experts", "drop-cold"]),
    st.sampled_from(["lru", "lfu", "lfru", "slru", "s3-fifo", "none"]),
    st.sampled_from(["layer", "model"]),
    st.integers(0, 25),
    st.integers(0, 2**16),
    st.sampled_from(["warm", "cold"]),
)
COLUMNS = st.tuples(
    st.sampled_from(["dip", "dip-ca", "magnitude", "gate", "dense"]),
    st.sampled_from(["lru", "lfu", "s3-fifo", "none", "pinned"]),
    st.sampled_from(["columns", "bundled"]),
    st.floats(0, 1),
    st.integers(0, 2**16),
    st.sampled_from(["warm", "cold"]),
)
COSTLY = device(**{
    "flash.read_bandwidth": "5 MB/s", "flash.command_time": "3 us", "flash.latency": "20 us",
    "dram.bandwidth": "60 MB/s", "dram.flash_copies": 1, "dram.fill": "40 MB/s", "dram.row": "64 B",
    "compute.weights": "50 MB/s", "compute.selection": "100 M/s", "compute.layer": "7 us", "compute.interrupt": "2 us",
})  # fmt: skip


def same(trace, of, dev):
    """Plan and latencies of the clock equal those of the planner and the recurrence."""
    planned = plan(trace, [of])[0]
    for timing in TIMINGS:
        made, times = run(trace, of=of, dev=dev, timing=timing)
        closed = timeline(planned, dev, timing)
        assert times.latency_s == pytest.approx(closed.latency_s, rel=1e-12)
        assert times.ttft_s == pytest.approx(closed.ttft_s, rel=1e-12)
        assert times.start_s == pytest.approx(closed.start_s, rel=1e-12)
        assert times.parts_s == pytest.approx(closed.parts_s, rel=1e-9, abs=1e-15)
        assert times.waited_s == pytest.approx(closed.waited_s, rel=1e-9, abs=1e-15)
        assert times.busy_s == pytest.approx(closed.busy_s, rel=1e-9)
        for field in fields(planned):
            expected = getattr(planned, field.name)
            bound = field.name == "peak_cache_bytes" and of.eviction == "lru"  # the planner's is a bound
            if isinstance(expected, np.ndarray) and not bound:
                np.testing.assert_array_equal(getattr(made, field.name), expected, err_msg=field.name)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MIXED)
def test_experts_on_the_clock_are_those_of_the_plan(tmp_path, case):
    policy, rule, scope, room, seed, start = case
    trace = tiny_mixture.write(tmp_path / "t.safetensors", seed=seed, starts=(0, 7))
    size = SHAPE.static_bytes(7) + room * EXPERT
    parameters = {"experts": 1} if policy == "fewer-experts" else {}
    same(trace, Setting(load_policy(policy, **parameters), size, rule, scope=scope, start=start), COSTLY)


@pytest.mark.slow
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(COLUMNS)
def test_columns_on_the_clock_are_those_of_the_plan(tiny_trace, case):
    policy, rule, layout, share, seed, start = case
    trace = tiny_trace(seed=seed, starts=(0, 5))
    size = DENSE.static_bytes(7) + share * DENSE.mlp_bytes
    same(trace, Setting(load_policy(policy), size, rule, layout=layout, start=start), COSTLY)


def test_prompts_and_pinned_experts_are_those_of_the_plan(tmp_path):
    trace = tiny_mixture.write(tmp_path / "t.safetensors", starts=(0, 6), prompts=((0, 3), (6, 8), (10, 11)), seed=3)
    for rule in ("lru", "pinned"):
        of = Setting(load_policy("experts"), SHAPE.static_bytes(12) + 9 * EXPERT, rule, scope="model", start="warm")
        same(trace, of, COSTLY)


def test_policies_that_use_what_is_read_are_those_of_the_plan(tiny_trace):
    costs = COSTLY.replace(**{"flash.page": "32 B", "dram.row": "1 B"})
    size = DENSE.static_bytes(12) + 0.5 * DENSE.mlp_bytes
    for policy in (load_policy("dip", free=True), load_policy("worth")):
        of = Setting(policy, size, "pinned", layout="popularity", start="warm", page=32.0, flash=costs.flash)
        same(tiny_trace(), of, costs)


# prefetch


def test_a_perfect_guess_and_time_enough_leave_only_the_first_reads(trace):
    """Nothing is cached: each of 12 steps reads two experts. All but the first step's come from DRAM."""
    _, without = run(trace)
    made, times = run(trace, prefetch())
    assert without.latency_s.sum() - times.latency_s.sum() == pytest.approx(22 * (READ - EXPERT / 1e9), rel=1e-9)
    assert fates(made) == {"useful": 22, "late": 0, "wasted": 0, "dropped": 0}
    assert made.guessed.bytes.sum() == 22 * EXPERT
    assert made.flash_misses.sum() == 2 * EXPERT
    assert times.waited_s.sum() == 0


def test_a_guess_under_way_is_waited_for_and_one_that_has_not_begun_is_read_as_demand(trace):
    """100 us until the next layer: one guess has 92 us to go, and shares Flash with the demand for the other expert."""
    fast = SLOW.replace(
        **{"compute.layer": "100 us", "dram.bandwidth": "1000 TB/s", "compute.throughput": "1e9 GFLOP/s"}
    )
    _, without = run(trace, dev=fast)
    made, times = run(trace, prefetch(), dev=fast)
    head = made.tokens - 1  # lm_head takes no time here: the next token's guesses have as long as all others
    assert without.latency_s.sum() - times.latency_s.sum() == pytest.approx(11 * 100e-6, rel=1e-6)
    assert fates(made) == {"useful": 0, "late": 11, "wasted": 0, "dropped": 11}
    assert head == 3
    assert times.waited_s[:, Resource.FLASH].sum() > 0


def test_an_idle_guess_that_is_wrong_costs_no_more_than_its_read(trace):
    """With 100 us for guesses, a wrong one of 192 us delays each later step by the 92 us that it still takes."""
    fast = SLOW.replace(
        **{"compute.layer": "100 us", "dram.bandwidth": "1000 TB/s", "compute.throughput": "1e9 GFLOP/s"}
    )
    fast = fast.replace(**{"flash.queue_depth": 1})
    _, without = run(trace, dev=fast)
    made, times = run(trace, prefetch((7, 6)), dev=fast)
    assert times.latency_s.sum() - without.latency_s.sum() == pytest.approx(11 * (READ - 100e-6), rel=1e-6)
    assert fates(made) == {"useful": 0, "late": 0, "wasted": 11, "dropped": 11}


def test_an_eager_guess_stands_in_the_queue_before_later_demand(trace):
    """Two wrong guesses of 192 us a step, of which 100 us pass before the next demand; what is late is read all the
    same.
    """
    fast = SLOW.replace(
        **{"compute.layer": "100 us", "dram.bandwidth": "1000 TB/s", "compute.throughput": "1e9 GFLOP/s"}
    )
    fast = fast.replace(**{"flash.queue_depth": 1})
    _, without = run(trace, dev=fast)
    made, times = run(trace, prefetch((7, 6), when="eager", drop_late=False), dev=fast)
    assert times.latency_s.sum() - without.latency_s.sum() == pytest.approx(11 * (2 * READ - 100e-6), rel=1e-6)
    assert fates(made) == {"useful": 0, "late": 0, "wasted": 22, "dropped": 0}


def test_guesses_wait_for_room_in_the_buffer(trace):
    made, _ = run(trace, prefetch(buffer=EXPERT))
    assert fates(made) == {"useful": 11, "late": 0, "wasted": 0, "dropped": 11}


def test_two_layers_ahead_is_twice_the_time(trace):
    """384 us for guesses of a step, of which two must be read in it; asked for a layer earlier they are never late."""
    fast = SLOW.replace(
        **{"compute.layer": "300 us", "dram.bandwidth": "1000 TB/s", "compute.throughput": "1e9 GFLOP/s"}
    )
    near, far = (run(trace, prefetch(ahead=ahead), dev=fast) for ahead in (1, 2))
    assert fates(near[0])["late"] == 11
    assert far[0].flash_misses.sum() > near[0].flash_misses.sum() - 12 * EXPERT
    assert fates(far[0])["useful"] > 0


def test_what_a_guess_brings_is_filled_in_and_interrupts_compute(trace):
    filling = SLOW.replace(**{"dram.fill": "2 MB/s", "compute.interrupt": "50 us"})
    of = setting(room=24, rule="lru", buffer=10 * EXPERT)
    made, times = run(trace, prefetch(), dev=filling, of=of)
    plain, bare = run(trace, prefetch(), dev=SLOW, of=of)
    brought = fates(made)["useful"]
    filled = (made.flash_misses.sum() + brought * EXPERT) / 2e6
    assert times.latency_s.sum() - bare.latency_s.sum() == pytest.approx(filled + 50e-6 * brought, rel=1e-9)
    assert fates(plain) == fates(made)


def test_same_as_last_token_and_popular_name_what_was_used(trace):
    """Token 2 uses what token 0 did, not what token 1 did; with nothing cached the last is guessed in vain."""
    made, _ = run(trace, prefetch("same-as-last-token"))
    assert fates(made) == {"useful": 0, "late": 0, "wasted": 18, "dropped": 0}
    popular, _ = run(trace, prefetch("popular"))
    assert popular.guessed.useful.tolist() == [0, 0, 6, 0]  # 0 and 1 come first among equals


def test_next_layer_takes_the_inputs_of_this_layer(tiny_trace):
    """The next layer's inputs of largest magnitude are guessed to be this one's; computed here from the trace."""
    trace = tiny_trace(tokens=3)
    of = Setting(load_policy("dip", keep=0.5), DENSE.static_bytes(3) + 4096, "none", buffer=4096.0)
    slow = SLOW.replace(**{"compute.layer": "1 s"})
    options = Clocked(prefetch=Prefetch(load_prefetcher("next-layer"), 4, 4096.0))
    with pytest.raises(InputError, match="next-layer: the trace does not say"):
        run(trace, options, of=of, dev=slow)
    inputs = load_policy("dip", keep=0.5).groups(DENSE)[0]

    class Inputs(type(of.policy)):
        """The inputs alone."""

        def groups(self, _shape):
            return (inputs,)

    made, _ = run(trace, options, of=replace(of, policy=Inputs(keep=0.5)), dev=slow)
    first, second = (abs(trace.layer(layer).mlp_input) for layer in (0, 1))
    best = [set(np.argsort(-first[token], kind="stable")[:4]) for token in range(3)]
    used = [set(np.argsort(-second[token], kind="stable")[: inputs.k]) for token in range(3)]
    assert made.guessed.useful.tolist() == [len(a & b) for a, b in zip(best, used, strict=True)]


def test_only_an_oracle_may_look_ahead(trace):
    class Cheat(Prefetcher):
        """Looks."""

        def scores(self, known):
            return known.actual()

    with pytest.raises(InputError, match="looks at what will be wanted; only an oracle may"):
        run(trace, Clocked(prefetch=Prefetch(Cheat(), 2, 5 * EXPERT)))


@pytest.mark.parametrize("recall", [0.6, 0.2])
def test_an_oracle_is_as_good_as_it_is_told_to_be(tmp_path, recall):
    trace = tiny_mixture.write(tmp_path / "t.safetensors", tokens=400, of=(of := tiny_mixture.shape(num_experts=64)))
    size = of.static_bytes(400) + 20 * EXPERT
    made, _ = run(
        trace,
        prefetch(recall=recall, precision=0.75, units=8, buffer=20 * EXPERT),
        of=Setting(load_policy("experts"), size, "none", layout="bundled", scope="model", buffer=20 * EXPERT),
    )
    found = fates(made)
    wanted = 2 * 3 * 400
    assert found["useful"] / wanted == pytest.approx(recall, abs=0.04)
    assert found["useful"] / (found["useful"] + found["wasted"]) == pytest.approx(0.75, abs=0.04)


def test_what_an_oracle_names_wrongly_is_neither_wanted_nor_there():
    """With a recall of 0 and hardly any precision, all others are named."""
    wanted, resident = np.arange(8) < 2, (np.arange(8) == 1) | (np.arange(8) == 3)
    known = Known(*[None] * 9, resident, None, lambda: wanted, np.random.default_rng(3))  # fmt: skip
    oracle = load_prefetcher("oracle", recall=0.0, precision=0.02)
    assert np.flatnonzero(oracle.scores(known)).tolist() == [2, 4, 5, 6, 7]
    known.resident = known.resident | wanted
    assert oracle.scores(known) is None


@pytest.mark.parametrize(
    ("scores", "words"),
    [(np.zeros(7), r"must be numbers \[8\]"), (np.full(8, np.nan), "without NaN"), ("no", "failed: ValueError")],
)
def test_a_prefetcher_that_names_what_does_not_exist_is_refused(trace, scores, words):
    class Wrong(Prefetcher):
        """Names nonsense."""

        def scores(self, known):  # noqa: ARG002
            return scores

    with pytest.raises(InputError, match=words):
        run(trace, Clocked(prefetch=Prefetch(Wrong(), 2, 5 * EXPERT)))


GUESSES = st.tuples(
    st.sampled_from(["idle", "spare", "eager"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.floats(0, 1),
    st.floats(0.2, 1),
    st.integers(0, 2**16),
    st.sampled_from(TIMINGS),
    st.booleans(),
    st.integers(0, 12),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GUESSES)
def test_every_guess_has_one_fate_and_every_byte_one_kind(tmp_path, case):
    when, lanes, batch, recall, precision, seed, timing, drop, room = case
    trace = tiny_mixture.write(tmp_path / "t.safetensors", seed=seed)
    options = prefetch(
        *("oracle", 3, 6 * EXPERT), recall=recall, precision=precision, when=when, lanes=lanes, batch=batch,
        drop_late=drop, seed=seed,
    )  # fmt: skip
    dev = COSTLY.replace(**{"flash.queue_depth": 4})
    of = setting(room, "lru", length=12, buffer=6 * EXPERT)
    made, times = run(trace, options, of=of, dev=dev, timing=timing, traced=None)
    spans = [span for span in times.spans if span.step >= 0]
    read = {
        kind: sum(s.bytes for s in spans if s.resource == "flash" and s.kind == kind) for kind in ("demand", "guess")
    }
    assert read["demand"] == pytest.approx((made.flash_static + made.flash_read_bytes).sum())
    assert read["guess"] == pytest.approx(made.guessed.bytes.sum())
    used, found = made.units
    assert (used + found).sum() == 12 * 3 * 2
    assert made.guessed.useful.sum() + made.guessed.late.sum() <= used.sum()
    assert made.guessed.reads.sum() * EXPERT == made.guessed.bytes.sum()
    begun = made.guessed.useful + made.guessed.late + made.guessed.wasted
    assert 0 <= begun.sum() * EXPERT - made.guessed.bytes.sum() <= 6 * EXPERT  # what the end of the run cut short
    again, same_times = run(trace, options, of=of, dev=dev, timing=timing, traced=None)
    assert same_times.spans == times.spans
    assert (again.guessed.dropped == made.guessed.dropped).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GUESSES, st.integers(1, 4), st.sampled_from(["first-come", "round-robin"]), st.integers(0, 3), st.booleans())
def test_whatever_meets_spans_add_up_to_what_is_told(tmp_path, case, streams, turns, draft, contention):
    """Streams, drafts, guesses and contention together, with interrupted compute."""
    when, lanes, batch, recall, precision, seed, timing, drop, room = case
    trace = tiny_mixture.write(tmp_path / "t.safetensors", seed=seed)
    guessing = prefetch(
        *("oracle", 3, 6 * EXPERT), recall=recall, precision=precision, when=when, lanes=lanes, batch=batch,
        drop_late=drop, seed=seed,
    )  # fmt: skip
    drafts = Speculation(draft=draft, acceptance=0.6, verify=0.2, draft_time="0.1 ms", seed=seed) if draft else None
    options = Clocked(guessing.prefetch, streams, turns, drafts, contention)
    dev = COSTLY.replace(**{"flash.queue_depth": 4})
    of = setting(room, "lru", length=12, buffer=6 * EXPERT, streams=streams)
    made, times = run(trace, options, of=of, dev=dev, timing=timing, traced=None)
    spans = [span for span in times.spans if span.step >= 0]
    assert {span.token for span in spans} == set(range(made.rows))
    assert all(span.request_s <= span.start_s <= span.end_s for span in spans)
    assert times.parts_s.sum(axis=1) == pytest.approx(times.latency_s, rel=1e-9)
    assert (times.busy_s.sum(axis=0) <= times.elapsed_s * (1 + 1e-9)).all()
    demand = [span for span in spans if span.resource == "flash" and span.kind == "demand"]
    assert sum(span.bytes for span in demand) == pytest.approx((made.flash_static + made.flash_read_bytes).sum())
    computed = [span for span in spans if span.resource == "compute"]
    assert {span.kind for span in computed} <= {"demand", "interrupt"}
    busy = times.busy_s[:, Resource.COMPUTE].sum()
    waited = sum(span.end_s - span.request_s for span in computed) - busy
    assert times.waited_s[:, Resource.COMPUTE].sum() == pytest.approx(waited, rel=1e-6, abs=1e-9)
    again, same_times = run(trace, options, of=of, dev=dev, timing=timing, traced=None)
    assert same_times.spans == times.spans
    assert again.accepted is made.accepted or (again.accepted == made.accepted).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**16), st.sampled_from(["serial", "concurrent"]), st.integers(0, 20), st.integers(1, 4))
def test_guesses_in_idle_time_cost_at_most_a_read_a_step_and_perfect_ones_nothing(tmp_path, seed, timing, room, depth):
    trace = tiny_mixture.write(tmp_path / "t.safetensors", seed=seed)
    dev = SLOW.replace(**{"compute.layer": "150 us", "flash.queue_depth": depth})
    of = setting(room, "lru", length=12, buffer=6 * EXPERT)
    _, without = run(trace, of=of, dev=dev, timing=timing)
    _, perfect = run(trace, prefetch(buffer=6 * EXPERT), of=of, dev=dev, timing=timing)
    _, wrong = run(
        trace, prefetch(buffer=6 * EXPERT, recall=0.0, precision=0.3, units=4), of=of, dev=dev, timing=timing
    )
    assert perfect.latency_s.sum() <= without.latency_s.sum() * (1 + 1e-9)
    assert (wrong.latency_s <= without.latency_s + 3 * READ * (1 + 1e-9)).all()


# drafts


def test_drafts_are_verified_together_by_hand(trace):
    """Three drafts, all right: the four tokens want experts 0 to 5, each read once in every layer."""
    options = Clocked(speculation=Speculation(draft=3, acceptance=1.0, verify=0.5, draft_time="10 ms"))
    made, times = run(trace, options)
    assert made.accepted.tolist() == [4]
    assert (made.rows, made.tokens) == (1, 4)
    assert made.flash_misses.sum() == 3 * 6 * EXPERT
    single, alone = run(trace)
    static = timeline(plan(trace, [setting()])[0], SLOW, "serial")
    flash = 18 * READ
    compute = 2.5 * static.parts_s[0, Resource.COMPUTE] + 3 * 0.01
    union = 6 / 2 * (single.flops[0, single.is_mlp].sum() / 1e9)  # all six are computed, which takes longer than 2.5
    compute += union - 2.5 * single.flops[0, single.is_mlp].sum() / 1e9
    assert times.parts_s[0, Resource.FLASH] == pytest.approx(flash)
    assert times.parts_s[0, Resource.COMPUTE] == pytest.approx(compute)
    assert alone.latency_s.sum() > times.latency_s.sum() - compute


def test_wrong_drafts_are_drafted_again():
    found = cycles(range(10, 20), np.full(20, 10), Speculation(draft=3, acceptance=0.0))
    assert [(c.tokens, c.accepted) for c in found[:2]] == [(range(10, 14), 1), (range(11, 15), 1)]
    assert len(found) == 10
    assert found[-1].tokens == range(19, 20)
    right = cycles(range(10, 20), np.full(20, 10), Speculation(draft=3, acceptance=1.0))
    assert [(c.tokens, c.accepted) for c in right] == [(range(10, 14), 4), (range(14, 18), 4), (range(18, 20), 2)]
    two = cycles(range(4), np.array([0, 0, 2, 2]), Speculation(draft=3, acceptance=1.0))
    assert [c.tokens for c in two] == [range(2), range(2, 4)]


def test_acceptance_is_a_probability_until_the_first_that_is_wrong():
    """With 0.7 and 4 drafts, 1 + 0.7 + 0.7^2 + ... + 0.7^4 tokens come out of a verification."""
    found = cycles(range(20000), np.zeros(20000, dtype=int), Speculation(draft=4, acceptance=0.7, seed=1))
    accepted = np.mean([cycle.accepted for cycle in found[:-4]])
    assert accepted == pytest.approx(sum(0.7**n for n in range(5)), abs=0.04)


# streams


def test_streams_share_a_cache_and_wait_for_each_other_by_hand(tmp_path):
    """Two streams of two tokens, the same two experts of one layer. The second stream finds them under way."""
    shape = tiny_mixture.ModelShape(**tiny_mixture.SIZES | {"num_hidden_layers": 1}, mixture=tiny_mixture.MIXTURE)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=shape, layers=[chosen([0, 1], [2, 3], [0, 1], [2, 3])])
    fast = only_flash("0 s")
    of = setting(8, "lru", shape=shape, streams=2)
    made, times = run(trace, Clocked(streams=2), of=of, dev=fast)
    assert made.flash_misses.sum(axis=1).tolist() == [2 * EXPERT, 2 * EXPERT, 0, 0]
    assert times.latency_s == pytest.approx([2 * READ] * 4, rel=1e-6)
    assert times.waited_s[2:, Resource.FLASH] == pytest.approx([2 * READ] * 2, rel=1e-6)
    assert times.elapsed_s == pytest.approx(4 * READ, rel=1e-6)


@pytest.mark.parametrize(("turns", "ends"), [("first-come", [2, 4]), ("round-robin", [4, 4])])
def test_who_is_served_first(tmp_path, turns, ends):
    """Two streams read two experts each at the same time: one after the other, or both at half the speed."""
    shape = tiny_mixture.ModelShape(**tiny_mixture.SIZES | {"num_hidden_layers": 1}, mixture=tiny_mixture.MIXTURE)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=shape, layers=[chosen([0, 1], [2, 3])])
    fast = only_flash("0 s", **{"flash.queue_depth": 2})
    of = setting(0, "none", shape=shape, streams=2, length=2)
    _, times = run(trace, Clocked(streams=2, turns=turns), of=of, dev=fast)
    assert times.latency_s == pytest.approx([count * READ for count in ends], rel=1e-6)


# contention


def test_copies_cross_dram_beside_the_reads_and_fills_after_them(trace):
    """A step's two experts cross DRAM while they are read, and again into the cache, while the next layer goes on."""
    dev = SLOW.replace(**{"dram.flash_copies": 1, "dram.fill": "4 MB/s", "compute.layer": "5 ms"})
    of = setting(24, "lru")
    _, quiet = run(trace, of=of, dev=dev)
    made, times = run(trace, Clocked(contention=True), of=of, dev=dev, traced=None)
    missed = made.flash_misses.sum()
    copied, filled = missed / 1e9, missed / 4e6
    met = times.waited_s[:, Resource.DRAM].sum()  # where a fill and the next layer's weights share the bus
    assert met > 0
    assert quiet.latency_s.sum() - times.latency_s.sum() == pytest.approx(copied + filled - met, rel=1e-6)
    fills = [span for span in times.spans if span.kind == "fill"]
    taken_in = sum(span.bytes for span in fills if span.end_s - span.start_s > 40e-6)
    assert taken_in == missed - 2 * EXPERT  # the last fill outlasts the run


def test_a_unit_that_is_being_filled_in_is_waited_for(tmp_path):
    """One layer: the next token wants the same experts at once, and waits until the cache has taken them in."""
    shape = tiny_mixture.ModelShape(**tiny_mixture.SIZES | {"num_hidden_layers": 1}, mixture=tiny_mixture.MIXTURE)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=shape, layers=[chosen([0, 1], [0, 1])])
    fast = only_flash("0 s", **{"dram.fill": "1 kB/s"})
    of = setting(8, "lru", shape=shape, length=2)
    _, times = run(trace, Clocked(contention=True), of=of, dev=fast)
    assert times.latency_s == pytest.approx([2 * READ, 2 * EXPERT / 1e3], rel=1e-6)


def test_requests_find_servers_busy_where_there_is_contention(trace):
    for timing in TIMINGS:
        dev = SLOW.replace(**{"dram.bandwidth": "2 MB/s", "dram.flash_copies": 2, "dram.fill": "1 MB/s"})
        _, times = run(trace, Clocked(contention=True), of=setting(24, "lru"), dev=dev, timing=timing)
        assert times.waited_s[:, Resource.DRAM].sum() > 0


# tiers and units

CARD = {"flash.capacity": "768 B", "tiers": [{"name": "card", "bandwidth": "100 kB/s", "command_time": "1 ms"}]}


def test_a_card_behind_flash_by_hand(trace):
    """Flash holds four experts, at first 0 to 3 of the first layer; each token's six throw out those before."""
    made, times = run(trace, dev=SLOW.replace(**CARD))
    assert times.resources == ("flash", "dram", "compute", "card")
    assert made.tier_bytes[:, 0].tolist() == [4 * EXPERT, *[6 * EXPERT] * 3]
    assert times.parts_s[:, 3] == pytest.approx([n * (1e-3 + EXPERT / 100e3) for n in (4, 6, 6, 6)])
    big = SLOW.replace(**CARD | {"flash.capacity": "3456 B"})  # 18: two layers, and 0 and 1 of the third
    made, times = run(trace, dev=big)
    assert made.tier_bytes[:, 0].tolist() == [0, 2 * EXPERT, 0, 4 * EXPERT]  # 4 and 5 of the first layer had left
    assert times.parts_s[2, Resource.FLASH] == pytest.approx(6 * READ)
    made, _ = run(trace, dev=SLOW.replace(**CARD | {"flash.capacity": "4608 B"}))
    assert made.tier_bytes.sum() == 0  # it holds everything


def test_a_tier_above_dram_by_hand(trace):
    sram = {"tiers": [{"name": "sram", "bandwidth": "1 TB/s", "capacity": "2304 B"}]}  # 12 experts, those of two tokens
    of = setting(24, "lru")
    made, times = run(trace, of=of, dev=SLOW.replace(**sram))
    _, without = run(trace, of=of, dev=SLOW)
    assert made.tier_bytes[:, 0].tolist() == [0, 0, 6 * EXPERT, 0]
    saved = np.array([0, 0, 6 * EXPERT * (1 / 1e9 - 1 / 1e12), 0])
    assert without.latency_s - times.latency_s == pytest.approx(saved, abs=1e-15)


@pytest.mark.slow
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**16), st.integers(0, 24), st.sampled_from(TIMINGS))
def test_a_larger_tier_is_never_slower(tmp_path, seed, room, timing):
    trace = tiny_mixture.write(tmp_path / "t.safetensors", seed=seed)
    of = setting(10, "lru", length=12)

    def total(flash, sram):
        tiers = [{"name": "sram", "bandwidth": "1 TB/s", "capacity": f"{sram * EXPERT} B"}, *CARD["tiers"]]
        dev = SLOW.replace(**{"flash.capacity": f"{flash * EXPERT} B", "tiers": tiers})
        return run(trace, of=of, dev=dev, timing=timing)[1].latency_s.sum()

    base = total(room + 1, 3)
    assert total(room + 3, 3) <= base * (1 + 1e-9)
    assert total(room + 1, 8) <= base * (1 + 1e-9)


@pytest.mark.slow
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**16), st.integers(0, 24), st.sampled_from(TIMINGS), st.booleans())
def test_more_bandwidth_and_more_lanes_are_never_slower(tmp_path, seed, room, timing, guessed):
    """With perfect guesses or none, beside fills and copies; a later token may only begin earlier."""
    trace = tiny_mixture.write(tmp_path / "t.safetensors", seed=seed)
    of = setting(room, "lru", length=12, buffer=6 * EXPERT)
    options = replace(prefetch(buffer=6 * EXPERT) if guessed else Clocked(), contention=True)
    dev = SLOW.replace(**{"dram.flash_copies": 1, "dram.fill": "2 MB/s", "dram.bandwidth": "20 MB/s",
                          "flash.latency": "300 us", "flash.queue_depth": 2})  # fmt: skip
    slow = run(trace, options, of=of, dev=dev, timing=timing)[1].latency_s.sum()
    for field, value in (("flash.read_bandwidth", "3 MB/s"), ("dram.bandwidth", "70 MB/s"), ("flash.queue_depth", 4)):
        fast = run(trace, options, of=of, dev=dev.replace(**{field: value}), timing=timing)[1].latency_s.sum()
        assert fast <= slow * (1 + 1e-9), field


def test_a_unit_computes_its_steps(trace):
    """An NPU of ten times the rate computes attention and lm_head, and is another resource."""
    npu = {"compute.units": {"npu": {"throughput": "10 GFLOP/s", "runs": ["attention", "lm_head"]}}}
    made, times = run(trace, dev=SLOW.replace(**npu))
    _, without = run(trace)
    runs = made.flops[:, ~made.is_mlp].sum(axis=1)
    assert times.busy_s[:, 3] == pytest.approx(runs / 10e9 + 3 * 1e-3)
    assert without.latency_s - times.latency_s == pytest.approx(0.9 * runs / 1e9)


def test_tiers_out_of_order_are_refused():
    fast, slow = (
        {"name": name, "bandwidth": rate, "capacity": "1 kB"} for name, rate in (("a", "2 TB/s"), ("b", "1 TB/s"))
    )
    for wrong, words in (
        ({"tiers": [slow, fast]}, "in order of bandwidth"),
        ({"tiers": [fast | {"bandwidth": "30 MB/s"}]}, "slower than DRAM and faster than Flash"),
        ({"tiers": [{"name": "a", "bandwidth": "2 TB/s"}]}, "need a capacity"),
        ({"tiers": CARD["tiers"]}, "needs flash.capacity"),
        ({"flash.capacity": "1 kB"}, "needs flash.capacity, and flash.capacity a tier"),
        ({"tiers": [fast | {"name": "dram"}]}, "names of their own"),
    ):
        with pytest.raises(InputError, match=words):
            SLOW.replace(**wrong)


def test_a_rule_that_knows_the_future_is_refused(trace):
    with pytest.raises(InputError, match="belady needs to know all masks beforehand"):
        run(trace, prefetch(), of=setting(24, "belady", buffer=10 * EXPERT))


# what a review found


def test_what_comes_from_a_card_is_waited_for_by_others(tmp_path):
    """Two streams want the same experts, which the card reads for 1 ms and 1.92 ms each: both have them then."""
    shape = tiny_mixture.ModelShape(**tiny_mixture.SIZES | {"num_hidden_layers": 1}, mixture=tiny_mixture.MIXTURE)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=shape, layers=[chosen([6, 7], [6, 7])])
    of = setting(8, "lru", shape=shape, streams=2, length=2)
    made, times = run(trace, Clocked(streams=2), of=of, dev=only_flash("0 s", **CARD))
    both = 2 * (1e-3 + EXPERT / 100e3)
    assert times.latency_s == pytest.approx([both, both], rel=1e-6)
    assert times.waited_s[:, 3] == pytest.approx([0, both], rel=1e-6)
    assert made.tier_reads.tolist() == [[2], [0]]


def spans_of(times, resource):
    return [span for span in times.spans if span.resource == resource and span.step >= 0]


def test_with_contention_every_byte_crosses_dram_once(tmp_path):
    """A dense layer before two with experts: what is read whole crosses DRAM as it does without contention."""
    shape = tiny_mixture.shape(dense_layers=(0,))
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=shape)
    dev = SLOW.replace(**{"dram.flash_copies": 2, "dram.fill": "4 MB/s"})
    of = setting(2, "lru", shape=shape, length=12)
    made, times = run(trace, Clocked(contention=True), of=of, dev=dev, traced=None)
    moved = sum(span.bytes for span in spans_of(times, "dram"))
    crossed = made.dram_bytes.sum() + 2 * (made.flash_static + made.flash_read_bytes).sum()
    filled = made.flash_misses[:, [step == "expert" for step in made.step]].sum()
    assert made.flash_static.sum() > 0
    assert moved == pytest.approx(crossed + filled, abs=4 * EXPERT)  # the last fills outlast the run
    assert len(set(spans_of(times, "dram"))) == len(spans_of(times, "dram"))
    assert (times.busy_s.sum(axis=0) <= times.elapsed_s * (1 + 1e-9)).all()


def test_a_guess_crosses_dram_as_any_read(trace):
    dev = SLOW.replace(**{"dram.flash_copies": 1})
    made, times = run(trace, prefetch(), dev=dev, traced=None)
    copied = [span for span in spans_of(times, "dram") if span.kind == "fill"]
    assert sum(span.bytes for span in copied) == made.guessed.bytes.sum() == 22 * EXPERT


def test_prompts_of_several_sequences_take_what_the_plan_says(tmp_path):
    trace = tiny_mixture.write(
        tmp_path / "t.safetensors", starts=(0, 4, 8), prompts=((0, 2), (4, 7), (8, 9), (10, 11)), seed=5
    )
    like = Setting(load_policy("experts"), SHAPE.static_bytes(12) + 9 * EXPERT, "lru", scope="model", start="warm")
    same(trace, like, COSTLY)
    of = replace(like, streams=2, dram_bytes=SHAPE.static_bytes(12, 2) + 9 * EXPERT)
    made, times = run(trace, Clocked(streams=2), of=of, dev=COSTLY)
    assert made.encoded.found >= 0
    assert times.ttft_s > 0
    alone, _ = run_on_clock(trace, replace(of, streams=1), COSTLY, "serial", Clocked())
    assert made.encoded.wanted == alone.encoded.wanted


def test_waiting_for_a_fill_is_waiting_for_dram(tmp_path):
    shape = tiny_mixture.ModelShape(**tiny_mixture.SIZES | {"num_hidden_layers": 1}, mixture=tiny_mixture.MIXTURE)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=shape, layers=[chosen([0, 1], [0, 1])])
    of = setting(8, "lru", shape=shape, length=2)
    _, times = run(trace, Clocked(contention=True), of=of, dev=only_flash("0 s", **{"dram.fill": "1 kB/s"}))
    assert times.parts_s[1, Resource.DRAM] + times.parts_s[1, 3] == pytest.approx(times.latency_s[1], rel=1e-6)
    assert times.waited_s[1, Resource.FLASH] == 0


def test_drafts_compute_what_each_token_computes(trace):
    made, _ = run(trace, Clocked(speculation=Speculation(draft=3, acceptance=1.0, verify=1.5)))
    single, alone = run(trace)
    assert made.flops[:, made.is_mlp].sum() == pytest.approx(single.flops[:, single.is_mlp].sum())
    assert made.flops.sum() == pytest.approx(single.flops.sum(), rel=0.03)  # but for the context of later ones
    assert (made.uses == single.uses).all()
    _, slow = run(trace, Clocked(speculation=Speculation(draft=3, acceptance=1.0, verify=5.0)))
    compute = alone.parts_s[0, Resource.COMPUTE]
    assert slow.parts_s[0, Resource.COMPUTE] == pytest.approx(16 * compute, rel=1e-6)


def test_a_late_guess_that_is_wanted_is_read_as_demand_even_if_late_ones_are_kept(trace):
    fast = only_flash("100 us")
    kept, dropped = (run(trace, prefetch(drop_late=drop), dev=fast) for drop in (False, True))
    assert kept[1].latency_s == pytest.approx(dropped[1].latency_s)
    assert fates(kept[0]) == fates(dropped[0])


def test_only_the_lanes_of_the_device_are_there():
    curves = {1: [["100 B", "1 MB/s"], ["1 kB", "1 MB/s"]], 4: [["100 B", "4 MB/s"], ["1 kB", "4 MB/s"]]}
    flash = device(**{"flash": {"read_curves": curves, "lanes": 4}}).flash
    assert flash.most_under_way == 4
    assert [flash.throughput(lanes, 500.0) for lanes in (1, 2, 4)] == pytest.approx([1e6, 2e6, 4e6])
    latent = device(**{"flash.read_bandwidth": "1 MB/s", "flash.latency": "1 ms", "flash.queue_depth": 8}).flash
    assert latent.most_under_way == 8
    assert [latent.throughput(reads, 1000.0) for reads in (1, 2, 3)] == pytest.approx([0.5e6, 1e6, 1e6])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tiers": [{"name": "latency", "bandwidth": "2 TB/s", "capacity": "1 kB"}]}, "names of their own"),
        ({"tiers": [{"name": "My SRAM", "bandwidth": "2 TB/s", "capacity": "1 kB"}]}, "tiers"),
        ({"compute.units": {"npu": {"throughput": "1 TFLOP/s", "runs": ["ffn"]}}}, "compute.units.npu.runs"),
        (
            {"compute.units": {n: {"throughput": "1 TFLOP/s", "runs": ["expert"]} for n in ("a", "b")}},
            "a step is run by two units",
        ),
    ],
)
def test_tiers_and_units_that_cannot_be_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        SLOW.replace(**changes)


def test_a_hot_device_is_slower_in_all_its_parts():
    npu = {"compute.units": {"npu": {"throughput": "10 GFLOP/s", "runs": ["attention"]}}, "sustained.flash": 0.5,
           "sustained.dram": 0.25, "sustained.compute": 0.1}  # fmt: skip
    tiers = [{"name": "sram", "bandwidth": "2 TB/s", "capacity": "1 kB"}, *CARD["tiers"]]
    cold = SLOW.replace(**npu, **CARD | {"tiers": tiers})
    hot = cold.hot()
    assert [tier.bandwidth for tier in hot.tiers] == [0.5e12, 50e3]
    assert hot.compute.units["npu"].throughput == 1e9
    assert cold.scaled(0.5, "x").tiers[1].command_time == 0.5e-3
