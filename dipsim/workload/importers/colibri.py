"""colibri's routing lines (`ROUTE_TRACE=file`): `call row layer id:gate id:gate ...`, a line a token and layer.

A call is one layer's, of all rows of a batch, and calls count up through the whole run. So layers rise while a batch
passes, and fall where the next begins. Several rows are a prompt. Dense layers have no lines. Gates have four decimals.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dipsim.basics.errors import InputError, quoted
from dipsim.workload.config import LAYERS
from dipsim.workload.importers.batches import Batch, Cell, gather
from dipsim.workload.importers.importer import Importer, Recording, real, whole, whole_lines_of


class Colibri(Importer):
    """The lines that `ROUTE_TRACE` writes, recorded without speculation (`MTP=0`) and with all experts (no `TOPP`)."""

    @staticmethod
    def read(file: Path) -> Recording:
        """Read routing lines. Raises InputError, naming the line, if they are none."""
        return Recording(**gather(file, list(_batches(file))))


def _batches(file: Path) -> Iterator[Batch]:
    """The rows that passed the layers together, from lines in the file's order."""
    cells: list[Cell] = []
    last = -1  # the call before
    for number, line in enumerate(whole_lines_of(file), start=1):
        where = f"{file}: line {number}"
        call, cell = _cell(line, number, where)
        if cells and len(cell.ids) != len(cells[-1].ids):
            raise InputError(
                f"{where}: {len(cell.ids)} experts, {len(cells[-1].ids)} in the line before; record it without TOPP"
            )
        if cells and call not in (last, last + 1):
            raise InputError(f"{where}: call {call} after {last}; calls must rise by one, so record it again")
        if cells and call == last and cell.layer != cells[-1].layer:
            raise InputError(f"{where}: layer {cell.layer} in a call of layer {cells[-1].layer}; record it again")
        if call != last:
            if cell.token:
                raise InputError(f"{where}: row {cell.token} where 0 is expected; record it again")
            if cells and cell.layer <= cells[-1].layer:
                yield Batch(False, cells)
                cells = []
        cells.append(cell)
        last = call
    yield Batch(False, cells)


def _cell(line: str, number: int, where: str) -> tuple[int, Cell]:
    """One line: its call, and the experts of a row in a layer."""
    fields = line.split()
    if len(fields) < 4:
        raise InputError(f"{where}: {len(fields)} fields; `call row layer id:gate ...` is expected, of a whole file")
    call, row = whole(fields[0], "call", where), whole(fields[1], "row", where)
    layer = whole(fields[2], "layer", where, LAYERS)
    pairs = [field.partition(":") for field in fields[3:]]
    if wrong := [field for field, pair in zip(fields[3:], pairs, strict=True) if not pair[1]]:
        raise InputError(f"{where}: {quoted(wrong[0])}: id:gate is expected; record it again")
    ids = [whole(pair[0], "expert", where) for pair in pairs]
    weights = [real(pair[2], "gate", where) for pair in pairs]
    return call, Cell([number] * len(ids), layer, row, ids, weights)
