"""WARP's routing traces: JSON lines `{"tok": n, "layers": [[expert, ...], ...]}`, a line a decoded token.

WARP's tools write the experts in rising order and without weights, and no prompt. Dense layers are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dipsim.basics.errors import InputError, quoted
from dipsim.workload.importers.importer import LARGEST, Importer, Recording, lines_of


class Warp(Importer):
    """The JSON lines of `trace_hf.py` and `kimi_ref.py --trace`."""

    @staticmethod
    def read(file: Path) -> Recording:
        """Read a trace. Raises InputError, naming the line, if it is none."""
        lines = lines_of(file)
        if not lines[-1]:
            lines.pop()  # what is behind the last line's end
        tokens: list[list[list[int]]] = []
        first = 0
        for number, line in enumerate(lines, start=1):
            token, layers = _token(line, f"{file}: line {number}")
            first = token if number == 1 else first
            if token != first + number - 1:
                raise InputError(
                    f"{file}: line {number}: tok {token} where {first + number - 1} is expected; record it again"
                )
            _check_sizes(layers, (tokens or [layers])[0], f"{file}: line {number}")
            tokens.append(layers)
        ids = np.array(tokens, dtype=np.int64)
        numbers = np.arange(1, len(ids) + 1)[:, None, None]
        return Recording(ids=ids, lines=np.broadcast_to(numbers, ids.shape))


def _token(line: str, where: str) -> tuple[int, list[list[int]]]:
    """The number of a token and its experts in each layer."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where}: is not JSON; the file is truncated or of another format") from None
    token, layers = (found.get("tok"), found.get("layers")) if isinstance(found, dict) else (None, None)
    if not (_number(token) and isinstance(layers, list) and layers and all(isinstance(ids, list) for ids in layers)):
        raise InputError(f'{where}: {{"tok": number, "layers": [[expert, ...], ...]}} is expected; record it again')
    for layer, ids in enumerate(layers):
        if wrong := [expert for expert in ids if not _number(expert)]:
            raise InputError(
                f"{where}: layer {layer}: expert {quoted(wrong[0])}: must be a whole number; record it again"
            )
    assert isinstance(token, int)
    return token, layers


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _check_sizes(layers: list[list[int]], first: list[list[int]], where: str) -> None:
    """Raise InputError unless a token has as many layers and experts as the first."""
    if len(layers) != len(first):
        raise InputError(f"{where}: {len(layers)} layers where line 1 has {len(first)}; record it again")
    for layer, ids in enumerate(layers):
        if not ids or len(ids) != len(first[0]):
            raise InputError(
                f"{where}: layer {layer}: {len(ids)} experts where line 1 has {len(first[0])}; record it again"
            )
