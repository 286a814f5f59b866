"""Copies of experts at low precision: by hand, and against a loop over tokens with a cache that anybody would write."""

from collections import OrderedDict

import numpy as np
import pytest
import tiny_mixture
from dipsim.policies.experts import Experts
from dipsim.policies.low_bit import LowBit
from tiny_mixture import shape

from dipsim.basics.errors import InputError
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.planning.stepwise import stepwise
from dipsim.sparsity.plugins import load_policy
from dipsim.sparsity.policy import Group
from dipsim.sparsity.selection import checked_groups
from dipsim.workload import Trace
from dipsim.workload.routing import Routing
from dipsim.workload.shape import MATRICES

EXPERT = 192.0
WIDE = shape(num_experts_per_tok=3)  # of 8 experts


def setting(trace, experts, policy="low-bit", rule="lru", start="cold", scope="model", page=1.0, **parameters):
    """With a cache of the bytes of so many experts."""
    size = trace.shape.static_bytes(trace.longest_sequence()) + experts * EXPERT
    return Setting(load_policy(policy, **parameters), size, rule, start=start, scope=scope, page=page)


def weighed(path, ids, weights, **options):
    """A trace of the tiny mixture whose layers all choose the same."""
    layer = Routing(8, len(ids[0]), ids=np.array(ids), recorded_weights=np.array(weights))
    return tiny_mixture.write(path, layers=[layer] * 3, **options)


def test_copies_by_hand(tmp_path):
    """A quarter of an expert's bytes for less than 0.3 of the weight, on pages of 50 bytes.

    Expert 1 is read low, then exact, as its low copy does not serve; then both exact ones serve whatever is wanted.
    """
    ids = [[0, 1], [1, 0], [2, 3], [0, 1], [4, 5], [4, 5]]
    weights = [[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]
    trace = weighed(tmp_path / "t.safetensors", ids, weights)
    (made,) = plan(trace, [setting(trace, 24, page=50.0, share=0.3, low=0.25)])
    found, missed = (part[:, made.is_mlp] for part in made.units)
    assert found.tolist() == [[each] * 3 for each in (0, 1, 0, 2, 0, 1.25)]
    assert missed.tolist() == [[each] * 3 for each in (1.25, 1, 2, 0, 1.25, 0)]
    assert made.flash_misses[:, made.is_mlp][0].tolist() == [1.25 * EXPERT] * 3
    by_pages = made.reads[:, made.is_mlp][:, 0, :2]  # pieces of 16 bytes are a page, those of 64 are two
    assert by_pages.tolist() == [[3, 3], [0, 3], [0, 6], [0, 0], [3, 3], [0, 0]]
    assert made.flash_read_bytes[:, made.is_mlp][:, 0].tolist() == [450, 300, 600, 0, 450, 0]
    assert made.flops[:, made.is_mlp].tolist() == [[2 * 2 * EXPERT * 2] * 3] * 6  # a low copy computes as any
    assert made.uses.tolist() == [[3, 3, 1, 1, 2, 2, 0, 0]] * 3
    assert made.peak_cache_bytes[made.is_mlp] == pytest.approx([5.5 * EXPERT] * 3)  # 0 to 4, and 1 and 5 low
    assert made.ranked[made.is_mlp].tolist() == [8] * 3


def test_a_prompt_reads_an_expert_once_in_the_best_copy_that_its_tokens_want(tmp_path):
    """Expert 1 weighs little for the first token and much for the second; expert 2 weighs little."""
    trace = weighed(
        tmp_path / "t.safetensors",
        [[0, 1], [1, 2], [2, 1]],
        [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]],
        prompts=((0, 2),),
    )
    (made,) = plan(trace, [setting(trace, 24, start="warm", page=50.0, share=0.3, low=0.25)])
    assert (made.encoded.wanted, made.encoded.found) == (3 * 2.25, 0)
    assert made.encoded.reads.tolist() == [[6, 3]] * 3
    assert made.encoded.read_bytes.tolist() == [[600, 150]] * 3
    assert made.units[0][0, made.is_mlp].tolist() == [1] * 3  # expert 1; of expert 2 the low copy does not serve
    assert made.uses.tolist() == [[0, 1, 1, 0, 0, 0, 0, 0]] * 3


