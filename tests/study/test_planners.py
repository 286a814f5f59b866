"""A sweep gives each point to the first planner that is able; who planned it does not show."""

import pytest
from tiny import SHAPE

from dipsim.basics.fields import parse
from dipsim.planning.planner import CpuPlanner
from dipsim.study.experiment import Experiment, policy_entries, set_parameter
from dipsim.study.points import points
from dipsim.study.sweep import _divide, sweep


class Choosy(CpuPlanner):
    """Plans only what it likes."""

    task = "planning a few"
    all_together = True

    def __init__(self, likes):
        self.likes, self.planned = likes, []

    def able(self, trace, setting, tokens):
        assert (trace.shape, tokens) == (SHAPE, 7)
        return self.likes(setting)

    def fill(self, trace, builders, layers, progress):
        self.planned += [(builder.setting.policy.name, builder.setting.eviction) for builder in builders]
        super().fill(trace, builders, layers, progress)


@pytest.fixture
def chosen(tiny_trace):
    data = {"trace": str(tiny_trace().path), "tokens": 7, "policies": ["dense", "dip", {"dip-ca": {"gamma": 0.3}}]}
    data["sweep"] = {"dram": ["2 kB", "4 kB"], "eviction": ["lru", "lfu"]}
    return parse(Experiment, data, "exp.yaml")


def test_points_go_to_the_first_able_planner_and_the_table_is_the_same(chosen, tmp_path):
    choosy = Choosy(lambda setting: setting.policy.name == "dip" and setting.eviction == "lru")
    steps = []
    alone = sweep(chosen, tmp_path / "alone")
    shared = sweep(
        chosen, tmp_path / "shared", planners=[choosy, CpuPlanner()], progress=lambda *step: steps.append(step)
    )
    assert shared.equals(alone)
    assert choosy.planned == [("dip", "lru")] * 2
    assert ("planning a few", 4, 4) in steps  # two sizes, two layers
    assert ("planning layers", 12, 12) in steps  # dip with lfu, dip-ca with both


def test_nothing_is_left_or_planned_twice(chosen):
    wanted = points(chosen)
    first, second = Choosy(lambda setting: setting.eviction == "lfu"), CpuPlanner()
    (_, mine), (_, left) = _divide(wanted, [first, second])
    assert [point.key for point in mine] == [point.key for point in wanted if point.cell.eviction == "lfu"]
    assert {point.key for point in mine} | {point.key for point in left} == {point.key for point in wanted}
    assert len(mine) + len(left) == len(wanted) == 12


def test_what_depends_on_the_clock_goes_to_the_last(chosen):
    data = chosen.resolved() | {"read_through": False, "contention": True}
    wanted = points(parse(Experiment, data, "exp.yaml"))
    assert all(point.on_clock for point in wanted)
    planners = [Choosy(lambda _: True), Choosy(lambda _: True), CpuPlanner()]
    assert [len(mine) for _, mine in _divide(wanted, planners)] == [0, 0, 12]


def test_parameters_are_set_wherever_a_policy_is_named(chosen):
    entries = policy_entries(
        chosen.resolved() | {"policies": ["dip", {"./my_own.py": {"a": 1}}, {"dip": {"keep": 0.9}}]}
    )
    assert set_parameter(entries, "my-own", "b", 2)
    assert set_parameter(entries, "dip", "keep", 0.6)
    assert not set_parameter(entries, "dense", "keep", 0.5)
    assert entries == [{"dip": {"keep": 0.6}}, {"./my_own.py": {"a": 1, "b": 2}}, {"dip": {"keep": 0.6}}]
