"""A server's lanes by hand: who gets them, who waits, and how fast requests are that meet."""

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from dipsim.timing.server import DEMAND, IDLE, SPARE, TICKS, Server


def play(asks, **server):
    """(begin, end, waited) in seconds of requests, each (when, seconds, how it is asked), to one server."""
    env = simpy.Environment()
    one, jobs = Server(env, **server), [None] * len(asks)

    def ask(index, when, seconds, how):
        yield env.timeout(round(when * TICKS))
        jobs[index] = one.ask(seconds, **how)

    for index, each in enumerate(asks):
        env.process(ask(index, *each))
    env.run()
    return [(job.begin / TICKS, job.end / TICKS, job.waited / TICKS) for job in jobs], jobs


def times(asks, **server):
    return [pytest.approx(each) for each in play(asks, **server)[0]]


def linear(lanes, _size):
    return lanes


def constant(_lanes, _size):
    return 1.0


def test_one_flow_is_served_in_order_however_many_lanes_are_free():
    assert times([(0, 3, {"full": 1}), (1, 2, {"full": 1})], lanes=4) == [(0, 3, 0), (3, 5, 2)]


def test_flows_share_what_lanes_there_are():
    """Of four lanes the first takes three for 3 s; the second would use two, has one, and then both: 3 of 4 s' work."""
    first, second = (0, 3, {"full": 3, "flow": 1}), (0, 2, {"full": 2, "flow": 2})
    assert times([first, second], lanes=4, rate=linear) == [(0, 3, 0), (0, 3.5, 1.5)]


def test_where_the_bus_is_saturated_lanes_divide_it():
    """Three lanes of four get three quarters of the rate, one a quarter; alone each has all of it."""
    first, second = (0, 3, {"full": 3, "flow": 1}), (0, 2, {"full": 1, "flow": 2})
    assert times([first, second], lanes=4, rate=constant) == [(0, 4, 1), (0, 5, 3)]


def test_a_fair_server_divides_its_lanes_evenly():
    asks = [(0, 2, {"flow": 1}), (0, 2, {"flow": 2}), (0, 1, {"flow": 1})]
    assert times(asks, fair=True) == [(0, 4, 2), (0, 4, 2), (4, 5, 4)]


def test_a_narrow_flow_leaves_the_rest_to_others():
    asks = [(0, 4, {"full": 1, "flow": 1}), (0, 4, {"full": 4, "flow": 2})]
    assert times(asks, lanes=4, fair=True, rate=linear) == [(0, 4, 0), (0, 5, 1)]


def test_demand_overtakes_guesses_that_have_not_begun():
    """Two guesses of 2 s, one lane for them; demand at 1 s waits for the first to end, the second for the demand."""
    guess = {"priority": SPARE, "keeps": True}
    assert times([(0, 2, guess), (0, 2, guess), (1, 3, {})], lanes=1) == [(0, 2, 0), (5, 7, 5), (2, 5, 1)]


def test_demand_takes_the_lanes_that_guesses_leave():
    """One of four lanes is a guess's for 2 s: 3 s of work of four lanes take 2 s with three, and 1.5 s with all."""
    guess = {"priority": SPARE, "keeps": True}
    assert times([(0, 2, guess), (0, 3, {"full": 4})], lanes=4, rate=linear) == [(0, 2, 0), (0, 3.5, 0.5)]


def test_guesses_have_so_many_lanes_at_most():
    guess = {"priority": SPARE, "keeps": True, "full": 1}
    assert times([(0, 2, guess)] * 3, lanes=4, limit=2, rate=linear) == [(0, 2, 0), (0, 2, 0), (2, 4, 2)]


def test_an_idle_guess_begins_only_without_demand():
    demand = (0, 2, {"full": 1, "flow": 1})
    spare, idle = ((0.5, 1, {"priority": each, "keeps": True}) for each in (SPARE, IDLE))
    assert times([demand, spare], lanes=4, rate=linear) == [(0, 2, 0), (0.5, 1.5, 0)]
    assert times([demand, idle], lanes=4, rate=linear) == [(0, 2, 0), (2, 3, 1.5)]