def by_loop(layers, stretches, share, low, budget):
    """Of each batch and layer, the bytes found and missed, and the most that one LRU cache over all layers held."""
    cache, most, found = OrderedDict(), 0.0, []
    for begin, end in stretches:
        for layer, routed in enumerate(layers):
            asked = []
            for token in range(begin, end):
                best = routed.ids[token].tolist()
                for expert, weight in zip(best, routed.recorded_weights[token], strict=True):
                    exact = expert == best[0] or weight >= share or (layer, expert, "exact") in cache
                    asked.append((layer, expert, "exact" if exact else "low"))
            exact = {expert for _, expert, copy in asked if copy == "exact"}
            asked = [(layer, expert, "exact" if expert in exact else "low") for _, expert, _ in asked]
            batch = [unit for place, unit in enumerate(asked) if unit not in asked[place + 1 :]]
            size = {unit: EXPERT if unit[2] == "exact" else low * EXPERT for unit in batch}
            found.append((sum(size[unit] for unit in batch if unit in cache), sum(size.values()), len(batch)))
            for unit in batch:
                cache.pop(unit, None)
                cache[unit] = size[unit]
            while sum(cache.values()) > budget and any(unit not in batch for unit in cache):
                cache.pop(next(unit for unit in cache if unit not in batch))
            most = max(most, sum(cache.values()))
    return np.array(found).reshape(len(stretches), len(layers), 3), most


@pytest.mark.parametrize("prompt", [0, 5])
@pytest.mark.parametrize(("share", "low"), [(0.25, 0.5), (0.4, 0.25), (1.0, 0.625)])
@pytest.mark.parametrize("room", [2.5, 7.25, 13.0])
def test_counts_and_bytes_are_those_of_a_loop(tmp_path, room, share, low, prompt):
    layers = tiny_mixture.routing(WIDE, tokens=40, seed=7)
    prompts = ((0, prompt),) if prompt else ()
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=WIDE, layers=layers, prompts=prompts)
    start = "warm" if prompt else "cold"
    (made,) = plan(trace, [setting(trace, room, start=start, share=share, low=low)])
    stretches = [(0, prompt)] * bool(prompt) + [(token, token + 1) for token in range(prompt, 40)]
    expected, most = by_loop(layers, stretches, share, low, room * EXPERT)
    hits, wanted, used = np.moveaxis(expected, 2, 0)[:, 1 if prompt else 0 :]
    assert made.dram_hits[:, made.is_mlp] == pytest.approx(hits)
    assert made.flash_misses[:, made.is_mlp] == pytest.approx(wanted - hits)
    assert made.flash_read_bytes[:, made.is_mlp] == pytest.approx(wanted - hits)
    assert made.flops[:, made.is_mlp] == pytest.approx(used * 4 * EXPERT)
    assert made.uses.sum() == used.sum() == 3 * 3 * (40 - prompt)
    assert made.peak_cache_bytes.sum() == pytest.approx(most)
    assert (made.flash_misses % EXPERT).any()  # low copies were read
    if prompt:
        assert made.encoded.wanted == pytest.approx(expected[0, :, 1].sum() / EXPERT)


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("rule", ["lru", "lfu", "lfru", "slru", "s3-fifo", "none"])
def test_with_nothing_of_little_weight_the_plan_is_that_of_the_router(tmp_path, rule, scope):
    """One plan has two copies of each expert, the other one."""
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=WIDE, tokens=40, prompts=((0, 6), (10, 13)))
    options = {"rule": rule, "scope": scope, "start": "warm", "page": 50.0}
    low, router = plan(
        trace, [setting(trace, 9, share=1e-9, low=0.3, **options), setting(trace, 9, "experts", **options)]
    )
    for name in ("dram_hits", "flash_misses", "flash_gaps", "reads", "flops", "uses", "ranked", "unit_bytes"):
        assert (getattr(low, name) == getattr(router, name)).all(), name
    assert low.read_bytes.sum(axis=2) == pytest.approx(router.read_bytes.sum(axis=2))
    assert (low.encoded.wanted, low.encoded.found) == (router.encoded.wanted, router.encoded.found)
    assert low.encoded.read_bytes.sum() == router.encoded.read_bytes.sum()
    assert low.peak_cache_bytes == pytest.approx(router.peak_cache_bytes)


