"""A plan in the making and a finished plan are two things; what each entry puts where, by hand."""

import dataclasses

import numpy as np
import pytest
from tiny import SHAPE

from dipsim.planning.builder import Counts, PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.sparsity.plugins import load_policy

STATIC = SHAPE.static_bytes(3)


def builder(name="dip", dram=STATIC + 0.5 * SHAPE.mlp_bytes, **options):
    return PlanBuilder(SHAPE, Setting(load_policy(name), dram, **options), 3, (0,))


def test_a_finished_plan_cannot_be_changed_nor_its_builder_write_to_it():
    making = builder()
    (inputs, _) = making.caches
    masks = np.ones((3, 16), dtype=bool)
    finished = making.finish()
    assert not any(value.flags.writeable for value in vars(finished).values() if isinstance(value, np.ndarray))
    with pytest.raises(ValueError, match="read-only"):
        making.record_masks(inputs, 0, masks, masks)
    with pytest.raises(dataclasses.FrozenInstanceError):
        finished.budget = None


def test_a_plan_lays_out_its_steps_layer_by_layer():
    finished = builder("magnitude").finish()
    assert finished.step == ("attention", "whole", "neuron") * 2 + ("lm_head",)
    assert finished.layer.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert finished.static_reads.tolist() == [0, 2, 0, 0, 2, 0, 0]  # half of the MLP does not hold two of its matrices
    assert finished.flash_static[0].nonzero()[0].tolist() == [1, 4]


def test_caches_say_what_planners_need():
    inputs, neurons = builder(eviction="lru").caches
    assert (inputs.columns, neurons.columns) == (16, 24)
    assert (inputs.capacities, neurons.capacities) == (
        (8, 8),
        (12, 12),
    )  # half of the MLP: each of its matrices equally
    assert inputs.eviction == "lru"
    assert inputs.cache(1).capacity == 8
    assert inputs.key != neurons.key
    assert inputs.key == builder(dram=STATIC).caches[0].key, "scores do not depend on the DRAM"


def test_masks_become_bytes_reads_and_operations():
    making = builder()
    _, neurons = making.caches
    masks, hits = np.zeros((3, 24), dtype=bool), np.zeros((3, 24), dtype=bool)
    masks[1, [2, 3, 4, 9, 20]] = True
    hits[1, 3] = True
    making.record_masks(neurons, 1, masks, hits)
    finished = making.finish()
    at = 2 * 3 - 1  # the last step of layer 1
    column = 16 * 4 / 8
    assert finished.step[at] == "neuron"
    assert finished.dram_hits[:, at].tolist() == [0, column, 0]
    assert finished.flash_misses[:, at].tolist() == [0, 4 * column, 0]
    assert finished.reads[1, at].tolist() == [4, 0, 0, 0, 0]  # columns 2, 4, 9 and 20: four runs of one
    assert finished.read_bytes[1, at, 0] == 4 * column
    assert finished.flops[1, at] == 2 * 5 * 16
    assert finished.peak_cache_bytes[at] == 5 * column
    assert finished.dram_hits.sum() + finished.flash_misses.sum() == 5 * column, "and nothing anywhere else"


def test_counts_of_adjacent_layers_are_entered_together():
    making = builder()
    inputs, _ = making.caches
    ones = np.ones((3, 2), dtype=int)
    runs = np.zeros((3, 2, 5), dtype=int)
    runs[..., 1] = 1
    making.record(inputs, range(2), Counts(5 * ones, 2 * ones, runs, 3 * 24.0 * runs, np.array([7, 8])))
    finished = making.finish()
    here = [index for index, step in enumerate(finished.step) if step == "input"]
    column = 24 * 4 / 8
    assert (finished.dram_hits[:, here] == 2 * 2 * column).all()  # two matrices share the mask
    assert (finished.flash_misses[:, here] == 3 * 2 * column).all()
    assert finished.reads[0, here].tolist() == [[0, 1, 0, 0, 0]] * 2
    assert (finished.read_bytes[:, here, 1] == 3 * 2 * column).all()
    assert finished.peak_cache_bytes[here].tolist() == [7 * 2 * column, 8 * 2 * column]
