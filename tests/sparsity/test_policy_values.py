"""What policies choose at parameters other than their defaults, worked out on paper, and what is refused."""

# ruff: noqa: ARG002  (a plugin is offered what it may not use)

from dataclasses import replace

import numpy as np
import pytest
from hand import SHAPE
from safetensors.numpy import save_file
from tiny_mixture import SHAPE as MIXTURE

from dipsim.basics.errors import InputError
from dipsim.sparsity.calibrated import NESTED
from dipsim.sparsity.plugins import load_policy
from dipsim.sparsity.policy import Group, Policy, whole_matrices
from dipsim.sparsity.ranking import score_threshold
from dipsim.sparsity.selection import (
    aware_mask,
    blind_masks,
    checked_groups,
    checked_scores,
    guarded,
    policy_bytes,
    sees_memory,
)
from dipsim.workload.shape import MATRICES
from dipsim.workload.trace import Activations

ACTS = Activations(
    np.float32([[1, -4, 2, 3]]), np.float32([[0, 8, -8, 4, 2, 1, 3, 5]]), np.float32([[9, 1, 1, 2, 8, 7, 1, 1]])
)
FOUR = Group("g", ("down_proj",), "neuron", 2)


def chosen(mask):
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize(
    ("position", "gamma"), [(0, 1), (1, 0.92), (5, 0.6), (9, 0.28), (10, 0.2), (1000, 0.2)]
)  # fmt: skip
def test_the_factor_falls_to_gamma_in_a_straight_line(position, gamma):
    assert load_policy("dip-ca", gamma=0.2, warmup=10).at(position).gamma == pytest.approx(gamma)


def test_cache_aware_scores_with_other_gammas():
    scores, resident = np.float32([10, 8, 4, 1]), np.array([False, False, True, True])
    assert load_policy("dip-ca", gamma=0.25).rerank(scores, resident).tolist() == [2.5, 2, 4, 1]
    assert load_policy("dip-ca", gamma=0.25, fixed_top_n=2).rerank(scores, resident).tolist() == [10, 8, 4, 1]
    assert chosen(load_policy("dip-ca", gamma=0.25, fixed_top_n=1).select(FOUR, scores, resident)) == [0, 2]
    assert chosen(load_policy("dip-ca", gamma=0.9).select(FOUR, scores, resident)) == [0, 1]


def test_a_class_comes_before_any_score():
    """The second is resident and among the two best, however small it is beside the first."""
    one = replace(FOUR, k=1)
    resident = np.array([False, True, False, False])
    for first in (4, 1e20):
        scores = np.float32([first, 0, 0, 0])
        assert chosen(load_policy("dip-ca-approx", reach=2).select(one, scores, resident)) == [1]
        assert chosen(load_policy("dip-ca-approx", reach=1).select(one, scores, resident)) == [0]
        assert chosen(load_policy("dip-ca-approx", reach=2, fixed_top_n=1).select(one, scores, resident)) == [0]
    assert chosen(load_policy("dip-ca-approx", reach=2).select(FOUR, np.zeros(4, np.float32), resident)) == [0, 1]


def test_a_predictor_passes_only_what_is_positive(tmp_path):
    """x A = [-4, 4] with x = [1, -4, 2, 3]; its positive part times B."""
    path = tmp_path / "p.safetensors"
    a = np.float32([[0, 0], [1, -1], [0, 0], [0, 0]])
    b = np.float32([[-9, 1, 0, 0, 0, 0, 0, 0], [1, 2, -3, 0, 0, 0, 0, 5]])
    save_file({f"layers.{layer}.{name}": value for layer in range(2) for name, value in (("A", a), ("B", b))}, path)
    policy = load_policy("predictor", weights=str(path), fraction=0.25)
    (group,) = policy.groups(SHAPE)
    assert (group.matrices, group.k) == (MATRICES, 2)
    assert policy.scores(group, ACTS).tolist() == [[4, 8, -12, 0, 0, 0, 0, 20]]
    assert policy_bytes(policy, SHAPE) == 2 * 2 * (4 * 2 + 2 * 8)
    assert policy.files() == [path]
    assert load_policy("dip", keep=0.6).files() == []


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("magnitude", {"fraction": 0.25}, [[1, 4]]),  # of |glu|, about 0, 8.0, 0, 7.9, 14, 5.1, 2.9 and 5.0
        ("gate", {"fraction": 0.25}, [[1, 7]]),
        ("up", {"fraction": 0.375}, [[0, 4, 5]]),
    ],
)
def test_the_neurons_of_one_token(name, parameters, expected):
    policy = load_policy(name, **parameters)
    (group,) = policy.groups(SHAPE)
    masks = blind_masks(group, checked_scores(policy, group, ACTS))
    assert [chosen(mask) for mask in masks] == expected


