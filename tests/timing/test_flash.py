"""Flash whose speed depends on the read size: against a per-read event model, and against measured hardware."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import MEASURED, events, flash, neuralink_throughput, parse_flash, steady_read_time

from dipsim.timing.device import Device

NEURALINK, CURVES = MEASURED["neuralink"], MEASURED["curves"]


SERVERS = {
    "command": st.sampled_from([0.0, 1e-6, 5e-6, 2e-5]),
    "bandwidth": st.sampled_from([1e8, 1e9, 3.7e9]),
    "latency": st.sampled_from([0.0, 1e-5, 1e-4, 1e-3]),
    "depth": st.integers(1, 40),
}


@given(st.fixed_dictionaries(SERVERS), st.integers(1, 120), st.sampled_from([512, 4096, 65536]), st.booleans())
def test_a_batch_of_equal_reads_takes_what_the_events_take(servers, count, size, overlapping):
    device = flash(**servers, overlap=float("inf") if overlapping else 1)
    expected = events([size] * count, **servers, overlapping=overlapping)
    assert device.batch_time([count], [count * size]) == pytest.approx(expected, rel=1e-9)


@given(st.fixed_dictionaries(SERVERS), st.lists(st.sampled_from([512, 1024, 4096, 65536]), min_size=1, max_size=60))
def test_reads_of_any_size_that_do_not_overlap_add_up(servers, sizes):
    """Mixed sizes, exact while the queue is deep enough."""
    servers["depth"] = 1000
    kinds, count = np.unique(sizes, return_counts=True)
    device = flash(**servers, overlap=1)
    expected = events(sizes, **servers, overlapping=False)
    assert device.batch_time(count, count * kinds) == pytest.approx(expected, rel=1e-9)


@given(st.fixed_dictionaries(SERVERS), st.integers(1, 60), st.sampled_from([512, 4096, 65536]), st.floats(1, 8))
def test_partial_overlap_lies_between_the_two_event_models(servers, count, size, overlap):
    low, high = (events([size] * count, **servers, overlapping=overlapping) for overlapping in (True, False))
    time = flash(**servers, overlap=overlap).batch_time([count], [count * size])
    assert low * (1 - 1e-9) <= time <= high * (1 + 1e-9)


def test_a_real_phone_at_ten_sparsities():
    predicted = np.array([neuralink_throughput(s) for s in NEURALINK["inactive"]])
    error = predicted / np.array(NEURALINK["throughput_mib_per_s"]) - 1
    assert np.abs(error).max() < 0.05
    assert np.abs(error).mean() < 0.03
    assert len(NEURALINK["fitted_on"]) <= 3


def test_scattered_reads_are_slower_than_reading_everything_until_most_is_inactive():
    seconds = [384 * (1 - s) / neuralink_throughput(s) for s in NEURALINK["inactive"]]
    slower = [s for s, t in zip(NEURALINK["inactive"], seconds, strict=True) if s and t > seconds[0]]
    measured = [s for s, t in zip(NEURALINK["inactive"], NEURALINK["latency_ms"], strict=True) if t > 234.49]
    assert slower == measured == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve["name"])
def test_published_curves(curve):
    rates = np.array(curve["bytes"]) / np.array([steady_read_time(parse_flash(curve), size) for size in curve["bytes"]])
    assert rates == pytest.approx(curve["bytes_per_s"], rel=curve["tolerance"])


def test_the_shipped_pi_follows_its_table_exactly():
    curve = next(c for c in CURVES if c["name"].endswith("Gen 2"))
    rates = np.array(curve["bytes"]) / np.array(
        [steady_read_time(Device.load("pi5-nvme").flash, size) for size in curve["bytes"]]
    )
    assert rates == pytest.approx(curve["bytes_per_s"], rel=1e-12)