def test_an_eager_guess_is_served_in_its_turn():
    guess = {"priority": DEMAND, "keeps": True}
    assert times([(0, 2, {}), (0, 1, guess), (1, 2, {"flow": 2})], lanes=1) == [(0, 2, 0), (2, 3, 2), (3, 5, 2)]


def test_a_request_enters_when_it_may():
    room = iter([False, True])
    asks = [(0, 1, {"keeps": True, "priority": SPARE, "enter": lambda: next(room)}), (2, 1, {})]
    assert times(asks, lanes=2) == [(2, 3, 2), (2, 3, 0)]


def test_a_request_that_has_not_begun_is_taken_back():
    env = simpy.Environment()
    server = Server(env)
    first, second, third = (server.ask(1.0) for _ in range(3))
    server.cancel(second)
    env.run()
    assert (first.end, second.end, third.end) == (TICKS, None, 2 * TICKS)


def test_the_millionth_second_is_as_sharp_as_the_first():
    (_, (_, end, _)), (_, late) = play([(0, 1e6, {}), (1e6, 1e-9, {})])
    assert end - 1e6 == pytest.approx(1e-9, rel=0.2)  # as far as a float can say
    assert (late.end - late.begin) / TICKS == pytest.approx(1e-9, rel=1e-15)


WORK = st.lists(
    st.tuples(st.floats(0, 10), st.floats(0.01, 5), st.integers(1, 4), st.sampled_from([1, 2, "guess"])), max_size=8
)


def asked(work):
    how = {"guess": {"priority": IDLE, "keeps": True}, 1: {"flow": 1}, 2: {"flow": 2}}
    return [(when, seconds, {"full": full, "size": 1.0} | how[who]) for when, seconds, full, who in work]


@given(WORK, st.integers(1, 4), st.booleans(), st.sampled_from([linear, constant]))
def test_work_is_conserved(work, lanes, fair, rate):
    """Nobody is faster than alone, what is served is what was asked for, and a lane is never two requests'."""
    _, jobs = play(asked(work), lanes=lanes, fair=fair, rate=rate)
    for job in jobs:
        assert job.end - job.begin >= job.alone - 2
        assert job.waited >= -2
    if jobs:
        span = max(job.end for job in jobs) - min(job.begin for job in jobs)
        assert sum(job.held for job in jobs) <= span * (1 + 1e-9) + 100


@given(WORK, st.integers(1, 3))
def test_more_lanes_never_end_later(work, lanes):
    """Of demand alone, first come first served, where each lane adds as much."""
    demand = [each for each in asked(work) if not each[2].get("keeps")]
    few, more = (play(demand, lanes=count, rate=linear)[0] for count in (lanes, lanes + 1))
    latest = [max((end for _, end, _ in found), default=0.0) for found in (few, more)]
    wide = [full for *_, how in demand for full in [how["full"]] if full > lanes]
    assert wide or latest[1] <= latest[0] * (1 + 1e-9)


def read_by_read(lanes, limit, guesses, reads, when, seconds):
    """When demand of so many reads ends, an event a read: each takes a lane for `seconds`, guesses first."""
    env = simpy.Environment()
    slots, few = simpy.PriorityResource(env, lanes), simpy.Resource(env, limit)
    done = []

    def guess():
        with few.request() as one:
            yield one
            with slots.request(priority=1) as lane:
                yield lane
                yield env.timeout(seconds)

    def read():
        yield env.timeout(when)
        with slots.request(priority=0) as lane:
            yield lane
            yield env.timeout(seconds)
        done.append(env.now)

    for _ in range(guesses):
        env.process(guess())
    for _ in range(reads):
        env.process(read())
    env.run()
    return max(done)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 8), st.integers(1, 12), st.floats(0, 6))
def test_shares_of_lanes_are_what_reads_find_one_by_one(lanes, limit, guesses, reads, when):
    """Within the time of a read: a batch is a fluid, and its last reads are not whole rounds."""
    guess = (0, 1, {"full": 1, "size": 1.0, "priority": SPARE, "keeps": True})
    batch = (when, reads / min(reads, lanes), {"full": reads, "size": 1.0, "flow": 1})
    found, _ = play([guess] * guesses + [batch], lanes=lanes, limit=min(limit, lanes), rate=linear)
    assert found[-1][1] == pytest.approx(read_by_read(lanes, min(limit, lanes), guesses, reads, when, 1.0), abs=1.001)