def test_the_cache_has_room_for_all_copies(tmp_path):
    """Of 3 layers of 8 experts, each with half a copy."""
    trace = tiny_mixture.write(tmp_path / "t.safetensors")
    (made,) = plan(trace, [setting(trace, 99)])
    assert made.budget.cache_bytes == 1.5 * 24 * EXPERT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gemma-4-26b-a4b"])
def test_recorded_routing_reads_less_the_more_experts_may_be_low(name):
    """And never more than the router's own choice: of the whole recording, as single tokens may read more."""
    trace = Trace.open(name)
    size = trace.shape.static_bytes(trace.tokens) + 2000 * 2**20
    chosen = [load_policy("experts"), *(load_policy("low-bit", share=share) for share in (0.05, 0.1, 0.15))]
    made = plan(trace, [Setting(policy, size, "lru", start="warm", page=4096, scope="model") for policy in chosen])
    read = [each.flash_read_bytes.sum() for each in made]
    assert read == sorted(read, reverse=True)
    assert read[-1] < read[0]


class Copied(Experts):
    """Experts with these copies, all of which it chooses."""

    copies: tuple[float, ...] = (1.0, 0.5)
    axis: str = "expert"

    def groups(self, shape):  # noqa: ARG002
        return [Group("it", MATRICES if self.axis == "expert" else ("down_proj",), self.axis, 2, copies=self.copies)]

    def scores(self, group, acts):
        return np.tile(acts.preference, len(group.copies))


class Both(Copied):
    """Chooses both copies of an expert."""

    def select(self, group, scores, resident):  # noqa: ARG002
        best = np.arange(8) == scores[:8].argmax()
        return np.tile(best, 2)


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (
            Both(copies=(0.5, 0.25)),
            r"copies: must be parts of an expert that fall from 1\.0, the exact one \(got \(0\.5,",
        ),
        (Both(copies=(1.0, 0.5, 0.5)), "fall from"),
        (Both(copies=(1.0, 0.0)), "fall from"),
        (Both(copies=()), r"fall from 1\.0, the exact one \(got \(\)\)"),
        (Both(axis="neuron"), "copies: are of experts, and the axis is neuron; leave them out"),
        (Copied(), "copies: are chosen by what is resident; define select"),
    ],
)
def test_copies_that_make_no_sense_are_one_line(policy, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        checked_groups(policy, tiny_mixture.SHAPE)
    assert "\n" not in str(error.value)


def test_what_policies_with_copies_must_not_do_is_one_line(tmp_path):
    trace = tiny_mixture.write(tmp_path / "t.safetensors", prompts=((0, 4),))
    with pytest.raises(InputError, match="group it: select must choose one copy of an expert"):
        plan(trace, [Setting(Both(), 1e5)])
    with pytest.raises(InputError, match="pinned: low-bit chooses by what is resident"):
        plan(trace, [setting(trace, 9, rule="pinned", start="warm")])
    with pytest.raises(InputError, match="policy low-bit: has copies of experts, which the clock does not know"):
        stepwise(trace, setting(trace, 9))
    for low in (0, 1, 1.5):
        with pytest.raises(InputError, match="policy low-bit: low"):
            load_policy("low-bit", low=low)
    bare = tiny_mixture.write(tmp_path / "bare.safetensors", kind="bare")
    with pytest.raises(InputError, match="has neither weights nor logits of the router"):
        plan(bare, [setting(bare, 5)])


def test_the_most_wanted_expert_is_exact_and_so_is_what_is_resident_so():
    """Of two wanted: expert 2 by far, expert 0 for little."""
    policy = LowBit(share=0.3)
    (group,) = policy.groups(tiny_mixture.shape(num_experts=4))
    scores, resident = np.tile([0.2, 0, 0.8, 0], 2), np.zeros(8, dtype=bool)
    assert np.flatnonzero(policy.select(group, scores, resident)).tolist() == [2, 4]
    resident[4] = True
    assert np.flatnonzero(policy.select(group, scores, resident)).tolist() == [2, 4]
    resident[0] = True
    assert np.flatnonzero(policy.select(group, scores, resident)).tolist() == [0, 2]
    assert np.flatnonzero(LowBit(share=0.2).select(group, scores, np.zeros(8, dtype=bool))).tolist() == [0, 2]
    assert np.flatnonzero(LowBit(share=1.0).select(group, scores, np.zeros(8, dtype=bool))).tolist() == [2, 4]
