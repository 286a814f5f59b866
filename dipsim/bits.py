"""Masks as bits, 64 columns a word: counting them, and counting their runs of adjacent columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dipsim.eviction import Ints, Mask

Bits = NDArray[np.uint64]
WORD = 64


def pack(masks: Mask) -> Bits:
    """Bits [T, W] of masks [T, N]: column c is bit c % 64 of word c // 64. The bits beyond N are 0."""
    tokens, size = masks.shape
    words = np.zeros((tokens, -(-size // WORD)), dtype="<u8")
    words.view(np.uint8)[:, : -(-size // 8)] = np.packbits(masks, axis=1, bitorder="little")
    return words


def ones(bits: Bits) -> Ints:
    """How many bits are set in each row [..., W]."""
    return np.asarray(np.bitwise_count(bits).sum(axis=-1, dtype=np.int64))


def runs(masks: Mask) -> tuple[Ints, Ints]:
    """Runs of adjacent columns in each row of [T, N]: how many, and how many columns they hold, both [T, R] by class.

    Class r: runs of 2^r to 2^(r+1) - 1 columns; R = bit length of N.
    """
    return packed_runs(pack(masks), masks.shape[1].bit_length())


def packed_runs(bits: Bits, classes: int) -> tuple[Ints, Ints]:
    """`runs` of bits [T, W], R = `classes`.

    Erosion: keep the bits that begin 2^r set bits in a row, for rising r. A run of n of them becomes one of
    n - 2^r + 1 bits, so the bits left and the runs left tell how many runs are at least so long, and their columns.
    """
    count = np.zeros((len(bits), classes + 1), dtype=np.int64)  # of at least 2^r columns; the last stays 0
    columns = np.zeros_like(count)
    eroded = bits
    for r in range(classes):
        left = ones(eroded)
        if not left.any():
            break
        count[:, r] = left - ones(eroded & _shifted(eroded, 1))  # a run has one bit that no other follows
        columns[:, r] = left + (2**r - 1) * count[:, r]
        eroded = eroded & _shifted(eroded, 2**r)
    return count[:, :-1] - count[:, 1:], columns[:, :-1] - columns[:, 1:]


def _shifted(bits: Bits, by: int) -> Bits:
    """Bits [T, W] moved `by` columns towards column 0."""
    words, rest = divmod(by, WORD)
    result = np.zeros_like(bits)
    width = bits.shape[1] - words
    if width > 0:
        np.right_shift(bits[:, words:], np.uint64(rest), out=result[:, :width])
    if width > 1 and rest:
        result[:, : width - 1] |= bits[:, words + 1 :] << np.uint64(WORD - rest)
    return result
