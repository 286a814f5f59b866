"""What each token finds resident, by hand: two columns of four are held, and the least recently used leaves."""

import numpy as np
import pytest

from dipsim.memory.cache import find_residents, lowest, replay

MASKS = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]], dtype=bool)


def columns(masks):
    return [np.flatnonzero(mask).tolist() for mask in masks]


@pytest.mark.parametrize(
    ("starts", "begin", "expected"),
    [
        (None, None, [[], [0, 1], [1, 2], [2, 3]]),
        ((0, 2), None, [[], [0, 1], [], [2, 3]]),
        (None, [2, 3], [[2, 3], [0, 1], [1, 2], [2, 3]]),
        ((0, 3), [0, 2], [[0, 2], [0, 1], [1, 2], [0, 2]]),
    ],
)
def test_what_tokens_find(starts, begin, expected):
    begin_with = None if begin is None else np.isin(np.arange(4), begin)
    places = {} if starts is None else {"starts": starts}
    assert columns(find_residents(MASKS, 2, "lru", begin_with=begin_with, **places)) == expected


def test_what_is_pinned_stays():
    assert columns(find_residents(MASKS, 2, "pinned", begin_with=lowest(4, 2))) == [[0, 1]] * 4
    assert find_residents(MASKS, 2, "pinned").tolist() == [[False] * 4] * 4
    assert replay(MASKS, 2, "pinned").tolist() == [2, 1, 0, 1]
    assert columns(find_residents(MASKS, 2, "none")) == [[]] * 4
