"""Counts columns, or pages, and their runs of adjacent ones in masks packed into bits, 64 a word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.arrays import Ints, Mask

Words = NDArray[np.uint64]
WORD = 64  # columns


def pack(masks: Mask) -> Words:
    """Bits [T, W] of masks [T, N]: column c is bit c % 64 of word c // 64. The bits beyond N are 0."""
    tokens, size = masks.shape
    words = np.zeros((tokens, -(-size // WORD)), dtype="<u8")
    words.view(np.uint8)[:, : -(-size // 8)] = np.packbits(masks, axis=1, bitorder="little")
    return words


def unpack(words: Words, columns: int) -> Mask:
    """Masks [T, N] of bits [T, W] as `pack` makes them, N = `columns`."""
    return np.unpackbits(words.view(np.uint8), axis=1, count=columns, bitorder="little").view(bool)


def ones(words: Words) -> Ints:
    """The number of set bits in each row [..., W]."""
    return np.asarray(np.bitwise_count(words).sum(axis=-1, dtype=np.int64))


def runs(masks: Mask) -> tuple[Ints, Ints]:
    """Runs of adjacent columns in each row of [T, N]: their number and their columns, both [T, R] by class.

    Class r holds runs of 2^r to 2^(r+1) - 1 columns. R is the bit length of N.
    """
    return packed_runs(pack(masks), masks.shape[1].bit_length())


def packed_runs(words: Words, classes: int) -> tuple[Ints, Ints]:
    """The `runs` of bits [T, W], in R = `classes` classes.

    It erodes the bits: for rising r it keeps those that begin 2^r set bits in a row. A run of n bits becomes one of
    n - 2^r + 1 bits. So the bits left and the runs left tell how many runs are at least 2^r long, and their columns.
    """
    count = np.zeros((len(words), classes + 1), dtype=np.int64)  # of at least 2^r columns; the last stays 0
    columns = np.zeros_like(count)
    eroded = words
    for r in range(classes):
        left = ones(eroded)
        if not left.any():
            break
        count[:, r] = left - ones(eroded & _shifted(eroded, 1))  # a run has one bit that no other follows
        columns[:, r] = left + (2**r - 1) * count[:, r]
        eroded = eroded & _shifted(eroded, 2**r)
    return count[:, :-1] - count[:, 1:], columns[:, :-1] - columns[:, 1:]


def closed(words: Words, gap: int) -> Words:
    """Bits [T, W] with every gap of at most `gap` columns between two set bits filled.

    A column is in a filled gap if each of the gap + 1 windows of gap + 1 columns that hold it holds a set bit. With the
    bits moved up by `gap`, these windows begin at the column itself.
    """
    if gap <= 0:
        return words
    moved = -(-gap // WORD)
    room = np.zeros((len(words), moved), dtype=words.dtype)
    raised = _shifted(np.concatenate((room, words, room[:, :1]), axis=1), moved * WORD - gap)
    any_set = _windows(raised, gap + 1, np.bitwise_or)
    return np.ascontiguousarray(_windows(any_set, gap + 1, np.bitwise_and)[:, : words.shape[1]])


def _windows(words: Words, width: int, join: np.ufunc) -> Words:
    """Each bit joined with the `width` - 1 bits after it."""
    done = 1
    while done < width:
        step = min(done, width - done)
        words, done = join(words, _shifted(words, step)), done + step
    return words


def _shifted(words: Words, by: int) -> Words:
    """Bits [T, W] moved `by` columns towards column 0."""
    whole, rest = divmod(by, WORD)
    result = np.zeros_like(words)
    width = words.shape[1] - whole
    if width > 0:
        np.right_shift(words[:, whole:], np.uint64(rest), out=result[:, :width])
    if width > 1 and rest:
        result[:, : width - 1] |= words[:, whole + 1 :] << np.uint64(WORD - rest)
    return result
