import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import SHAPE, activations

from dipsim.basics import assets
from dipsim.basics.errors import InputError
from dipsim.sparsity.plugins import load_policy
from dipsim.sparsity.policy import Group, Policy, whole_matrices
from dipsim.sparsity.ranking import top_k
from dipsim.sparsity.selection import blind_masks, checked_groups
from dipsim.workload.shape import MATRICES

ACTS = activations(tokens=5)[0]


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.integers(0, 3)), st.data())
def test_top_k_takes_exactly_k_lowest_index_first(scores, data):
    k = data.draw(st.integers(0, scores.shape[1] + 1))
    expected = np.zeros(scores.shape, dtype=bool)
    for row, order in zip(expected, np.argsort(-scores, axis=1, kind="stable"), strict=True):
        row[order[:k]] = True
    assert (top_k(scores, k) == expected).all()
    assert (top_k(scores[0], k) == expected[0]).all()


@pytest.mark.parametrize(
    ("name", "parameters", "fraction_read"),
    [
        ("dense", {}, lambda: 1),
        ("magnitude", {"fraction": 0.5}, lambda: (2 + 0.5) / 3),
        ("gate", {"fraction": 0.25}, lambda: (1 + 2 * 0.25) / 3),
        ("up", {"fraction": 0.75}, lambda: (1 + 2 * 0.75) / 3),
        ("dip", {"keep": 0.5}, lambda: (2 * 9 / 16 + 8 / 24) / 3),  # floor(0.574 * 16), floor(0.351 * 24)
    ],
)
def test_fraction_of_the_mlp_read(name, parameters, fraction_read):
    groups = checked_groups(load_policy(name, **parameters), SHAPE)
    read = len(whole_matrices(groups)) + sum(len(g.matrices) * g.k / SHAPE.axis_size(g.axis) for g in groups)
    assert read / 3 == pytest.approx(fraction_read())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("magnitude", lambda a: np.abs(a.glu)),
        ("gate", lambda a: np.abs(a.gate)),
        ("up", lambda a: np.abs(a.up_proj)),
    ],
)
def test_neuron_scores(name, expected):
    policy = load_policy(name)
    assert (policy.scores(policy.groups(SHAPE)[0], ACTS) == expected(ACTS)).all()


def test_dip_split_is_that_of_the_paper():
    dip = load_policy("dip", keep=0.5)
    assert dip.p_in == pytest.approx(0.57438, abs=1e-5)
    assert dip.p_glu == pytest.approx(0.35124, abs=2e-5)
    inputs, neurons = dip.groups(SHAPE)
    assert (dip.scores(inputs, ACTS) == np.abs(ACTS.mlp_input)).all()
    assert (dip.scores(neurons, ACTS) == np.abs(ACTS.glu)).all()
    assert (load_policy("dip", keep=1).p_in, load_policy("dip", keep=1).p_glu) == (1, 1)


def test_dip_ca_reweights_only_what_is_absent_and_not_among_the_best():
    scores, resident = np.float32([8, 6, 4, 2]), np.array([False, True, False, True])
    assert load_policy("dip-ca", gamma=0.5).rerank(scores, resident).tolist() == [4, 6, 2, 2]
    assert load_policy("dip-ca", gamma=0.5, fixed_top_n=1).rerank(scores, resident).tolist() == [8, 6, 2, 2]
    assert load_policy("dip-ca", gamma=1).rerank(scores, resident).tolist() == scores.tolist()


def test_gamma_warms_up_over_the_first_tokens():
    scores, resident = np.float32([8, 6, 5, 2]), np.array([False, False, True, True])
    dip_ca = load_policy("dip-ca", gamma=0.5, warmup=10)
    group = Group("g", ("down_proj",), "neuron", 2)
    chosen = [np.flatnonzero(dip_ca.at(position).select(group, scores, resident)).tolist() for position in (0, 5, 10)]
    assert chosen == [[0, 1], [0, 2], [0, 2]]  # 6 * gamma falls below 5 at gamma 0.83
    assert dip_ca.rerank(scores, resident).tolist() == [4, 3, 5, 2]