def test_a_threshold_keeps_what_reaches_it():
    """Of [1, 1, 3, 3], a quarter is above 3 at most: both threes reach it."""
    group = Group("g", ("down_proj",), "neuron", 1, threshold=True)
    scores = np.float32([[1, 1, 3, 3]])
    assert score_threshold(scores, 1) == 3
    assert chosen(blind_masks(group, scores)[0]) == [2, 3]
    assert chosen(blind_masks(group, scores, 1.0)[0]) == [0, 1, 2, 3]
    assert chosen(blind_masks(group, scores, 3.5)[0]) == []
    none = replace(group, k=0)
    assert not blind_masks(none, scores).any()
    threshold = load_policy("dip-threshold", keep=0.5).groups(SHAPE)
    assert [(each.k, each.threshold) for each in threshold] == [(2, True), (2, True)]


class Given(Policy):
    """Has the groups that it is given."""

    given: tuple = ()

    def groups(self, shape):
        return self.given


class Aware(Given):
    """Prefers what is resident."""

    def rerank(self, scores, resident):
        return scores + 10 * resident


class Chooses(Given):
    """Takes the columns that `mask` holds."""

    mask: object = None

    def select(self, group, scores, resident):
        return self.mask


EXPERT = Group("expert", MATRICES, "expert", 2)
COPIES = replace(EXPERT, copies=(1.0, 0.5))


@pytest.mark.parametrize("k", [0, 8])
def test_none_or_all_may_be_kept(k):
    group = replace(FOUR, k=k)
    assert checked_groups(Given(given=(group,)), SHAPE) == (group,)


@pytest.mark.parametrize(
    ("groups", "complaint"),
    [
        ((FOUR, replace(FOUR, matrices=("up_proj",))), "a matrix or a name appears twice"),
        ((FOUR, replace(FOUR, name="h")), "a matrix or a name appears twice"),
        ((replace(FOUR, k=9),), "k must be a whole number from 0 to 8 .got 9"),
        ((replace(FOUR, k=-1),), "k must be a whole number from 0 to 8 .got -1"),
        ((replace(FOUR, name="lm_head"),), "group lm_head: that name is taken"),
        ((replace(FOUR, name="attention"),), "group attention: that name is taken"),
        ((replace(FOUR, price=-0.1),), "price must be a score per byte, 0 or more .got -0.1"),
        ((replace(FOUR, price=float("inf")),), "price must be a score per byte"),
        ((replace(FOUR, price="high"),), "price must be a score per byte"),
        ((replace(FOUR, price=1, threshold=True),), "a price chooses by itself"),
        ((replace(FOUR, levels=NESTED),), "levels: are chosen by price among columns"),
        ((replace(FOUR, copies=(1.0, 0.5)),), "copies: are of experts, and the axis is neuron"),
        ((replace(FOUR, copies=(0.5,)),), "copies: must be parts of an expert that fall from 1.0"),
        ((replace(FOUR, copies=[1.0]),), "copies: must be parts of an expert that fall from 1.0"),
    ],
)
def test_groups_that_are_refused(groups, complaint):
    with pytest.raises(InputError, match=complaint):
        checked_groups(Given(given=groups), SHAPE)


