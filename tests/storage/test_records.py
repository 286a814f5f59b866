"""Records in Flash: reads and what they bring, against a walk over bytes."""

import numpy as np
import pytest
from oracles import flash

from dipsim.storage.records import Records, bring

SIZES = np.array([[0, 5, 9, 14, 18], [0, 0, 5, 10, 14], [0, 0, 0, 6, 10], [0, 0, 0, 0, 4]], dtype=float)  # by resident
LEVELS = 5


def records(units=30, page=1.0, seed=1):
    """Records of units with these resident levels, in a shuffled order; units at the top have none."""
    random = np.random.default_rng(seed)
    resident = random.integers(0, 5, units)
    order = random.permutation(np.flatnonzero(resident < 4))
    return resident, Records(order, SIZES[resident[order]], page)


def requests(resident, tokens=40, seed=2):
    random = np.random.default_rng(seed)
    wanted = random.integers(0, 5, (tokens, len(resident))) * (random.random((tokens, len(resident))) < 0.4)
    return np.maximum(wanted, resident).astype(np.uint8)


def walk(levels, resident, laid, gap):
    """Reads (begin, end) of one token: bytes wanted, rounded to pages, joined over gaps of up to `gap` bytes."""
    reads = []
    for unit, begin, sizes in zip(laid.order, laid.begin, laid.sizes, strict=True):
        need = sizes[levels[unit]]
        if levels[unit] <= resident[unit]:
            continue
        first, last = begin // laid.page * laid.page, -(-(begin + need) // laid.page) * laid.page
        if reads and first - reads[-1][1] <= gap:
            reads[-1][1] = max(last, reads[-1][1])
        else:
            reads.append([first, last])
    return reads


def there(levels, laid, reads):
    found = levels.copy()
    for unit, begin, sizes in zip(laid.order, laid.begin, laid.sizes, strict=True):
        for first, last in reads:
            held = [
                level for level in range(LEVELS) if sizes[level] and first <= begin and begin + sizes[level] <= last
            ]
            found[unit] = max([found[unit], *held])
    return found


@pytest.mark.parametrize("page", [1.0, 7.0, 32.0])
def test_reads_are_what_is_wanted(page):
    resident, laid = records(page=page)
    requested = requests(resident)
    found = bring(requested, laid, None, 12)
    for token, levels in enumerate(requested):
        reads = walk(levels, resident, laid, 0)
        assert found.reads[token].sum() == len(reads)
        assert found.read_bytes[token].sum() == sum(last - first for first, last in reads)
        sizes = np.array([last - first for first, last in reads]) / laid.grain
        kinds = np.bincount(np.log2(np.maximum(sizes, 1)).astype(int), minlength=12)
        assert (found.reads[token] == kinds).all()
        assert (found.levels[token] == there(levels, laid, reads)).all()
    assert (found.levels > requested).any() == (page > 1)


@pytest.mark.parametrize("page", [1.0, 8.0])
def test_gaps_are_read_through_where_that_is_faster_and_bring_what_lies_there(page):
    resident, laid = records(units=60, page=page, seed=4)
    requested = requests(resident, seed=5)
    costly = flash(command=2e-8, bandwidth=1e9, latency=0, depth=32, overlap=1)  # 20 bytes a command
    costly = costly.model_copy(update={"page": page})
    found, plain = bring(requested, laid, costly, 12), bring(requested, laid, None, 12)
    assert (found.seconds(costly) <= plain.seconds(costly)).all()
    assert found.seconds(costly).mean() < 0.96 * plain.seconds(costly).mean()
    assert found.read_bytes.sum() > plain.read_bytes.sum()
    assert (found.levels >= requested).all()
    assert (found.levels > requested).any()
    gap = costly.break_even(max(laid.grain, laid.bytes / len(laid.order)))
    everything = [[0.0, -(-laid.bytes // page) * page]]
    for token, levels in enumerate(requested):
        ways = [walk(levels, resident, laid, each) for each in (0, gap, gap / 2)] + [everything]
        seconds = [float(np.sum([costly.transfer_time(last - first) for first, last in way])) for way in ways]
        best = int(np.argmin(seconds))
        assert found.read_bytes[token].sum() == sum(last - first for first, last in ways[best])
        assert (found.levels[token] == there(levels, laid, ways[best])).all()


def test_nothing_wanted_reads_nothing():
    resident, laid = records()
    costly = flash(command=1e-6, bandwidth=1e9, latency=0, depth=32, overlap=1)
    found = bring(np.tile(resident.astype(np.uint8), (3, 1)), laid, costly, 8)
    assert found.reads.sum() == found.read_bytes.sum() == 0
    assert (found.levels == resident).all()
    none = bring(np.full((2, 6), 4, np.uint8), Records(np.arange(0), np.zeros((0, 5))), costly, 8)
    assert none.reads.sum() == 0


@pytest.mark.parametrize("tokens", [0, 511, 512, 513, 1100])
def test_tokens_are_found_in_blocks_as_one_by_one(tokens):
    resident, laid = records(page=7.0)
    requested = requests(resident, tokens)
    dear = flash(command=2e-8, bandwidth=1e9, latency=0, depth=32, overlap=1)
    found = bring(requested, laid, dear, 12)
    assert found.levels.shape == (tokens, 30)
    assert found.reads.shape == found.read_bytes.shape == (tokens, 12)
    for token in {0, 510, 511, 512, 1099} & set(range(tokens)):
        alone = bring(requested[token : token + 1], laid, dear, 12)
        assert (found.levels[token] == alone.levels[0]).all()
        assert (found.reads[token] == alone.reads[0]).all()
        assert (found.read_bytes[token] == alone.read_bytes[0]).all()
