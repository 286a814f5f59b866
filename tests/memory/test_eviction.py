"""The registry of eviction rules: one class is enough, also for rules that see admissions and hits."""

from collections import deque

import numpy as np
import pytest
from oracles import libcachesim_hits, zipf_stream
from tiny import SHAPE

from dipsim.basics.errors import InputError
from dipsim.memory.cache import ColumnCache, replay
from dipsim.memory.eviction import RULES, eviction_rule
from dipsim.memory.eviction.belady import Belady
from dipsim.memory.eviction.rule import EvictionRule
from dipsim.memory.stack_distance import hit_curve, hits_at
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.sparsity.ranking import least


@pytest.fixture
def rules():
    """Rules as a user would add them, each one class; the registry forgets them afterwards."""
    before = dict(RULES)

    class Fifo(EvictionRule):
        name = "fifo"

        def admit(self, mask, hits, resident):
            self.count_token()
            self.value[resident & (mask ^ hits)] = self.token

    class Clock(EvictionRule):
        name = "clock"

        def __init__(self, columns, masks=None):
            super().__init__(columns)
            self.value = self.value.astype(np.int64)  # places in the queue
            self.used = np.zeros(columns, dtype=bool)

        def use(self, mask, hits):
            self.used |= hits

        def admit(self, mask, hits, resident):
            entering = np.flatnonzero(resident & (mask ^ hits))
            self.used[entering] = False
            self.value[entering] = self.token + 1 + np.arange(len(entering))
            self.token += len(entering)

        def victims(self, among, count):
            queue = deque(sorted(np.flatnonzero(among).tolist(), key=lambda column: self.value[column]))
            leaving = np.zeros_like(among)
            while leaving.sum() < count:
                column = queue.popleft()
                if self.used[column]:  # a second chance
                    self.used[column] = False
                    self.token += 1
                    self.value[column] = self.token
                    queue.append(column)
                else:
                    leaving[column] = True
            return leaving

    class S3Fifo(EvictionRule):
        """A small queue for newcomers, a main queue for columns that came back, a memory of those that left."""

        name = "s3-fifo"

        def __init__(self, columns, masks=None):
            super().__init__(columns)
            self.small, self.main, self.ghost = deque(), deque(), deque(maxlen=columns // 2)
            self.uses = np.zeros(columns, dtype=int)

        def use(self, mask, hits):
            self.uses[hits] = np.minimum(self.uses[hits] + 1, 3)

        def admit(self, mask, hits, resident):
            for column in np.flatnonzero(resident & (mask ^ hits)).tolist():
                (self.main if column in self.ghost else self.small).append(column)
                self.uses[column] = 0

        def victims(self, among, count):
            leaving = np.zeros_like(among)
            while leaving.sum() < count:
                queue = self.small if len(self.small) > 0.1 * (len(self.small) + len(self.main)) else self.main
                if not any(among[column] for column in queue):
                    queue = self.main if queue is self.small else self.small
                column = queue.popleft()
                if not among[column] or (queue is self.main and self.uses[column]):
                    self.uses[column] -= bool(self.uses[column])
                    queue.append(column)
                elif queue is self.small and self.uses[column] > 1:
                    self.main.append(column)
                else:
                    leaving[column] = True
                    self.ghost.append(column)
            return leaving

    yield {"fifo": Fifo, "clock": Clock, "s3-fifo": S3Fifo}
    RULES.clear()
    RULES.update(before)


@pytest.mark.parametrize("capacity", [1, 2, 5, 20, 45])
@pytest.mark.parametrize(("name", "peer"), [("fifo", "FIFO"), ("clock", "Clock")])
def test_a_rule_of_one_class_agrees_with_libcachesim_request_by_request(rules, name, peer, capacity):
    columns = zipf_stream(tokens=2000, columns=60, seed=capacity)
    masks = columns[:, None] == np.arange(60)
    assert eviction_rule(name) is rules[name]
    assert replay(masks, capacity, name).astype(bool).tolist() == libcachesim_hits(peer, columns, capacity)


@pytest.mark.parametrize("name", ["fifo", "clock", "s3-fifo"])
def test_a_rule_of_ones_own_keeps_the_caches_promises_on_whole_masks(rules, name):
    rng = np.random.default_rng(0)
    masks = rng.random((80, 30)) < rng.uniform(0.05, 0.6, 30)
    assert set(rules) < set(RULES)
    for capacity in (0, 3, 15, 29):
        cache = ColumnCache(30, capacity, name)
        for mask in masks:
            before = cache.resident
            hits = cache.step(mask)
            assert (hits == (mask & before)).all()
            assert cache.resident.sum() <= capacity
            if mask.sum() <= capacity:
                assert (cache.resident & mask).sum() == mask.sum()
    totals = {each: replay(masks, 15, each).sum() for each in (*rules, "lru", "optimal")}
    assert totals["optimal"] >= max(totals.values())
    assert len(set(totals.values())) > 3, "each of them is a rule of its own, none an LRU in disguise"


def test_a_rule_of_ones_own_plans(rules, tiny_trace):
    trace = tiny_trace()
    size = SHAPE.static_bytes(12) + 0.5 * SHAPE.mlp_bytes
    fifo, lru = plan(
        trace, [Setting(load_policy("dip-ca", gamma=0.4), size, name) for name in (*list(rules)[:1], "lru")]
    )
    assert fifo.dram_hits.sum() != lru.dram_hits.sum()
    assert (fifo.dram_bytes + fifo.flash_bytes).sum() == pytest.approx((lru.dram_bytes + lru.flash_bytes).sum())


def test_one_pass_is_only_for_stack_algorithms(rules):
    masks = np.random.default_rng(1).random((30, 12)) < 0.4
    with pytest.raises(InputError, match="fifo is no stack algorithm; use `hits_at`"):
        hit_curve(masks, "fifo")
    assert hits_at(masks, [4, 9], "fifo").T.tolist() == [replay(masks, c, "fifo").tolist() for c in (4, 9)]
    assert rules


KNOWN = "belady, lfru, lfu, lru, none, optimal, pinned, s3-fifo, slru"


@pytest.mark.parametrize("name", ["mru", "LRU", "", None])
def test_an_unknown_rule_raises_wherever_it_is_asked_for(tiny_trace, name):
    for ask in (
        lambda: ColumnCache(4, 2, name),
        lambda: replay(np.ones((2, 4), bool), 2, name),
        lambda: hits_at(np.ones((2, 4), bool), [2], name),
        lambda: plan(tiny_trace(), [Setting(load_policy("dip"), 1e6, name)]),
    ):
        with pytest.raises(InputError, match=rf"eviction: .* is not one of .*{KNOWN}"):
            ask()


def test_a_rule_that_knows_the_future_asks_for_it():
    with pytest.raises(ValueError, match="belady: needs the masks of the whole sequence"):
        Belady(4).use(np.ones(4, dtype=bool), np.zeros(4, dtype=bool))


@pytest.mark.parametrize(("among", "count"), [([1, 1, 0], 2), ([1, 1, 0], 3), ([0, 0, 0], 0)])
def test_choosing_as_many_as_there_are_ends_with_an_error(among, count):
    with pytest.raises(ValueError, match="fewer than there are can be chosen"):
        least(np.array([3, 1, 2], dtype=np.int16), np.array(among, dtype=bool), count, guess=0)