def test_groups_that_are_good():
    two = (FOUR, Group("h", ("up_proj", "gate_proj"), "input", 4))
    assert checked_groups(Given(given=two), SHAPE) == two
    assert whole_matrices(two) == ()
    assert whole_matrices((FOUR,)) == ("gate_proj", "up_proj")
    free = (replace(FOUR, price=0),)
    assert checked_groups(Given(given=free), SHAPE) == free
    with pytest.raises(InputError, match="a price chooses by itself; leave out threshold, rerank and select"):
        checked_groups(Aware(given=free), SHAPE)
    leveled = (replace(FOUR, price=1.5, levels=NESTED),)
    assert checked_groups(Given(given=leveled), SHAPE) == leveled


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (Given(given=(FOUR,)), "chooses columns in group g, and tiny-mixture is a mixture of experts"),
        (Given(), "reads every expert of every layer, and tiny-mixture is a mixture"),
        (Given(given=(replace(EXPERT, matrices=("up_proj", "down_proj")),)), "has all three matrices, and neither"),
        (Given(given=(replace(EXPERT, price=1.0),)), "has all three matrices, and neither price nor free"),
        (Given(given=(replace(EXPERT, free=True),)), "has all three matrices, and neither price nor free"),
        (Given(given=(COPIES,)), "are chosen by what is resident; define select"),
        (Aware(given=(COPIES,)), "are chosen by what is resident; define select"),
        (Chooses(given=(replace(COPIES, copies=(1.0, 1.0)),)), "that fall from 1.0, the exact one"),
        (Chooses(given=(replace(COPIES, copies=(1.0, 0.5, 0.7)),)), "that fall from 1.0, the exact one"),
        (Chooses(given=(replace(COPIES, copies=(1.0, 0.0)),)), "that fall from 1.0, the exact one"),
    ],
)
def test_policies_that_do_not_fit_experts(policy, complaint):
    with pytest.raises(InputError, match=complaint):
        checked_groups(policy, MIXTURE)


def test_policies_that_fit_experts():
    assert checked_groups(Given(given=(EXPERT,)), MIXTURE) == (EXPERT,)
    assert checked_groups(Chooses(given=(COPIES,)), MIXTURE) == (COPIES,)


def test_who_sees_the_memory():
    assert not sees_memory(Given(), (FOUR,))
    assert sees_memory(Aware(), (FOUR,))
    assert sees_memory(Chooses(), (FOUR,))
    assert sees_memory(Given(), (FOUR, replace(FOUR, free=True)))
    assert sees_memory(Given(), (replace(FOUR, price=0.0),))


@pytest.mark.parametrize(
    ("mask", "group", "complaint"),
    [
        ([1, 1, 0, 0], FOUR, None),
        ([1, 1, 1, 0], FOUR, "select must leave numbers, without NaN"),
        ([1, 0, 0, 0], FOUR, "select must leave numbers, without NaN"),
        ([1, 1, 1, 0], replace(FOUR, threshold=True), None),
        ([1, 1, 0], FOUR, r"select must keep the shape \[4\]"),
        ([1, 0, 0, 0], EXPERT, None),
        ([1, 1, 0, 0], EXPERT, None),
        ([1, 1, 1, 0], EXPERT, r"select must choose no more than 2 experts \(got 3\)"),
        ([1, 0, 0, 1], COPIES, None),
        ([1, 0, 1, 0], COPIES, "select must choose one copy of an expert"),
    ],
)
def test_masks_that_a_policy_may_choose(mask, group, complaint):
    policy = Chooses(mask=np.array(mask, dtype=bool))
    call = (policy, group, np.float32([1, 2, 3, 4]), np.zeros(4, dtype=bool), 0)
    if complaint is None:
        assert aware_mask(*call).tolist() == [bool(each) for each in mask]
    else:
        with pytest.raises(InputError, match=complaint):
            aware_mask(*call)


