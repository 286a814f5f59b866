"""Missing columns become reads: by spelling them out, and against every alternative."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import flash
from oracles.slow import slow_closed, slow_runs

from dipsim.basics import assets
from dipsim.storage.pages import lay
from dipsim.storage.placement import Placement, Site, fetch, gap_pages
from dipsim.storage.runs import closed, pack, unpack
from dipsim.storage.worth import best_runs, cost_of_leaving, run_costs, worth_reading
from dipsim.timing.device import Device

COSTLY = flash(command=1e-5, bandwidth=1e9, latency=0, depth=32, overlap=1)  # a command costs as much as 10 kB


def placement(columns, hot=0, order=None, pieces=1, size=1000.0, whole=1):
    order = np.arange(columns) if order is None else np.array(order)
    return Placement(order, hot, pieces, size, whole)


@given(arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 200))), st.integers(0, 260))
def test_gaps_are_filled_as_spelled_out(masks, gap):
    words = closed(pack(masks), gap)
    assert (unpack(words, masks.shape[1]) == [slow_closed(row, gap) for row in masks]).all()
    assert (pack(unpack(words, masks.shape[1])) == words).all(), "no bit beyond the last column"


@given(st.integers(0, 2**32), st.integers(1, 90), st.floats(0, 1), st.integers(0, 8))
def test_without_a_device_only_what_is_missing_is_read_as_it_lies(seed, columns, density, hot):
    rng = np.random.default_rng(seed)
    misses, order = rng.random((3, columns)) < density, rng.permutation(columns)
    found = fetch(misses, placement(columns, min(hot, columns), order, pieces=3, whole=2))
    count, run_columns = slow_runs(misses[:, order])
    assert (found.masks == misses).all()
    assert (found.reads == 3 * count).all()
    assert (found.read_bytes == 3 * 1000.0 * run_columns).all()


@given(st.integers(0, 2**32), st.integers(1, 60), st.floats(0, 1), st.sampled_from([0.0, 1e-6, 2e-5, 5e-4]))
def test_no_token_reads_longer_than_without_read_through_or_than_everything(seed, columns, density, command):
    rng = np.random.default_rng(seed)
    device = flash(command=command, bandwidth=1e9, latency=1e-5, depth=4, overlap=2)
    hot = columns // 3
    misses = rng.random((5, columns)) < density
    misses[:, :hot] = False
    place = placement(columns, hot, pieces=2, whole=2)
    found, plain = fetch(misses, place, device), fetch(misses, place)
    assert (found.masks >= misses).all()
    assert not found.masks[:, :hot].any()
    whole = device.batch_time([2], [2 * 1000.0 * (columns - hot)])
    some = misses.any(axis=1)
    assert (found.seconds(device)[some] <= np.minimum(plain.seconds(device), whole)[some] * (1 + 1e-12)).all()
    assert (found.seconds(device)[~some] == 0).all()
    assert not found.masks[~some].any()


def test_a_gap_is_read_through_up_to_the_break_even():
    misses = np.zeros((1, 40), dtype=bool)
    misses[0, [0, 11, 23]] = True  # gaps of 10 and of 11 columns of 1 kB; a command costs 10.5 kB
    device, place = COSTLY.model_copy(update={"command_time": 10.5e-6}), placement(40)
    assert gap_pages(place, device) == 10
    found = fetch(misses, place, device)
    assert np.flatnonzero(found.masks[0]).tolist() == [*range(12), 23]
    assert found.reads.sum() == 2
    assert found.seconds(device)[0] == pytest.approx(2 * 10.5e-6 + 13e-6)


def test_everything_is_read_at_once_where_matrices_lie_row_after_row():
    """A run in row-major matrices takes a read in every row; one read of all of them is faster."""
    misses = np.zeros((1, 40), dtype=bool)
    misses[0, [3, 20]] = True
    rows = placement(40, pieces=500, size=2.0, whole=1)
    found = fetch(misses, rows, COSTLY)
    assert found.masks.all()
    assert found.reads.sum() == 1
    assert fetch(misses, rows).reads.sum() == 2 * 500


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from([0.5, 3.0, 288.0, 461.0, 1000.0]), st.integers(0, 9))
def test_pages_are_touched_and_filled_as_spelled_out(seed, columns, size, hot):
    rng, page, hot = np.random.default_rng(seed), 461.0, min(hot, columns)
    masks = rng.random((3, columns)) < rng.random()
    pages = lay(columns, size, hot, page)
    begin = [n * size for n in range(hot)]
    after = -(-hot * size // page) * page  # the columns that are not pinned begin on a page as well
    begin += [after + n * size for n in range(columns - hot)]
    lies_on = [[k for k in range(pages.count) if k * page < at + size and at < (k + 1) * page] for at in begin]
    assert {k for mine in lies_on for k in mine} == set(range(pages.count))
    touched = pages.touched(masks)
    for row, mask in zip(touched, masks, strict=True):
        assert set(np.flatnonzero(row)) == {k for n in np.flatnonzero(mask) for k in lies_on[n]}
    some = rng.random(touched.shape) < 0.7
    filled = [[all(row[k] for k in mine) for mine in lies_on] for row in some]
    assert pages.filled(some).tolist() == filled


def test_a_read_occupies_whole_pages_and_brings_the_columns_that_lie_wholly_on_them():
    """Columns of 300 B, two pinned; on pages of 1 kB column 2 lies on the first, 5 on the first and the second."""
    misses = np.zeros((3, 12), dtype=bool)
    misses[0, 2] = misses[1, 5] = misses[2, [2, 11]] = True
    place = Placement(np.arange(12), 2, 2, 300.0, 1, page=1000.0)
    found = fetch(misses, place)
    assert found.reads.sum(axis=1).tolist() == [2, 2, 4]
    assert found.read_bytes.sum(axis=1).tolist() == [2000, 4000, 4000]
    assert [np.flatnonzero(row).tolist() for row in found.masks] == [[2, 3, 4], [*range(2, 8)], [2, 3, 4, 9, 10, 11]]
    assert place.whole_bytes == 6000, "all ten in one piece"
    costly = COSTLY.model_copy(update={"command_time": 1e-3, "page": 1000.0})
    everything = fetch(misses, place, costly)
    assert everything.reads.sum(axis=1).tolist() == [1, 1, 1]
    assert everything.read_bytes.sum(axis=1).tolist() == [6000] * 3
    assert everything.seconds(costly) == pytest.approx(np.full(3, 1e-3 + 6e-6))


def test_break_even_is_the_cost_of_a_command_where_commands_and_bytes_add_up():
    assert COSTLY.break_even(3000) == pytest.approx(10_000)
    overlapped = flash(command=1e-5, bandwidth=1e9, latency=0, depth=32, overlap=2)
    gap = overlapped.break_even(3000)
    assert overlapped.transfer_time(6000 + gap) == pytest.approx(2 * overlapped.transfer_time(3000))
    assert gap > 10_000, "a short read hides in its command"
    assert flash(command=0, bandwidth=1e9, latency=0, depth=32, overlap=1).break_even(3000) == pytest.approx(0)


@given(
    arrays(float, st.tuples(st.integers(1, 7), st.just(2)), elements=st.integers(-1, 16)),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.sampled_from([(1.0, 1.0), (3.0, 5.0), (7.0, 3.0), (4.0, 4.0), (2.0, 16.0)]),
)
def test_the_best_runs_by_trying_all(gains, costs, sizes):
    costs = np.sort(costs)[::-1].astype(float)  # a longer read is no slower for each of its bytes
    pages = lay(len(gains), sizes[0], 0, sizes[1])
    chosen = best_runs(gains, costs, pages)

    def value(mask, token):
        total, read, last = 0.0, 0, None  # pages of the run under way, and the last of them
        for gain, used, first, end in zip(gains[:, token], mask, pages.first, pages.end, strict=True):
            if not used:
                read, last = 0, None
                continue
            new = end - (first if last is None else last)
            total += gain - sum(costs[min(read + k, len(costs) - 1)] for k in range(new))
            read, last = read + new, end
        return total

    for token in range(2):
        best = max(value(mask, token) for mask in product((False, True), repeat=len(gains)))
        assert value(chosen[:, token].tolist(), token) == best


def test_what_is_worth_reading_in_bytes():
    """At a price of 1 a byte and runs of 10 kB, two columns of 1 kB must be worth 12,000, or one alone 11,000."""
    place = placement(6, hot=1, order=[5, 0, 1, 2, 3, 4])
    assert run_costs(place, COSTLY).tolist() == pytest.approx([11_000, 1000])
    assert run_costs(place, None).tolist() == [1000]
    scores = np.array([[0, 6001, 6001, 0, 0, 9e9], [0, 5999, 5999, 0, 0, 9e9], [11_001, 0, 0, 0, 0, 0]])
    assert worth_reading(scores, 1.0, place, COSTLY).tolist() == [
        [False, True, True, False, False, False],
        [False] * 6,
        [True, False, False, False, False, False],
    ]
    assert worth_reading(scores, 1.0, place, None)[1].tolist() == [False, True, True, False, False, False]


def test_the_cost_of_a_run_is_the_time_that_flash_takes_for_its_pages():
    device = flash(command=1e-5, bandwidth=1e9, latency=0, depth=32, overlap=2).model_copy(update={"page": 512.0})
    place = Placement(np.arange(40), 0, 2, 1000.0, 1, page=512.0)
    costs = run_costs(place, device)
    assert costs.sum() == pytest.approx(2e9 * device.transfer_time(512.0 * len(costs)))
    assert costs[0] > 20_000 > 1024 * 1.1 > costs[-1], "a command first, in the end hardly more than the bytes"


@pytest.mark.parametrize(
    ("name", "page", "error"),
    [
        *((name, None, 0.02) for name in assets.names("devices")),
        *((name, 1.0, 0.04) for name in assets.names("devices")),
        *((name, 57.0, 0.015) for name in ("oneplus-12", "paper", "pc-nvme-gen4", "pi5-nvme")),
    ],
)
def test_a_run_of_any_length_costs_what_flash_takes_for_it(name, page, error):
    whole = Device.load(name).scaled(0.1125, "small").flash
    device = whole if page is None else whole.model_copy(update={"page": page})
    place = Placement(np.arange(500), 0, 1, 288.0, 1, page=device.page)
    costs, pages = run_costs(place, device), np.arange(1, place.pages.count + 1)
    each = np.append(costs, np.full(max(0, len(pages) - len(costs)), costs[-1]))[: len(pages)]
    true = device.transfer_time(place.page_bytes * pages) * device.peak_bandwidth
    assert np.cumsum(each) == pytest.approx(true, rel=error)
    assert len(costs) <= 120


def test_without_a_device_rows_are_read_whole_where_their_pages_would_be_more():
    """Six rows of eight columns of half a byte, on pages of 16 B: a read in each row is six pages, all of it two."""
    misses = np.zeros((2, 8), dtype=bool)
    misses[0, 3] = True
    found = fetch(misses, Placement(np.arange(8), 0, 6, 0.5, 1, page=16.0))
    assert found.reads.sum(axis=1).tolist() == [1, 0]
    assert found.read_bytes.sum(axis=1).tolist() == [32, 0]
    assert found.masks.tolist() == [[True] * 8, [False] * 8]


def test_leaving_a_column_costs_its_share_of_the_pages_of_its_run_or_its_score():
    """Columns of 3 B on pages of 5 B: 1, 2 and 4 are one run on three pages, though 3 is not wanted."""
    place = Placement(np.arange(5), 0, 2, 3.0, 1, page=5.0)
    wanted = np.array([[False, True, True, False, True]])
    found = cost_of_leaving(wanted, np.full((1, 5), 7.0), 0.5, place, None)
    assert found.tolist() == [7.0, 5.0, 5.0, 7.0, 5.0]
    assert cost_of_leaving(wanted, None, 0.5, place, COSTLY.model_copy(update={"page": 5.0}))[[0, 4]] == pytest.approx(
        [0.0, 0.5 * 2 * (10_000 + 15) / 3]
    )


def test_a_site_knows_its_calibration_tokens():
    masks = np.eye(4, dtype=bool)
    site = Site("neuron", 1, 4, 8.0, 1, 2, masks, lambda tokens, resident: masks[tokens] & ~resident)
    assert site.wanted(slice(1, None, 2), np.arange(4) < 2).tolist() == [[False] * 4, [False, False, False, True]]
    assert Site("neuron", 1, 4, 8.0, 1, 2, masks).wanted(slice(0, 1), masks[0]).tolist() == masks[:1].tolist()
