"""Batches: tokens that an engine took through the layers together, and the arrays that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dipsim.basics.errors import InputError
from dipsim.workload.routing import NOT_ROUTED


class Cell(NamedTuple):
    """The experts of a token in a layer, in the file's order, and the line of each. `token` is the file's number."""

    lines: list[int]
    layer: int
    token: int
    ids: list[int]
    weights: list[float]


class Batch(NamedTuple):
    """The cells of tokens that passed the layers together, layer by layer. `prompt` says that they are of a prompt."""

    prompt: bool
    cells: list[Cell]


def gather(file: Path, batches: Sequence[Batch], *, spared: bool = False) -> dict[str, Any]:
    """The fields ids, weights, lines, layers and prompts of a `Recording`, from all batches in order.

    Tokens are a prompt if they are several or their batch says so. With `spared`, the last layer may have left out
    tokens of a prompt, as engines do that need only its last token. Raises InputError, naming the line, if tokens do
    not rise by one, or a token did not pass all layers.
    """
    layers = sorted({cell.layer for batch in batches for cell in batch.cells})
    column = {layer: index for index, layer in enumerate(layers)}
    found: list[tuple[int, int, Cell]] = []
    prompts: list[tuple[int, int]] = []
    begin = 0
    for batch in batches:
        cells = {layer: list(group) for layer, group in groupby(batch.cells, key=lambda cell: cell.layer)}
        tokens = _rising(file, next(iter(cells.values())))
        for layer in layers:
            here = cells.get(layer, [])
            have = [cell.token for cell in here]
            may_lack = spared and batch.prompt and layer == layers[-1]
            if have != ([token for token in tokens if token in set(have)] if may_lack else tokens):
                line = (here or batch.cells)[-1].lines[-1]
                raise InputError(
                    f"{file}: line {line}: layer {layer} has {len(have)} of {len(tokens)} tokens from {tokens[0]} on; "
                    "every token needs every layer once, in order, so record it again"
                )
            found.extend((begin + cell.token - tokens[0], column[layer], cell) for cell in here)
        if batch.prompt or len(tokens) > 1:
            prompts.append((begin, begin + len(tokens)))
        begin += len(tokens)
    size = begin, len(layers), len(batches[0].cells[0].ids)
    ids, lines = np.full(size, NOT_ROUTED, dtype=np.int64), np.zeros(size, dtype=np.int64)
    weights = np.zeros(size, dtype=np.float32)
    where = tuple(np.array([entry[axis] for entry in found]) for axis in (0, 1))
    ids[where] = [cell.ids for *_, cell in found]
    lines[where] = [cell.lines for *_, cell in found]
    weights[where] = [cell.weights for *_, cell in found]
    return {"ids": ids, "weights": weights, "lines": lines, "layers": tuple(layers), "prompts": tuple(prompts)}


def _rising(file: Path, cells: list[Cell]) -> list[int]:
    """The tokens of one layer's cells. Raises InputError unless they rise by one."""
    first = cells[0].token
    for expected, cell in enumerate(cells, start=first):
        if cell.token != expected:
            raise InputError(
                f"{file}: line {cell.lines[0]}: token {cell.token} where {expected} is expected; record it again"
            )
    return list(range(first, first + len(cells)))