def test_masks_are_boolean_arrays():
    for mask in ([True, True, False, False], np.array([1, 1, 0, 0])):
        with pytest.raises(InputError, match=r"must keep the shape \[4\]"):
            aware_mask(Chooses(mask=mask), FOUR, np.ones(4, np.float32), np.zeros(4, dtype=bool), 0)


def test_what_is_resident_is_shown_and_cannot_be_changed():
    resident = np.array([False, False, True, False])
    assert chosen(aware_mask(Aware(), FOUR, np.float32([4, 3, 2, 1]), resident, 0)) == [0, 2]
    assert resident.flags.writeable

    class Changes(Given):
        def rerank(self, scores, resident):
            resident[0] = True

    with pytest.raises(InputError, match=r"policy changes: rerank failed in line [0-9]+: ValueError"):
        aware_mask(Changes(), FOUR, np.ones(4, np.float32), resident, 0)


def test_the_error_names_the_method_that_the_plugin_defines():
    class Breaks(Given):
        def rerank(self, scores, resident):
            return scores * np.nan

    with pytest.raises(InputError, match="policy breaks: group g: rerank must leave numbers, without NaN"):
        aware_mask(Breaks(), replace(FOUR, k=2), np.zeros(4, np.float32), np.zeros(4, dtype=bool), 0)


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (np.ones((1, 8), np.float32), None),
        (np.ones((1, 8), np.int32), None),
        (np.ones((1, 8), np.uint8), None),
        (np.ones((1, 8), bool), r"bool \[1, 8\]"),
        (np.ones((1, 7), np.float32), r"float32 \[1, 7\]"),
        (np.full((1, 8), np.nan), r"float64 \[1, 8\]"),
        (np.ones((1, 8), complex), r"complex128 \[1, 8\]"),
    ],
)
def test_scores_of_every_kind(values, got):
    class Scores(Given):
        def scores(self, group, acts):
            return values

    if got is None:
        found = checked_scores(Scores(), FOUR, ACTS)
        assert found.tolist() == values.tolist()
        assert not found.flags.writeable
    else:
        with pytest.raises(InputError, match=rf"must be numbers \[1, 8\] without NaN \(got {got}\)"):
            checked_scores(Scores(), FOUR, ACTS)


def test_inputs_have_the_columns_of_the_input():
    policy = load_policy("dip", keep=0.4)
    assert checked_scores(policy, Group("i", ("up_proj",), "input", 1), ACTS).tolist() == [[1, 4, 2, 3]]


def test_what_goes_wrong_inside_a_plugin_is_told_or_left_alone():
    def raising(error):
        def call():
            raise error

        return call

    with pytest.raises(InputError, match=r"^policy given: scores failed in line [0-9]+: ValueError: two lines$"):
        guarded(Given(), "scores", raising(ValueError("two\n lines")))
    with pytest.raises(InputError, match=r"^as it is$"):
        guarded(Given(), "scores", raising(InputError("as it is")))
    with pytest.raises(MemoryError):
        guarded(Given(), "scores", raising(MemoryError()))
    with pytest.raises(KeyboardInterrupt):
        guarded(Given(), "scores", raising(KeyboardInterrupt()))
    of_torch = type("OutOfMemoryError", (RuntimeError,), {})
    with pytest.raises(of_torch):
        guarded(Given(), "scores", raising(of_torch()))
    assert guarded(Given(), "scores", lambda: 3) == 3


def test_a_policy_needs_what_it_has_groups_for():
    for method, arguments in (("scores", (FOUR, ACTS)), ("units", (FOUR, 0))):
        with pytest.raises(NotImplementedError, match=f"Given .* must define {method}"):
            getattr(Given(), method)(*arguments)
    assert Policy().groups(SHAPE) == ()
    assert Policy().static_bytes(SHAPE) == 0
    assert Policy().at(3) == Policy()
    assert Policy().rerank(3, None) == 3
    assert (Policy().cache_aware, Aware().cache_aware, Chooses().cache_aware) == (False, True, True)