def test_approximate_caching_fills_class_by_class():
    scores = np.float32([9, 8, 7, 6, 5, 4, 3])
    resident = np.array([False, False, True, False, True, False, True])
    group = Group("g", ("down_proj",), "neuron", 4)

    def chosen(**parameters):
        mask = load_policy("dip-ca-approx", **parameters).select(group, scores, resident)
        return np.flatnonzero(mask).tolist()

    assert chosen(reach=1) == [0, 1, 2, 3]  # residents among the best first, then the rest of the best
    assert chosen(reach=1.25) == [0, 1, 2, 4]  # 5 best reach column 4, which is resident
    assert chosen(reach=2) == [0, 2, 4, 6]
    assert chosen(reach=2, fixed_top_n=2) == [0, 1, 2, 4]


def test_threshold_keeps_k_on_average():
    policy = load_policy("dip-threshold", keep=0.5)
    rng = np.random.default_rng(0)
    scores = rng.random((200, 24)).astype(np.float32) * rng.random((200, 1)).astype(np.float32)
    group = policy.groups(SHAPE)[1]
    kept = blind_masks(group, scores).sum(axis=1)
    assert kept.mean() == pytest.approx(group.k, abs=0.05)
    assert kept.std() > 1
    assert (blind_masks(group, scores, limit=0.5) == (scores >= 0.5)).all()


NEEDY = ("predictor", "fewer-experts", "precision")  # which have parameters without a default


def test_only_some_are_cache_aware_and_labels_tell_what_was_set():
    aware = {name for name in assets.names("policies") if name not in NEEDY and load_policy(name).cache_aware}
    assert aware == {"dip-ca", "dip-ca-approx", "drop-cold", "low-bit", "cache-prior"}
    assert load_policy("dip-ca", gamma=0.2, keep=0.5).label == "dip-ca(keep=0.5, gamma=0.2)"
    assert load_policy("dense").label == "dense"


@pytest.mark.parametrize(
    ("name", "parameters", "complaint"),
    [
        ("dip", {"keep": 0}, "policy dip: keep"),
        ("dip", {"keep": 1.5}, "policy dip: keep"),
        ("dip", {"keep": float("nan")}, "policy dip: keep"),
        ("dip", {"keep": True}, "policy dip: keep"),
        ("dip", {"kep": 0.5}, "kep: unknown key"),
        ("dip", {"name_or_path": 0.5}, "name_or_path: unknown key"),
        ("dip-ca", {"gamma": 0}, "gamma"),
        ("dip-ca", {"fixed_top_n": -1}, "fixed_top_n"),
        ("magnitude", {"fraction": "half"}, "fraction"),
        ("dop", {}, r"dop: no such policy \(did you mean dip\?\); shipped: cache-prior, dense, dip, dip-ca"),
        ("./missing.py", {}, "no such file"),
    ],
)
def test_wrong_parameters_are_one_line(name, parameters, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        load_policy(name, **parameters)
    assert "\n" not in str(error.value)


PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from dipsim import Group, Policy
@dataclass
class Note:
    text: str
class Mine(Policy):
    fraction: float = 0.5
    def groups(self, shape):
        return [Group("neuron", ("down_proj",), "neuron", {k})]
    def scores(self, group, acts):
        {body}
"""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("x = (", "cannot be imported: SyntaxError"),
        ("import nothing_like_this", "cannot be imported: ModuleNotFoundError"),
        ("x = 1", "exactly one subclass of dipsim.Policy .found none"),
        ("from dipsim import Policy\nclass A(Policy): pass\nclass B(Policy): pass", "found A, B"),
    ],
)
def test_broken_plugins_are_one_line(tmp_path, content, complaint):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(InputError, match=complaint) as error:
        load_policy(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("groups", "complaint"),
    [
        ("[Group('whole', ('down_proj',), 'neuron', 3)]", "group whole: that name is taken"),
        ("None", "groups failed: TypeError"),
        ("['a']", "is not a Group"),
        ("[Group('a', ['down_proj'], 'neuron', 3)]", "is not a Group of a tuple"),
        ("[Group('a', (), 'neuron', 3)]", "is not a Group of a tuple"),
        ("exit(0)", "groups failed in line 3: SystemExit"),
    ],
)
def test_groups_that_make_no_sense(tmp_path, groups, complaint):
    path = tmp_path / "mine.py"
    path.write_text(f"from dipsim import Group, Policy\nclass Mine(Policy):\n def groups(self, shape): return {groups}")
    with pytest.raises(InputError, match=complaint):
        checked_groups(load_policy(path), SHAPE)


@pytest.mark.parametrize("k", ["-1", "25", "1000", "3.5"])
def test_a_plugin_cannot_keep_more_than_there_is(tmp_path, k):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(k=k, body="return abs(acts.glu)"))
    with pytest.raises(InputError, match="k must be a whole number from 0 to 24"):
        checked_groups(load_policy(path), SHAPE)


def test_whatever_a_plugin_raises_about_its_parameters_is_one_line(tmp_path):
    code = "from math import exp\nfrom dipsim import Policy\n\nclass Mine(Policy):\n    by: float = 2\n\n"
    (tmp_path / "mine.py").write_text(f"{code}    def model_post_init(self, context): exp(self.by)\n")
    load_policy(tmp_path / "mine.py", by=700)
    with pytest.raises(
        InputError, match=r"^policy mine: cannot be made with by=710 \(OverflowError: math range error\)$"
    ):
        load_policy(tmp_path / "mine.py", by=710)


def test_a_plugin_may_build_on_a_shipped_policy(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from dipsim.policies.dip import Dip\nclass Mine(Dip):\n    extra: int = 3\n")
    mine = load_policy(path, keep=0.5, extra=4)
    assert (mine.label, mine.p_in) == ("mine(keep=0.5, extra=4)", load_policy("dip", keep=0.5).p_in)


def test_matrices_appear_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dipsim import Group, Policy\nclass Mine(Policy):\n def groups(self, shape):\n"
        "  return [Group('a', ('up_proj',), 'neuron', 1), Group('b', ('up_proj', 'down_proj'), 'neuron', 1)]"
    )
    with pytest.raises(InputError, match="appears twice"):
        checked_groups(load_policy(path), SHAPE)
    path.write_text(path.read_text().replace("'neuron'", "'input'"))
    with pytest.raises(InputError, match="'down_proj' cannot be read by 'input'"):
        checked_groups(load_policy(path), SHAPE)
    assert whole_matrices(()) == MATRICES


def test_a_policy_is_called_as_its_file_and_otherwise_as_its_class(tmp_path):
    path = tmp_path / "my_own.py"
    path.write_text("from dipsim import Policy\nclass Whatever(Policy):\n    weight: float = 0.5\n")
    own = load_policy(path, weight=0.25)
    assert (own.name, own.label, own.shipped) == ("my-own", "my-own(weight=0.25)", False)
    assert (load_policy("dip-ca").name, load_policy("dip_ca").shipped) == ("dip-ca", True)

    class Here(Policy):
        pass

    assert (Here().label, Here().shipped) == ("here", False)


def test_a_plugin_that_breaks_leaves_the_one_before_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from dipsim import Policy\nclass Mine(Policy):\n    a: int = 1\n")
    before = load_policy(path)
    path.write_text("1 / 0")
    with pytest.raises(InputError, match=r"mine\.py: cannot be imported: ZeroDivisionError"):
        load_policy(path)
    assert sys.modules[type(before).__module__].Mine is type(before)
